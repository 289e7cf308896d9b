"""What a comparison keeps of a run that was trained: its course, and the figures of its last evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.diagnosis import ThresholdWarning
from hf_freeze.binary.figures import figures_at
from hf_freeze.binary.labels import PositiveLabel
from hf_freeze.binary.rows import read_rows
from hf_freeze.reporting.comparison.runs import Evaluation, Run

if TYPE_CHECKING:
    from hf_freeze.reporting.comparison.trial import ComparedTrainer, Task


def read_outcome(name: str, trainer: ComparedTrainer, task: Task, *, seconds: float, peak_bytes: int) -> Run:
    """Read a run off its trainer, and judge the test set; `seconds` are those of training with its evaluations."""
    history = trainer.state.log_history
    entries = [entry for entry in history if "eval_f1_oob" in entry]
    evaluations = tuple(map(_evaluation, entries))
    positive = PositiveLabel(task.positive).with_names_from(getattr(trainer.model, "config", None))
    n_pos, at_half = _at_half(trainer, positive.id)
    tuned = trainer.last_tuned
    parameters = dict(trainer.model.named_parameters())
    trained = trainer.trained
    return Run(
        name=name,
        seed=trainer.args.seed,
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        trainable=sum(parameter.numel() for own, parameter in parameters.items() if own in trained),
        training_losses=tuple(entry["loss"] for entry in history if "loss" in entry),
        evaluations=evaluations,
        interval=None if tuned is None else tuned.interval,
        at_half=at_half,
        n_pos=n_pos,
        remark=_remark(trainer, evaluations[-1]),
        tested=_tested(trainer, task),
        seconds=seconds - sum(entry["eval_runtime"] for entry in entries),
        peak_bytes=peak_bytes,
        device=trainer.args.device.type,
        stored_features=trainer.steps_on_features == {True},
        highest_rate=max(group["initial_lr"] for group in getattr(trainer.optimizer, "param_groups", ())),
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


def _remark(trainer: ComparedTrainer, last: Evaluation) -> str:
    """What there is to say of the last evaluation."""
    if not math.isfinite(last.loss):
        return f"it diverged: the validation loss at the end is {last.loss}"
    if trainer.last_tuned is not None:
        return trainer.last_tuned.message
    metrics: Any = trainer.compute_metrics
    return f"no threshold could be tuned at the end; the figures are at margin {metrics.threshold:.3g}"


def _at_half(trainer: ComparedTrainer, positive: int) -> tuple[int, dict[str, float]]:
    """Count positives, and return accuracy and recall at probability 0.5, of the last evaluation."""
    logits, labels = trainer.last_outputs
    rows = read_rows(logits, labels, positive=positive)
    if rows.n_nan:
        return rows.n_pos, {}
    figures = figures_at(0.0, count_scores(rows.margin, rows.positive))
    return rows.n_pos, {what: figures[what] for what in ("accuracy", "recall")}


def _tested(trainer: ComparedTrainer, task: Task) -> dict[str, float] | None:
    """Judge the test set; comes last, for it is an evaluation as well."""
    if task.test_dataset is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        figures = trainer.predict(task.test_dataset).metrics
    return {name: figures[f"test_{name}"] for name in ("loss", "f1", "average_precision", "accuracy", "recall")}
