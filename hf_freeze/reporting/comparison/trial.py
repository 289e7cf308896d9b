"""Train one contender with one seed, and record its losses and the metrics of its last evaluation."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.labelled_rows import PositiveLabel, read_rows
from hf_freeze.binary.metric_values import metrics_at
from hf_freeze.binary.result import ThresholdWarning
from hf_freeze.reporting.comparison.contenders import Contender
from hf_freeze.reporting.comparison.peak_memory import peak_memory
from hf_freeze.reporting.comparison.runs import Evaluation, Run
from hf_freeze.reporting.comparison.task import ComparedTrainer, Task
from hf_freeze.training.arguments import FreezeTrainingArguments

LOGGED = 40
"""How often the training loss is noted in a run."""

EVALUATED = 4
"""How often a run evaluates the validation set, besides at its start, where the arguments do not evaluate."""

WORK = "work"
"""The folder, inside that of the comparison, for files that are deleted when all runs are finished."""

FEATURES = "frozen_features"


def run_arguments(
    contender: Contender, args: FreezeTrainingArguments, *, seed: int, folder: Path, probe: bool
) -> FreezeTrainingArguments:
    """Return the arguments of one run: the shared ones, with the contender's rates, evaluated and logged alike."""
    own = copy.copy(args)
    own.output_dir, own.seed = str(folder / WORK), seed
    own.push_to_hub = False
    own.save_strategy, own.load_best_model_at_end = SaveStrategy.NO, False
    own.logging_strategy, own.logging_steps = IntervalStrategy.STEPS, 1 / LOGGED
    own.logging_first_step, own.logging_nan_inf_filter = False, False
    own.eval_on_start, own.batch_eval_metrics, own.prediction_loss_only = True, False, False
    own.disable_tqdm = True  # one bar for all runs, not one for each
    if args.eval_strategy == IntervalStrategy.NO:
        own.eval_strategy, own.eval_steps = IntervalStrategy.STEPS, 1 / EVALUATED
    if probe and not args.cache_frozen:
        own.cache_frozen = str(folder / WORK / FEATURES)
    for name, value in contender.rates.items():
        setattr(own, name, dict(value) if isinstance(value, Mapping) else value)
    return own


def train(name: str, contender: Contender, task: Task, *, seed: int, folder: Path, note: Callable[[str], None]) -> Run:
    """Train, evaluate and test; `note` is called with the progress."""
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
    return _outcome(name, trainer, task, seconds=seconds, peak_bytes=peak.bytes)


class _Watch(TrainerCallback):
    """Evaluates at the end of training, whatever the arguments say, and reports progress."""

    def __init__(self, name: str, note: Callable[[str], None]) -> None:
        self._name, self._note = name, note

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._note(f"{self._name}, seed {args.seed}: step {state.global_step} of {state.max_steps}")
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.EPOCH:
            control.should_evaluate = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_evaluate = True


def _outcome(name: str, trainer: ComparedTrainer, task: Task, *, seconds: float, peak_bytes: int) -> Run:
    """Read a run off its trainer, and judge the test set; `seconds` are those of training with its evaluations."""
    history = trainer.state.log_history
    entries = [entry for entry in history if "eval_f1_oob" in entry]
    evaluations = tuple(map(_evaluation, entries))
    positive = PositiveLabel(task.positive).with_names_from(getattr(trainer.model, "config", None))
    n_pos, at_half = _at_half(trainer, positive.id)
    tuned = trainer.last_tuned
    parameters = dict(trainer.model.named_parameters())
    trained = trainer.trained_parameters
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
    """Return a remark on the last evaluation, if there is one."""
    if not math.isfinite(last.loss):
        return f"it diverged: the validation loss at the end is {last.loss}"
    if trainer.last_tuned is not None:
        return trainer.last_tuned.message
    metrics: Any = trainer.compute_metrics
    return f"no threshold could be tuned at the end; the metrics are those at margin {metrics.threshold:.3g}"


def _at_half(trainer: ComparedTrainer, positive: int) -> tuple[int, dict[str, float]]:
    """Count positives, and return accuracy and recall at probability 0.5, of the last evaluation."""
    logits, labels = trainer.last_outputs
    rows = read_rows(logits, labels, positive=positive)
    if rows.n_nan:
        return rows.n_pos, {}
    figures = metrics_at(0.0, count_scores(rows.margin, rows.positive))
    return rows.n_pos, {what: figures[what] for what in ("accuracy", "recall")}


def _tested(trainer: ComparedTrainer, task: Task) -> dict[str, float] | None:
    """Judge the test set; this comes last, because it is an evaluation as well."""
    if task.test_dataset is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ThresholdWarning)
        figures = trainer.predict(task.test_dataset).metrics
    return {name: figures[f"test_{name}"] for name in ("loss", "f1", "average_precision", "accuracy", "recall")}
