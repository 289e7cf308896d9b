"""One finding about one sample."""

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
    """The result of one check of `debug_sample`.

    Attributes:
        name: What was looked at, such as "gradients". Stable, so that code may ask for it: `report["gradients"]`.
        status: "ok", "warning" (training would run, but perhaps not as meant) or "failed".
        message: One sentence: what was found, and for what is not ok its likely cause and what to do.
    """

    name: CheckName
    status: Status
    message: str


def ok(name: CheckName, message: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name, "ok", message)


def warning(name: CheckName, message: str) -> Check:
    """Return a check of what would train, but perhaps not as meant."""
    return Check(name, "warning", message)


def failed(name: CheckName, message: str) -> Check:
    """Return a check of what would break training, or make it learn something else than meant."""
    return Check(name, "failed", message)
