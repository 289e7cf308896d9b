"""Has a metric stopped improving? A pure state machine over evaluations."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_freeze.errors import PlanError
from hf_freeze.plan.stages import Plateau


@dataclass(frozen=True, kw_only=True)
class PlateauWatch:
    """What was seen since the stage began: the best value, the step it was seen at, evaluations since without a better.

    >>> watch = PlateauWatch(stage=1)
    >>> for step, loss in [(10, 0.9), (20, 0.7), (30, 0.8), (40, 0.75)]:
    ...     watch = watch.see(loss, step=step, plateau=Plateau("eval_loss", patience=2))
    >>> watch.best, watch.best_step, watch.is_over(Plateau("eval_loss", patience=2))
    (0.7, 20, True)
    """

    stage: int
    best: float | None = None
    best_step: int | None = None
    without_better: int = 0

    def see(self, value: float, *, step: int, plateau: Plateau) -> "PlateauWatch":
        """Return the watch after one more evaluation. A value that is not a number is not an improvement."""
        gain = 0.0 if self.best is None else (value - self.best if plateau.rises else self.best - value)
        if (self.best is None and value == value) or gain > plateau.min_delta:
            return replace(self, best=value, best_step=step, without_better=0)
        return replace(self, without_better=self.without_better + 1)

    def is_over(self, plateau: Plateau) -> bool:
        """Tell whether `patience` evaluations in a row brought nothing better."""
        return self.without_better >= plateau.patience

    def to_dict(self) -> dict[str, Any]:
        """Return the watch as JSON-able values."""
        return asdict(self)


def metric_value(plateau: Plateau, metrics: Mapping[str, Any]) -> float | None:
    """Find the metric among those of one evaluation, with the prefix `eval_` or without.

    None for the evaluation of another data set; `PlanError` when no set has such a metric.
    """
    for name in (plateau.metric, f"eval_{plateau.metric}"):
        if name in metrics:
            return float(metrics[name])
    return None


def require_metric(plateau: Plateau, metrics: Mapping[str, Any]) -> float:
    """Find the metric, or raise `PlanError` that names those there are."""
    value = metric_value(plateau, metrics)
    if value is None:
        raise PlanError(
            f"Plateau(metric={plateau.metric!r}): evaluation logs no such metric. It logs {', '.join(sorted(metrics))}."
        )
    return value
