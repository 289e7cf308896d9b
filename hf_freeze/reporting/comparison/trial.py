"""Train one contender with one seed."""

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
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_freeze.binary.diagnosis import ThresholdWarning
from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.binary.result import ThresholdResult
from hf_freeze.reporting.comparison.contenders import Contender
from hf_freeze.reporting.comparison.outcome import read_outcome
from hf_freeze.reporting.comparison.peak_memory import peak_memory
from hf_freeze.reporting.comparison.runs import Run
from hf_freeze.training.arguments import FreezeTrainingArguments
from hf_freeze.training.trainer import FreezeTrainer

LOGGED = 40
"""The training loss is noted so many times a run."""

EVALUATED = 4
"""Where the arguments do not evaluate, the validation set is evaluated so many times a run, beside the start."""

WORK = "work"
"""Where runs keep, below the folder of the comparison, what is gone when all are finished."""

FEATURES = "frozen_features"


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

    @property
    def sets(self) -> dict[str, Any]:
        """Name -> the rows of that set; a test set only where there is one."""
        test = {} if self.test_dataset is None else {"test": self.test_dataset}
        return {"train": self.train_dataset, "eval": self.eval_dataset, **test}

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

    def loaders(self, trainer: ComparedTrainer) -> dict[str, DataLoader[Any]]:
        """Return, by the name of its set, what hands the rows to a trainer."""
        test = {} if self.test_dataset is None else {"test": trainer.get_test_dataloader(self.test_dataset)}
        return {"train": trainer.get_train_dataloader(), "eval": trainer.get_eval_dataloader(), **test}


class ComparedTrainer(FreezeTrainer):
    """Notes what the last evaluation gave, which stages trained, and whether training went over stored features."""

    last_outputs: tuple[Any, Any] = (None, None)
    last_tuned: ThresholdResult | None = None
    """What the last evaluation tuned; None where it could tune nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stages_trained: set[int] = set()
        self.steps_on_features: set[bool] = set()

    @property
    def trained(self) -> frozenset[str]:
        """The names of the parameters that trained in a stage which began."""
        names = self._freezing.prepare(self.args, self.model).names
        return frozenset().union(*(names[stage] for stage in self.stages_trained))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does."""
        metrics: Any = self.compute_metrics
        before = metrics.result
        found = super().evaluation_loop(*args, **kwargs)
        self.last_outputs = found.predictions, found.label_ids
        self.last_tuned = None if metrics.result is before else metrics.result
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the Trainer does."""
        kept = [] if self._cache is None else self._cache.kept
        self.steps_on_features.add(self._name_of(self.train_dataset) in kept)
        if self._freezing.stage is not None:
            self.stages_trained.add(self._freezing.stage)
        return super().training_step(*args, **kwargs)


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
    return read_outcome(name, trainer, task, seconds=seconds, peak_bytes=peak.bytes)


class _Watch(TrainerCallback):
    """Evaluates at the end of training, whatever the arguments say of when, and says how far the run is."""

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
