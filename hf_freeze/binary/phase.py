"""When to tune and when to apply: the one decision that keeps the test set out of the threshold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hf_freeze.errors import FreezeError


class TuningPhase:
    """Answer whether the evaluation that runs now may tune.

    The strongest word wins: `freeze()` (never again), then `forced()` (the user, around a call), then `evaluation()`
    (the Trainer, which knows which set it evaluates and whether it trains). Without any of them the phase cannot be
    known, and the evaluation tunes.
    """

    def __init__(self, tune_on: str) -> None:
        if not isinstance(tune_on, str):
            raise FreezeError(f"tune_on={tune_on!r} is not the name of an eval set.")
        self.tune_on = tune_on
        self.frozen = False
        self._forced: bool | None = None
        self._by_trainer: bool | None = None

    def tunes(self) -> bool:
        """Return whether an evaluation that runs now tunes the threshold."""
        if self.frozen:
            return False
        if self._forced is not None:
            return self._forced
        return self._by_trainer is not False

    def freeze(self) -> None:
        """End tuning for good."""
        self.frozen = True

    @contextmanager
    def forced(self, tune: bool) -> Iterator[None]:
        """Tune, or apply, inside this context, whatever the Trainer says. Raises `FreezeError` to tune when frozen."""
        if tune and self.frozen:
            raise FreezeError("The threshold was frozen: freeze() ended tuning. Use a new BinaryClassificationMetrics.")
        before, self._forced = self._forced, tune
        try:
            yield
        finally:
            self._forced = before

    @contextmanager
    def evaluation(self, metric_key_prefix: str, *, in_training: bool) -> Iterator[None]:
        """Tune inside this context if and only if it is a training run's own evaluation of the designated set."""
        before, self._by_trainer = self._by_trainer, in_training and self.designates(metric_key_prefix)
        try:
            yield
        finally:
            self._by_trainer = before

    def designates(self, metric_key_prefix: str) -> bool:
        """Return whether the set evaluated under this prefix is the one to tune on ("eval_<name>" for a named set)."""
        return metric_key_prefix in (self.tune_on, f"eval_{self.tune_on}")

    def check_sets(self, names: Sequence[str] | None) -> None:
        """Raise `FreezeError` unless the designated set is among the names of the eval sets; None is a single set."""
        if names is None and self.tune_on != "eval":
            raise FreezeError(f'tune_on={self.tune_on!r}, but the eval set has no name. Leave tune_on="eval".')
        if names is not None and self.tune_on not in names:
            raise FreezeError(f"tune_on={self.tune_on!r} is not among the eval sets {list(names)}. Name one of them.")
