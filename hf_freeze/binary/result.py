"""What tuning a threshold found: the threshold, and how far to believe it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_freeze.errors import FreezeError


@dataclass(frozen=True, kw_only=True)
class ThresholdCurve:
    """Candidates from "predict all" to "predict none", thinned to a few hundred: what a plot needs.

    Four tuples of one length: the lowest score let through (for the last, just above the largest), the true and false
    positives there, and the objective's value.
    """

    threshold: tuple[float, ...]
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ThresholdResult:
    """A decision threshold, and how it was found: a row is positive if and only if its margin is at least `threshold`.

    threshold: float32 margin, in logit units. Given alone (`ThresholdResult(threshold=0.4)`) nothing else is known.
    objective, constraints, value: what was maximised, and its value on the rows it was tuned on (optimistic).
    oob_value: the value to expect on fresh rows, from re-tunings on half of the rows judged on the other half.
    interval: 95 % interval of the value on fresh rows. threshold_interval: the middle 95 % of the re-tuned thresholds.
    oob_counts: (tp, fp, fn, tn) on fresh rows, scaled to as many rows as were tuned on.
    plateau: all thresholds in (low, high] label the rows equally well.
    tp, fp, fn, tn, auroc, n_distinct, n_ignored: of the rows tuned on; n_distinct counts different scores.
    positive: id of the label that a row at or above the threshold gets.
    status: "ok", or what is peculiar: "predict_none", "predict_all", "constant", "anti_correlated", "low_support";
    "given" when it was not tuned. message: the same in sentences, empty when there is nothing to say.
    """

    threshold: float
    objective: str | None = None
    constraints: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    oob_value: float | None = None
    interval: tuple[float, float] | None = None
    threshold_interval: tuple[float, float] | None = None
    oob_counts: tuple[float, float, float, float] | None = None
    plateau: tuple[float, float] | None = None
    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    auroc: float | None = None
    n_distinct: int = 0
    n_ignored: int = 0
    positive: int = 1
    status: str = "given"
    message: str = ""
    curve: ThresholdCurve | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise `FreezeError` for a threshold that cannot be compared with."""
        if not math.isfinite(self.threshold):
            raise FreezeError(f"threshold={self.threshold!r} is not a finite margin.")
        if self.positive not in (0, 1):
            raise FreezeError(f"positive={self.positive!r} is not the id of one of two classes. Give 0 or 1.")

    @property
    def probability(self) -> float:
        """The threshold as a probability of the positive class, for display."""
        return sigmoid(self.threshold)

    @property
    def n_pos(self) -> int:
        """Number of positive rows tuned on."""
        return self.tp + self.fn

    @property
    def n_neg(self) -> int:
        """Number of negative rows tuned on."""
        return self.fp + self.tn

    @property
    def confusion_matrix(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows are the true class, columns the predicted one, negative first, as in scikit-learn."""
        return (self.tn, self.fp), (self.fn, self.tp)

    @property
    def optimism(self) -> float | None:
        """How much of `value` will not be there on fresh rows."""
        return None if self.value is None or self.oob_value is None else self.value - self.oob_value

    def __str__(self) -> str:
        text = f"threshold {self.threshold:.4g} (probability {self.probability:.3g})"
        if self.value is not None:
            text += f": {self.objective} {self.value:.4f} on the {self.n_pos + self.n_neg} rows tuned on"
        if self.oob_value is not None and self.interval is not None:
            text += f", {self.oob_value:.4f} out of bag [{self.interval[0]:.4f}, {self.interval[1]:.4f}]"
        return f"{text}; {self.status}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, the probability included for whoever reads the file."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["constraints"] = dict(self.constraints)
        values["curve"] = None if self.curve is None else dict(vars(self.curve))
        return {"threshold": values.pop("threshold"), "probability": self.probability, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ThresholdResult:
        """Rebuild a result from `to_dict`, also after a round trip through JSON. Raises `FreezeError` on other keys."""
        given = {name: value for name, value in values.items() if name != "probability"}
        unknown = sorted(set(given) - {f.name for f in fields(cls)})
        if unknown or "threshold" not in given:
            problem = f"unknown keys {unknown}" if unknown else "no threshold"
            raise FreezeError(f"Not a threshold result: {problem} in {sorted(values)}.")
        tuples: dict[str, Any] = {name: _tuple_if_list(value) for name, value in given.items()}
        if given.get("curve") is not None:
            tuples["curve"] = ThresholdCurve(**{name: tuple(column) for name, column in given["curve"].items()})
        return cls(**tuples)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, one line per field."""
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_dict().items()]
        Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ThresholdResult:
        """Read what `save` wrote. Raises `FreezeError` when the file holds something else."""
        text = Path(path).read_text(encoding="utf-8")
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise FreezeError(f"{path} is not JSON ({error}). Was its writing interrupted?") from error
        if not isinstance(values, dict):
            raise FreezeError(f"{path} holds a {type(values).__name__}, not a threshold result.")
        return cls.from_dict(values)


def _tuple_if_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def sigmoid(margin: float) -> float:
    """Return the probability of the positive class at a margin, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * margin))
