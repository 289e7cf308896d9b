"""Freezing declared beside the other TrainingArguments: in Python, as command-line flags, in YAML or JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_freeze.errors import PlanError
from hf_freeze.plan.stages import FreezePlan


@dataclass
class FreezeArguments:
    """The extras that `FreezeTrainer` reads; mix them into any TrainingArguments class.

    `class Seq2SeqFreezeArguments(FreezeArguments, Seq2SeqTrainingArguments)` with `@dataclass` is all it takes.
    """

    freeze: list[str] | None = field(
        default=None, metadata={"help": "What stays frozen: a selection, e.g. --freeze backbone '!norms'."}
    )
    trainable: list[str] | None = field(
        default=None,
        metadata={"help": "What trains, everything else being frozen, e.g. --trainable head 'layers[-2:]'."},
    )
    group_lrs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Learning rates by selection: \'{"head": 1e-3, "norms": {"lr": 1e-4, "weight_decay": 0.1}}\'.'
        },
    )
    layer_lr_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate per layer below the head; 1.0 is none."}
    )
    frozen_eval: bool = field(
        default=True, metadata={"help": "Keep frozen modules in eval mode: dropout off, BatchNorm statistics still."}
    )
    verify_freeze: bool = field(
        default=True,
        metadata={
            "help": "Prove at each save and at the end that frozen weights stood still and trainable ones moved."
        },
    )

    def __post_init__(self) -> None:
        self.group_lrs = _read_group_lrs(self.group_lrs)
        parents = super()
        if hasattr(parents, "__post_init__"):
            parents.__post_init__()

    @property
    def rates_by_selection(self) -> dict[str, Any]:
        """`group_lrs` as a mapping; {} when there are none."""
        return self.group_lrs if isinstance(self.group_lrs, dict) else {}

    def freeze_plan(self) -> FreezePlan | None:
        """Return the declared plan, or None when nothing was declared. Raises `PlanError` and `SelectionError`."""
        if self.freeze is None and self.trainable is None:
            return None
        return FreezePlan(freeze=self.freeze, trainable=self.trainable)


@dataclass
class FreezeTrainingArguments(FreezeArguments, TrainingArguments):
    """TrainingArguments with the extras that `FreezeTrainer` reads; see `FreezeArguments`."""


def _read_group_lrs(value: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise PlanError(
                f"group_lrs={value!r} is not JSON: {error}. Write for example '{{\"head\": 1e-3}}'."
            ) from error
    if value is not None and not isinstance(value, Mapping):
        raise PlanError(f"group_lrs={value!r} is no mapping of selections to learning rates, such as {{'head': 1e-3}}.")
    return None if value is None else dict(value)
