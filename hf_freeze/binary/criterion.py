"""What a good threshold is: an objective to maximise, and constraints to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.counts import FloatArray
from hf_freeze.binary.result import is_number, short
from hf_freeze.errors import FreezeError

Objective: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]
"""A function of the arrays (tp, fp, fn, tn), all of one shape, that returns the value at each: larger is better."""

_SMALLEST = 1e-300
_NEEDS_SCORES = ("auroc", "roc_auc", "average_precision", "brier", "log_loss", "expected_calibration_error")


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return part / whole, and 0 where both are 0: the convention for figures without any row."""
    return part / np.maximum(whole, _SMALLEST)


def f1(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the harmonic mean of precision and recall."""
    return ratio(2.0 * tp, 2.0 * tp + fp + fn)


def precision(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of the rows called positive that are."""
    return ratio(tp, tp + fp)


def recall(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of the positive rows that are found."""
    return ratio(tp, tp + fn)


def specificity(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of the negative rows that are left alone."""
    return ratio(tn, tn + fp)


def accuracy(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of the rows that are labelled correctly."""
    return ratio(tp + tn, tp + fp + fn + tn)


def balanced_accuracy(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the mean of recall and specificity."""
    return (recall(tp, fp, fn, tn) + specificity(tp, fp, fn, tn)) / 2.0


def youden(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return recall + specificity - 1 (Youden, 1950)."""
    return recall(tp, fp, fn, tn) + specificity(tp, fp, fn, tn) - 1.0


def mcc(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the correlation of label and prediction (Matthews, 1975)."""
    return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


OBJECTIVES: Mapping[str, Objective] = {
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "youden": youden,
    "mcc": mcc,
}
_BOUNDS = {"mcc": (-1.0, 1.0), "youden": (-1.0, 1.0), "cost": (-math.inf, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """An objective and its constraints, checked once.

    `objective`: "f1", "fbeta" (with `beta`: recall weighs beta times as much), "mcc", "balanced_accuracy", "youden",
    "accuracy", "cost" (with `costs={"fp": ..., "fn": ...}`; the value is minus the mean cost per row), "precision" and
    "recall" (only under a constraint), or a function of the arrays (tp, fp, fn, tn): where it is not finite, no
    threshold is chosen.
    `min_precision`, `min_recall`, `max_fpr` lie in [0, 1]. With `confidence` they must hold at their one-sided Wilson
    bound (Wilson, 1927), not only at the figure that happened to be observed.
    """

    objective: str | Objective = "f1"
    beta: float = 1.0
    costs: Mapping[str, float] | None = None
    min_precision: float | None = None
    min_recall: float | None = None
    max_fpr: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        """Raise `FreezeError` when the parts contradict each other."""
        self._check_objective()
        self._check_costs()
        for name, limit in self.constraints.items():
            if not (is_number(limit) and 0.0 <= limit <= 1.0):
                raise FreezeError(f"{name}={short(limit)} is not a rate. Give a number from 0 to 1.")
        if self.confidence is not None:
            if not (is_number(self.confidence) and 0.5 <= self.confidence < 1.0):
                raise FreezeError(f"confidence={short(self.confidence)} is out of range. Give a number such as 0.95.")
            if not self.constraints:
                raise FreezeError(
                    "confidence= applies to a constraint, and there is none. Add min_precision, min_recall or max_fpr."
                )

    def _check_objective(self) -> None:
        known = [*OBJECTIVES, "fbeta", "cost"]
        if not callable(self.objective) and not (isinstance(self.objective, str) and self.objective in known):
            needs_scores = isinstance(self.objective, str) and self.objective in _NEEDS_SCORES
            why = "needs the scores, not only the counts" if needs_scores else "is not known"
            raise FreezeError(
                f"objective={short(self.objective)} {why}, so no threshold can maximise it. Give one of "
                f"{', '.join(known)}, or a function of the arrays (tp, fp, fn, tn)."
            )
        if not (is_number(self.beta) and 0.0 < self.beta < 1e30):
            raise FreezeError(f"beta={short(self.beta)} is not a positive number.")
        if self.beta != 1.0 and self.objective != "fbeta":
            raise FreezeError(f'beta={self.beta!r} has no effect on objective={self.name!r}. Say objective="fbeta".')
        if callable(self.objective):
            self.value(*(np.array([3.0, 2.0, 0.0]) for _ in range(4)))  # what it cannot do is said before any work
        if self.objective in ("precision", "recall") and not self.constraints:
            raise FreezeError(
                f"objective={self.objective!r} alone is best at an extreme threshold. Add a constraint, such as "
                f"{'min_recall' if self.objective == 'precision' else 'min_precision'}=0.9."
            )

    def _check_costs(self) -> None:
        if self.objective == "cost" and self.costs is None:
            raise FreezeError('objective="cost" needs costs={"fp": ..., "fn": ...}, the cost of each kind of error.')
        if self.costs is None:
            return
        if self.objective != "cost":
            raise FreezeError(f'costs= has no effect on objective={self.name!r}. Say objective="cost".')
        given = dict(self.costs) if isinstance(self.costs, Mapping) else {}
        if set(given) != {"fp", "fn"} or not all(is_number(cost) and 0.0 < cost < 1e30 for cost in given.values()):
            raise FreezeError(f'costs={short(self.costs)} must be two positive numbers: {{"fp": ..., "fn": ...}}.')

    @property
    def name(self) -> str:
        """Name of the objective; for a function, its `__name__`."""
        if isinstance(self.objective, str):
            return self.objective
        return getattr(self.objective, "__name__", type(self.objective).__name__)

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value that the objective can take."""
        if callable(self.objective):
            return -math.inf, math.inf
        return _BOUNDS.get(self.objective, (0.0, 1.0))

    @property
    def constraints(self) -> dict[str, float]:
        """The constraints that are set, by name."""
        limits = {"min_precision": self.min_precision, "min_recall": self.min_recall, "max_fpr": self.max_fpr}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def value(self, tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
        """Return the objective at each entry; minus infinity where a user's function gives no finite number."""
        if isinstance(self.objective, str):
            return self._named_value(tp, fp, fn, tn)
        try:
            with np.errstate(all="ignore"):
                value = np.asarray(self.objective(*(count.copy() for count in (tp, fp, fn, tn))), dtype=np.float64)
        except Exception as error:
            raise FreezeError(
                f"objective {self.name!r} failed on arrays of counts ({type(error).__name__}: {error}). It is called "
                "with the arrays (tp, fp, fn, tn) and must return one value per entry."
            ) from error
        if value.shape != tp.shape:
            raise FreezeError(
                f"objective {self.name!r} returned shape {value.shape} for counts of shape {tp.shape}. It must return "
                "one value per entry; use numpy operations, not `if` or `max`."
            )
        return np.where(np.isfinite(value), value, -np.inf)

    def value_of(self, counts: tuple[float, float, float, float]) -> float:
        """Return the objective of a single (tp, fp, fn, tn)."""
        return float(self.value(*(np.array([float(count)]) for count in counts))[0])

    def _named_value(self, tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
        if self.objective == "cost" and self.costs is not None:
            return ratio(-(self.costs["fp"] * fp + self.costs["fn"] * fn), tp + fp + fn + tn)
        if self.objective == "fbeta":
            weight = float(self.beta) ** 2
            return ratio((1.0 + weight) * tp, (1.0 + weight) * tp + weight * fn + fp)
        return OBJECTIVES[str(self.objective)](tp, fp, fn, tn)

    def worst(self, n_pos: float, n_neg: float) -> float:
        """Return the finite value to report when no threshold is acceptable: 0, or the cost of every row wrong."""
        return self.value_of((0.0, n_neg, n_pos, 0.0)) if self.objective == "cost" else 0.0

    def reached(
        self, tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray, *, confidence: float | None
    ) -> dict[str, FloatArray]:
        """Return what each constraint has to be compared with: the observed rate, or its Wilson bound."""
        z = 0.0 if confidence is None else NormalDist().inv_cdf(confidence)
        rates: dict[str, FloatArray] = {}
        if self.min_precision is not None:
            rates["min_precision"] = wilson_bound(tp, tp + fp, z=-z)
        if self.min_recall is not None:
            rates["min_recall"] = wilson_bound(tp, tp + fn, z=-z)
        if self.max_fpr is not None:
            rates["max_fpr"] = wilson_bound(fp, tn + fp, z=z)
        return rates

    def feasible(
        self, tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray, *, confidence: float | None
    ) -> NDArray[np.bool_]:
        """Return where all constraints hold."""
        holds = np.ones(tp.shape, dtype=bool)
        for name, rate in self.reached(tp, fp, fn, tn, confidence=confidence).items():
            limit = self.constraints[name]
            holds &= rate <= limit if name == "max_fpr" else rate >= limit
        return holds


def wilson_bound(successes: FloatArray, trials: FloatArray, *, z: float) -> FloatArray:
    """Return the end of Wilson's score interval `z` standard deviations from the rate: below for z < 0 (Wilson, 1927).

    Without any trial nothing is known: 0 below, 1 above.
    """
    rate = ratio(successes, trials)
    if z == 0.0:
        return rate
    spread = z * np.sqrt(rate * (1.0 - rate) * trials + z * z / 4.0)
    return np.where(trials > 0, (successes + z * z / 2.0 + spread) / (trials + z * z), float(z > 0))
