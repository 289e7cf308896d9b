"""Train one contender with one seed, and note what a comparison needs to know."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.diagnosis import ThresholdWarning
from hf_freeze.binary.figures import figures_at
from hf_freeze.binary.labels import PositiveLabel
from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.binary.rows import read_rows
from hf_freeze.reporting.contenders import Contender
from hf_freeze.reporting.peak_memory import Peak, peak_memory
from hf_freeze.reporting.runs import Evaluation, Run
from hf_freeze.training.arguments import FreezeTrainingArguments
from hf_freeze.training.trainer import FreezeTrainer

LOGGED = 40
"""The training loss is noted so many times a run."""

EVALUATED = 4
"""Where the arguments do not evaluate, the validation set is evaluated so many times a run, beside the start."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all contenders are trained on and with."""

    model_init: Callable[[], nn.Module]
    args: FreezeTrainingArguments
    train_dataset: Any
    eval_dataset: Any
    test_dataset: Any = None
    processing_class: Any = None
    data_collator: Any = None
    positive: int | str = 1

    def trainer(self, model: nn.Module, args: TrainingArguments, **given: Any) -> ComparedTrainer:
        """Build the trainer of a run."""
        return ComparedTrainer(
            model,
            args,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            processing_class=self.processing_class,
            data_collator=self.data_collator,
            compute_metrics=BinaryClassificationMetrics("f1", positive=self.positive),
            **given,
        )


class ComparedTrainer(FreezeTrainer):
    """Keeps the outputs of the last evaluation, and whether it trained on stored features."""

    last_outputs: tuple[Any, Any] = (None, None)
    stored_features = False

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does."""
        found = super().evaluation_loop(*args, **kwargs)
        self.last_outputs = found.predictions, found.label_ids
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the Trainer does."""
        self.stored_features |= bool(self._cache is not None and self._cache.kept)
        return super().training_step(*args, **kwargs)


def run_arguments(
    contender: Contender, args: FreezeTrainingArguments, *, seed: int, folder: Path, probe: bool
) -> FreezeTrainingArguments:
    """Return the arguments of one run: the shared ones, with the contender's rates, evaluated and logged alike."""
    own = copy.copy(args)
    own.output_dir, own.seed = str(folder / "work"), seed
    own.save_strategy, own.load_best_model_at_end = SaveStrategy.NO, False
    own.logging_strategy, own.logging_steps = IntervalStrategy.STEPS, 1 / LOGGED
    own.eval_on_start, own.batch_eval_metrics, own.prediction_loss_only = True, False, False
    own.disable_tqdm = True  # one bar for all runs, not one for each
    if args.eval_strategy == IntervalStrategy.NO:
        own.eval_strategy, own.eval_steps = IntervalStrategy.STEPS, 1 / EVALUATED
    if probe and not args.cache_frozen:
        own.cache_frozen = str(folder / "frozen_features")
    for name, value in contender.rates.items():
        setattr(own, name, dict(value) if isinstance(value, Mapping) else value)
    return own


def train(name: str, contender: Contender, task: Task, *, seed: int, folder: Path, note: Callable[[str], None]) -> Run:
    """Train, evaluate and test; `note` is told how far the run is."""
    with peak_memory(task.args.device) as peak, warnings.catch_warnings():
        # What they say of the first evaluations is over by the last; of that, the run keeps it as its remark.
        warnings.simplefilter("ignore", ThresholdWarning)
        model = contender.model(task.model_init, seed)
        probe = contender.is_linear_probe(model)
        args = run_arguments(contender, task.args, seed=seed, folder=folder, probe=probe)
        trainer = task.trainer(model, args, freeze_plan=contender.freeze_plan, callbacks=[_Watch(name, note)])
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    return _read(name, trainer, task, seconds=seconds, peak=peak)


def _read(name: str, trainer: ComparedTrainer, task: Task, *, seconds: float, peak: Peak) -> Run:
    history = trainer.state.log_history
    evaluations = [entry for entry in history if "eval_f1_oob" in entry]
    metrics: Any = trainer.compute_metrics
    result = metrics.result
    n_pos, at_half = _at_half(
        trainer, PositiveLabel(task.positive).with_names_from(getattr(trainer.model, "config", None)).id
    )
    parameters = dict(trainer.model.named_parameters())
    trainable = trainer._freezing.prepare(trainer.args, trainer.model).ever_trainable
    return Run(
        name=name,
        seed=trainer.args.seed,
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        trainable=sum(parameter.numel() for own, parameter in parameters.items() if own in trainable),
        training_losses=tuple(entry["loss"] for entry in history if "loss" in entry),
        evaluations=tuple(map(_evaluation, evaluations)),
        interval=None if result is None else result.interval,
        at_half=at_half,
        n_pos=n_pos,
        tested=_tested(trainer, task),
        seconds=seconds - sum(entry["eval_runtime"] for entry in evaluations),
        peak_bytes=peak.bytes,
        device=trainer.args.device.type,
        stored_features=trainer.stored_features,
        remark="no threshold could be tuned" if result is None else result.message,
    )


def _evaluation(entry: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        step=int(entry["step"]),
        loss=entry["eval_loss"],
        average_precision=entry["eval_average_precision"],
        f1=entry["eval_f1_oob"],
        accuracy=entry["eval_accuracy"],
        recall=entry["eval_recall"],
    )


def _at_half(trainer: ComparedTrainer, positive: int) -> tuple[int, dict[str, float]]:
    """Count positives, and return accuracy and recall at probability 0.5, of the last evaluation."""
    logits, labels = trainer.last_outputs
    rows = read_rows(logits, labels, positive=positive)
    if rows.n_nan:
        return rows.n_pos, {}
    figures = figures_at(0.0, count_scores(rows.margin, rows.positive))
    return rows.n_pos, {what: figures[what] for what in ("accuracy", "recall")}


def _tested(trainer: ComparedTrainer, task: Task) -> dict[str, float] | None:
    if task.test_dataset is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        figures = trainer.predict(task.test_dataset).metrics
    return {name: figures[f"test_{name}"] for name in ("loss", "f1", "average_precision", "accuracy", "recall")}


class _Watch(TrainerCallback):
    """Evaluates after the last step too, as it is after the last epoch anyway, and says how far the run is."""

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        self._name, self._note = name, note

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note(f"{self._name}, seed {args.seed}: step {state.global_step} of {state.max_steps}")
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate = True
