"""Compare ways to fine-tune on one's own data: the same rows and seeds for all, each run made once and kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from datasets import IterableDataset as IterableHubDataset
from torch import nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.errors import PlanError, UnsupportedSetupError
from hf_freeze.features.fingerprint import digest_data
from hf_freeze.features.untouched import random_states_kept, seed_all
from hf_freeze.reporting.comparison import Comparison, line_of
from hf_freeze.reporting.contenders import Contender, Plan, default_contenders, read_contenders
from hf_freeze.reporting.runs import Run, digest, path_of, read_run, write_run
from hf_freeze.reporting.trial import EVALUATED, LOGGED, Task, run_arguments, train
from hf_freeze.training.arguments import FreezeTrainingArguments
from hf_freeze.training.digests import digests
from hf_freeze.training.groups import param_groups

_NOT_OF_THE_RUN = {"output_dir", "run_name", "report_to", "disable_tqdm", "project", "log_level", "log_level_replica"}
_NOT_OF_THE_RUN |= {"seed", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "logging_strategy"}
"""Arguments that change nothing of what is compared, or that every run sets for itself."""


def compare(
    plans: Mapping[str, Plan] | None = None,
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
    """Train a fresh model by each plan with each seed, and return one table, one plot and what the figures say.

    plans: name -> a `FreezePlan`, the name of a recipe, a PEFT configuration, or a `Contender`, which has learning
    rates of its own. Without: linear probe, last layers, gradual, LP-FT, layer-wise decay, LoRA and full fine-tuning,
    around the learning rate of `args` (see `default_contenders`).
    args: what all share; they declare no plan. Nothing is saved but the figures. Without an `eval_strategy` the
    validation set is evaluated four times a run. A linear probe trains on features that are computed once
    (`cache_frozen`) where that is exact.
    eval_dataset: the threshold is tuned on it, after every evaluation anew; test_dataset: only judged, at the end.
    folder: a finished run is kept there as one JSON file, so that an interrupted comparison goes on where it stopped.
    The key is a digest of the plan, rates, arguments, seed, first weights, rows, the first batch as the model gets it,
    and versions: a run with anything changed is another run.

    Raises `PlanError` and `SelectionError` before anything is trained; `UnsupportedSetupError` on several processes.
    """
    _check(args, seeds, (train_dataset, eval_dataset))
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
    with random_states_kept():
        contenders = _contenders(plans, task)
        runs = _run_all(contenders, task, seeds, Path(folder), show_progress)
    return Comparison(runs=tuple(runs))


def _check(args: Any, seeds: Sequence[int], data: Sequence[Any]) -> None:
    if not isinstance(args, FreezeTrainingArguments):
        raise PlanError(
            f"args is a {type(args).__name__}; compare needs FreezeTrainingArguments, which have the rates."
        )
    if args.freeze_plan() is not None:
        raise PlanError(f"args declare a plan, {args.freeze_plan()}; the plans that are compared come from plans=.")
    if args.world_size > 1:
        raise UnsupportedSetupError(
            f"compare runs on one process, and there are {args.world_size}. Start it without accelerate launch."
        )
    if not seeds or len(set(seeds)) != len(seeds):
        raise PlanError(f"seeds={list(seeds)!r}: give one or more different seeds.")
    if any(isinstance(rows, IterableDataset | IterableHubDataset) or not hasattr(rows, "__len__") for rows in data):
        raise UnsupportedSetupError("compare digests the rows of its data sets: an iterable one has none by number.")


def _contenders(plans: Mapping[str, Plan] | None, task: Task) -> dict[str, Contender]:
    """Read the plans and hold them against the model: every mistake shows before the first hour of training."""
    model = Contender(plan="full").model(task.model_init, 0)
    known = default_contenders(model, task.args, train_rows=len(task.train_dataset)) if plans is None else plans
    contenders = read_contenders(known)
    BinaryClassificationMetrics(positive=task.positive).prepare(model)
    for contender in contenders.values():
        own = model if contender.adapter is None else contender.model(task.model_init, 0)
        rates: dict[str, Any] = {"layer_lr_decay": task.args.layer_lr_decay, "group_lrs": task.args.rates_by_selection}
        rates |= {"lr": contender.learning_rate, **contender.rates}
        names = ("lr", "layer_lr_decay", "group_lrs")
        param_groups(own, task.args, plan=contender.freeze_plan, **{name: rates[name] for name in names})
    return contenders


def _run_all(
    contenders: Mapping[str, Contender], task: Task, seeds: Sequence[int], folder: Path, show_progress: bool
) -> list[Run]:
    shared = _shared(task)
    pairs = [(name, seed) for seed in seeds for name in contenders]
    runs = []
    # Without a terminal (disable=None) no bar, and a line for each finished run all the same.
    with tqdm(total=len(pairs), unit="run", disable=None if show_progress else True, file=sys.stderr) as bar:
        first = {seed: _beginning(task, seed, folder) for seed in seeds}
        for name, seed in pairs:
            settings = {**shared, **contenders[name].settings(), "seed": seed, "beginning": first[seed]}
            key = digest(settings)
            path = path_of(folder / "runs", name, seed, key)
            run = read_run(path, key)
            if run is None:
                run = train(name, contenders[name], task, seed=seed, folder=folder, note=_Note(bar))
                write_run(path, run, key)
            if show_progress:
                bar.write(line_of(run), file=sys.stderr)
            bar.update()
            runs.append(run)
    return sorted(runs, key=lambda run: [*contenders].index(run.name))


class _Note:
    """Shows how far a run is, twice a second."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar
        self._shown = 0.0

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            self._bar.set_postfix_str(text)


def _shared(task: Task) -> dict[str, Any]:
    """What all runs have in common, as JSON-able values."""
    given: dict[str, Any] = task.args.to_dict()  # type: ignore[no-untyped-call]
    args = {name: value for name, value in given.items() if name not in _NOT_OF_THE_RUN}
    sets = {"train": task.train_dataset, "eval": task.eval_dataset, "test": task.test_dataset}
    versions = (torch, transformers, peft, datasets)
    return {
        "args": args,
        "data": {name: None if rows is None else digest_data(rows) for name, rows in sets.items()},
        "positive": task.positive,
        "device": task.args.device.type,
        "curve": [LOGGED, EVALUATED],
        "versions": {module.__name__: module.__version__ for module in versions},
    }


def _beginning(task: Task, seed: int, folder: Path) -> str:
    """Digest the weights that a run with this seed begins with, and the first batch that it evaluates."""
    everything = Contender(plan="full")
    model = everything.model(task.model_init, seed)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = digests(tensors)
    trainer = task.trainer(model, run_arguments(everything, task.args, seed=seed, folder=folder, probe=False))
    seed_all(seed)
    batch = next(iter(trainer.get_eval_dataloader()))
    inputs = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    shapes = {name: list(tensor.shape) for name, tensor in {**tensors, **inputs}.items()}
    return digest([type(model).__qualname__, repr(model), weights, digests(inputs), shapes])
