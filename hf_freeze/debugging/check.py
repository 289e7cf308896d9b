"""One finding about one sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """What was looked at (`name`), what came of it (`status`), and one sentence of cause and remedy."""

    name: str
    status: Status
    message: str


def ok(name: str, message: str) -> Check:
    """Nothing wrong."""
    return Check(name, "ok", message)


def warning(name: str, message: str) -> Check:
    """Training would run, but perhaps not as meant."""
    return Check(name, "warning", message)


def failed(name: str, message: str) -> Check:
    """Training would break, or learn something else than meant."""
    return Check(name, "failed", message)


def names_in(checks: Iterable[Check]) -> set[str]:
    """Names of the checks that are not ok."""
    return {check.name for check in checks if check.status != "ok"}


_FOLLOWS = {
    "weights_finite": {"logits_finite", "loss", "gradients", "train_mode"},
    "logits_finite": {"loss", "gradients", "train_mode"},
    "inputs": {"logits_finite", "loss", "gradients", "train_mode"},
    "attention_mask": {"sensitive", "gradients"},
    "label_range": {"loss", "gradients", "train_mode"},
    "sensitive": {"gradients"},
    "repeatable": {"padding", "padding_side", "neighbours"},
}


def without_consequences(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Leave out what is not ok only because of something else that is not ok: the cause is named once.

    >>> checks = [failed("inputs", ""), failed("logits_finite", ""), ok("plan", "")]
    >>> [check.name for check in without_consequences(checks)]
    ['inputs', 'plan']
    """
    checks = tuple(checks)
    follows = {name for cause in names_in(checks) for name in _FOLLOWS.get(cause, ())}
    return tuple(check for check in checks if check.status == "ok" or check.name not in follows)
