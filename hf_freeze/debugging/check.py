"""One finding about one sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "failed"]
CheckName: TypeAlias = Literal[
    "attention_mask",
    "collator",
    "forward",
    "gradients",
    "head",
    "initial_loss",
    "inputs",
    "label_dtype",
    "label_names",
    "label_range",
    "labels",
    "length",
    "logits_finite",
    "logits_not_probabilities",
    "loss",
    "loss_scale",
    "modes",
    "neighbours",
    "optimizer",
    "pad_token",
    "padding",
    "padding_side",
    "plan",
    "repeatable",
    "sensitive",
    "tokens",
    "train_mode",
    "truncated",
    "vocabulary",
    "weights_finite",
]


@dataclass(frozen=True)
class Check:
    """What was looked at (`name`), what came of it (`status`), and one sentence of cause and remedy."""

    name: CheckName
    status: Status
    message: str


def ok(name: CheckName, message: str) -> Check:
    """Nothing wrong."""
    return Check(name, "ok", message)


def warning(name: CheckName, message: str) -> Check:
    """Training would run, but perhaps not as meant."""
    return Check(name, "warning", message)


def failed(name: CheckName, message: str) -> Check:
    """Training would break, or learn something else than meant."""
    return Check(name, "failed", message)
