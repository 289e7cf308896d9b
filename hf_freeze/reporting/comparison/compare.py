"""Compare ways to fine-tune on one's own data: the same rows and seeds for all, each run made once and kept."""

import gc
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.errors import FreezeError, PlanError, UnsupportedSetupError, in_one_line
from hf_freeze.no_trace import random_states_kept
from hf_freeze.reporting.comparison.comparison import Comparison, line_of
from hf_freeze.reporting.comparison.contenders import Contender, ContenderLike, fitting_contenders
from hf_freeze.reporting.comparison.data_checks import check_rows, check_sets
from hf_freeze.reporting.comparison.fresh_model import check_model_init, weights_of
from hf_freeze.reporting.comparison.run_key import shared_settings
from hf_freeze.reporting.comparison.runs import Run, digest, path_of, read_run, write_run
from hf_freeze.reporting.comparison.task import Task
from hf_freeze.reporting.comparison.trial import FEATURES, WORK, run_arguments, train
from hf_freeze.training.arguments import FreezeTrainingArguments

logger = logging.getLogger(__name__)

_ALL = Contender(plan="full")


def compare(
    plans: Mapping[str, ContenderLike] | None = None,
    *,
    model_init: Callable[[], nn.Module],
    args: FreezeTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
    test_dataset: Any = None,
    processing_class: Any = None,
    data_collator: Any = None,
    folder: str | Path,
    seeds: Sequence[int] = (42,),
    positive: int | str = 1,
    show_progress: bool = True,
) -> Comparison:
    """Train a fresh model by each plan with each seed, and return one table, one plot and what the results show.

    A finished run is kept in `folder` as one JSON file, so that an interrupted comparison goes on where it stopped. Its
    key is a digest of the name, plan, rates, arguments, seed and versions; of the model its first weights, its
    configuration, the settings of its modules and the code of custom classes; the rows, a few of them as the
    model gets them, and the code of the collator. A run with any of it changed is another run. Not covered: what code
    reads from files, the environment or objects of classes other than numbers, texts and containers of them; attributes
    of the data set that only show in rows which are not among the few; and rows that differ at each drawing also by one
    seed, and a warning says so.

    Args:
        plans: Name -> a plan (as everywhere), a PEFT configuration, or a `Contender`, which has learning rates of its
            own. Without: linear probe, last layers, gradual, LP-FT, layer-wise decay, LoRA and full fine-tuning, around
            the learning rate of `args` (see `default_contenders`); those are left out, with a warning in the log, that
            do not fit the model or so short a run.
        model_init: Returns the model anew each time; new weights are drawn by the seed of the run.
        args: What all runs share; they declare no plan. Nothing is saved but the results. Without an `eval_strategy`
            the validation set is evaluated four times a run. A linear probe trains on features that are computed once
            (`cache_frozen`) where that is exact.
        train_dataset: Labelled examples of two classes, by number: a list, a `datasets.Dataset`, a torch data set.
        eval_dataset: The threshold is tuned on it, anew after every evaluation.
        test_dataset: Only judged, at the end.
        processing_class: As in the Trainer.
        data_collator: As in the Trainer.
        folder: Where finished runs are kept.
        seeds: Every plan is trained with each of them.
        positive: The positive class, by id or by name.
        show_progress: Show a bar on standard error, and a line for each finished run.

    Returns:
        The runs of every plan. One that broke off is among the `failures`, and tried again by the next call.

    Raises:
        PlanError: For plans that do not fit the length of the run.
        SelectionError: For plans that do not fit the model.
        FreezeError: For data that cannot be trained and judged on (no rows, labels of other than two classes, one class
            only), a run of no steps, and a `model_init` that returns one model again or draws other weights under one
            seed: all before anything is trained. Also where every run broke off.
        UnsupportedSetupError: On several processes, and for iterable data sets.
    """
    task = Task(
        model_init=model_init,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        test_dataset=test_dataset,
        processing_class=processing_class,
        data_collator=data_collator,
        positive=positive,
    )
    _check(task, seeds)
    with random_states_kept():
        try:
            contenders, settings = _prepared(plans, task, seeds, Path(folder))
            comparison = _Runs(task, contenders, settings, Path(folder), show_progress).make(seeds)
            if not comparison.failures:
                shutil.rmtree(Path(folder) / WORK / FEATURES, ignore_errors=True)
            return comparison
        finally:
            for left in (Path(folder) / WORK / FEATURES, Path(folder) / WORK):
                with suppress(OSError):  # there is none, or what a run still to be made will need is in it
                    left.rmdir()


