"""What makes a threshold good: an objective to maximise, and constraints to keep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary import metric_values
from hf_freeze.binary.counts import FloatArray
from hf_freeze.binary.metric_values import MetricOfCounts, ratio
from hf_freeze.binary.result import is_number, short
from hf_freeze.errors import FreezeError

_NEED_SCORES = ("auroc", "roc_auc", "average_precision", "brier", "log_loss", "expected_calibration_error")

_OBJECTIVES: Mapping[str, MetricOfCounts] = {
    "f1": metric_values.f1,
    "precision": metric_values.precision,
    "recall": metric_values.recall,
    "accuracy": metric_values.accuracy,
    "balanced_accuracy": metric_values.balanced_accuracy,
    "youden": metric_values.youden,
    "mcc": metric_values.mcc,
}
_BOUNDS = {"mcc": (-1.0, 1.0), "youden": (-1.0, 1.0), "cost": (-math.inf, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """An objective and its constraints, checked once.

    Args:
        objective: "f1", "fbeta", "mcc", "balanced_accuracy", "youden", "accuracy", "cost"; "precision" or "recall" with
            a constraint; or a function of the arrays (tp, fp, fn, tn). Where that function is not finite, no threshold
            is chosen.
        beta: For "fbeta": recall weighs beta times as much as precision.
        costs: For "cost": `{"fp": ..., "fn": ...}`. The value is minus the mean cost per row.
        min_precision, min_recall, max_fpr: Limits in [0, 1] that an acceptable threshold keeps.
        confidence: The limits must hold on fresh rows with this probability, and not only on the rows themselves: see
            `risk_control.py`.

    Raises:
        FreezeError: For values out of range, and settings without effect on each other.
    """

    objective: str | MetricOfCounts = "f1"
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
                raise FreezeError(f"{name}={short(limit)} must be a number from 0 to 1.")
        if self.confidence is not None:
            if not (is_number(self.confidence) and 0.5 <= self.confidence < 1.0):
                raise FreezeError(
                    f"confidence={short(self.confidence)} must be a number from 0.5 to below 1, such as 0.95."
                )
            if not self.constraints:
                raise FreezeError(
                    "confidence= applies to constraints, and none is given. Add min_precision, min_recall or max_fpr."
                )

    def _check_objective(self) -> None:
        known = [*_OBJECTIVES, "fbeta", "cost"]
        if not callable(self.objective) and not (isinstance(self.objective, str) and self.objective in known):
            needs_scores = isinstance(self.objective, str) and self.objective in _NEED_SCORES
            problem = (
                f"objective={short(self.objective)} does not depend on a threshold, so no threshold can maximise it."
                if needs_scores
                else f"Unknown objective={short(self.objective)}."
            )
            raise FreezeError(
                f"{problem} Give one of {', '.join(known)}, or a function of the arrays (tp, fp, fn, tn)."
            )
        if not (is_number(self.beta) and 0.0 < self.beta < 1e30):
            raise FreezeError(f"beta={short(self.beta)} must be a positive number.")
        if self.beta != 1.0 and self.objective != "fbeta":
            raise FreezeError(f'beta={self.beta!r} has no effect on objective={self.name!r}. Say objective="fbeta".')
        if callable(self.objective):
            self.value(*(np.array([3.0, 2.0, 0.0]) for _ in range(4)))  # fails before any work, not after
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
        """The smallest and the largest value that the objective can take."""
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
                value = np.asarray(self.objective(*(count.copy() for count in (tp, fp, fn, tn))))
                if np.iscomplexobj(value):
                    raise TypeError("it returned complex numbers")
                value = value.astype(np.float64)
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
        return _OBJECTIVES[str(self.objective)](tp, fp, fn, tn)

    def worst(self, n_pos: float, n_neg: float) -> float:
        """Return the finite value to report when no threshold is acceptable: 0, or the cost of every row wrong."""
        return self.value_of((0.0, n_neg, n_pos, 0.0)) if self.objective == "cost" else 0.0

    def reached(self, tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> dict[str, FloatArray]:
        """Return the observed rate that each constraint limits."""
        rates = {
            "min_precision": metric_values.precision(tp, fp, fn, tn),
            "min_recall": metric_values.recall(tp, fp, fn, tn),
            "max_fpr": ratio(fp, fp + tn),
        }
        return {name: rates[name] for name in self.constraints}

    def feasible(self, tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> NDArray[np.bool_]:
        """Return where all constraints hold on the rows themselves, whatever the confidence."""
        rounding = 1e-12  # of sums of weights: 9 of 10 rows must be 0.9 whatever they weigh
        holds = np.ones(tp.shape, dtype=bool)
        for name, rate in self.reached(tp, fp, fn, tn).items():
            limit = self.constraints[name]
            holds &= rate <= limit + rounding if name == "max_fpr" else rate >= limit - rounding
        return holds
