"""What all contenders share in training: model, rows and arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.binary.result import ThresholdResult
from hf_freeze.training.arguments import FreezeTrainingArguments
from hf_freeze.training.cached_features import TRAINING
from hf_freeze.training.trainer import FreezeTrainer


@dataclass(frozen=True, kw_only=True)
class Task:
    """The model, the rows and the arguments that all contenders share."""

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

    def trainer(self, model: nn.Module, args: TrainingArguments, **given: Any) -> "ComparedTrainer":
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

    def loaders(self, trainer: "ComparedTrainer") -> dict[str, DataLoader[Any]]:
        """Return, by the name of its set, what hands the rows to a trainer."""
        test = {} if self.test_dataset is None else {"test": trainer.get_test_dataloader(self.test_dataset)}
        return {"train": trainer.get_train_dataloader(), "eval": trainer.get_eval_dataloader(), **test}


class ComparedTrainer(FreezeTrainer):
    """Notes what the last evaluation gave, and whether training went over stored features."""

    last_outputs: tuple[Any, Any] = (None, None)
    last_tuned: ThresholdResult | None = None
    """The threshold that the last evaluation tuned; None where it could not tune one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_on_features: set[bool] = set()

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
        self.steps_on_features.add(TRAINING in self.cached_sets)
        return super().training_step(*args, **kwargs)