def _check(task: Task, seeds: Sequence[int]) -> None:
    args = task.args
    if not isinstance(args, FreezeTrainingArguments):
        raise PlanError(
            f"args is a {type(args).__name__}; compare needs FreezeTrainingArguments, which have the rates."
        )
    if args.freeze_plan() is not None:
        raise PlanError(f"args declare a plan, {args.freeze_plan()}; the plans that are compared come from plans=.")
    if args.world_size > 1:
        raise UnsupportedSetupError(
            f"compare runs on one process, but there are {args.world_size}. Start it without accelerate launch."
        )
    several = isinstance(seeds, Sequence) and all(isinstance(seed, int) for seed in seeds)
    if not several or not seeds or len(set(seeds)) != len(seeds):
        raise PlanError(f"seeds={seeds!r}: give one or more different whole numbers, as in seeds=(1, 2, 3).")
    check_sets(task.sets)


def _prepared(
    plans: Mapping[str, ContenderLike] | None, task: Task, seeds: Sequence[int], folder: Path
) -> tuple[dict[str, Contender], dict[str, Any]]:
    """Check everything that can be checked before any training; return what all runs have in common."""
    model, description = check_model_init(lambda: _ALL.model(task.model_init, seeds[0]))
    BinaryClassificationMetrics(positive=task.positive).prepare(model)
    contenders = fitting_contenders(plans, task, model)
    trainer = task.trainer(model, run_arguments(_ALL, task.args, seed=seeds[0], folder=folder, probe=False))
    loaders = task.loaders(trainer)
    check_rows(trainer, task, loaders)
    return contenders, shared_settings(task, description, loaders)


@dataclass(frozen=True)
class _Runs:
    """The runs of a comparison: those that are kept in the folder, and those still to be made."""

    task: Task
    contenders: Mapping[str, Contender]
    settings: Mapping[str, Any]
    folder: Path
    show_progress: bool

    def make(self, seeds: Sequence[int]) -> Comparison:
        """Make them seed by seed, so that after an interruption every plan has about the same number."""
        runs: list[Run] = []
        failures: list[tuple[str, int, str]] = []
        # Without a terminal (disable=None) no bar, and a line for each finished run all the same.
        disable = None if self.show_progress else True
        with tqdm(total=len(seeds) * len(self.contenders), unit="run", disable=disable, file=sys.stderr) as bar:
            for seed in seeds:
                weights = weights_of(_ALL.model(self.task.model_init, seed))
                for name in self.contenders:
                    outcome = self._one(name, seed, weights, bar)
                    if isinstance(outcome, Run):
                        runs.append(outcome)
                    else:
                        failures.append((name, seed, outcome))
                    if self.show_progress and isinstance(outcome, Run):
                        bar.write(line_of(outcome), file=sys.stderr)
                    bar.update()
        if not runs:
            reasons = "; ".join(f"{name}, seed {seed}: {reason}" for name, seed, reason in failures)
            raise FreezeError(f"None of the {len(failures)} runs could be finished. {reasons}.")
        order = [*self.contenders]
        return Comparison(runs=tuple(sorted(runs, key=lambda run: order.index(run.name))), failures=tuple(failures))

    def _one(self, name: str, seed: int, weights: Mapping[str, Any], bar: "tqdm[Any]") -> Run | str:
        """Return the run, or why it failed."""
        contender = self.contenders[name]
        key = digest({**self.settings, **contender.settings(), "name": name, "seed": seed, "weights": weights})
        path = path_of(self.folder / "runs", name, seed, key)
        run = read_run(path, key)
        if run is not None:
            return run
        try:
            run = train(name, contender, self.task, seed=seed, folder=self.folder, note=_Note(bar))
        except Exception as error:
            reason = in_one_line(error, most=300)
            logger.warning("%s, seed %d, failed, and the comparison goes on without it: %s", name, seed, reason)
        else:
            write_run(path, run, key)
            return run
        _free_memory()
        return reason


def _free_memory() -> None:
    """Release the model of a run that failed, which its exception held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Note:
    """Shows the progress of a run, twice a second."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self._bar = bar
        self._shown = 0.0

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self._bar.set_postfix_str(text)
