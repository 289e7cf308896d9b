"""What tuning a threshold found: the threshold, and how far to believe it."""

from __future__ import annotations

import json
import math
import numbers
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hf_freeze.errors import FreezeError
from hf_freeze.whole_files import write_text

_LARGEST_FLOAT32 = 3.4028234663852886e38


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
    head: "probability" when the model gives probabilities, whose log-odds are the margin.
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
    head: Literal["logits", "probability"] = "logits"
    status: str = "given"
    message: str = ""
    curve: ThresholdCurve | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise `FreezeError` for a threshold that cannot be compared with."""
        if not is_number(self.threshold) or not abs(self.threshold) <= _LARGEST_FLOAT32:
            raise FreezeError(f"threshold={short(self.threshold)} is not a finite margin. Give a number.")
        check_class_id(self.positive)
        if self.head not in ("logits", "probability"):
            raise FreezeError(f'head={short(self.head)} is not known. Give "logits" or "probability".')

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
        values["positive"] = int(self.positive)
        return {"threshold": float(values.pop("threshold")), "probability": self.probability, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ThresholdResult:
        """Rebuild a result from `to_dict`, also after a round trip through JSON.

        Raises `FreezeError` for other keys, and for values of another kind than `to_dict` gives.
        """
        if not isinstance(values, Mapping):
            raise FreezeError(f"Not a threshold result: {short(values)}.")
        given = {name: value for name, value in values.items() if name != "probability"}
        unknown = sorted(set(given) - {f.name for f in fields(cls)})
        if unknown or "threshold" not in given:
            problem = f"unknown keys {unknown}" if unknown else "no threshold"
            raise FreezeError(f"Not a threshold result: {problem} in {sorted(values)}.")
        for name, value in given.items():
            wanted, fits = _KINDS[name]
            if not fits(value):
                raise FreezeError(f"Not a threshold result: {name} is {short(value)}, but must be {wanted}.")
        read: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        if given.get("curve") is not None:
            read["curve"] = ThresholdCurve(**{name: tuple(column) for name, column in given["curve"].items()})
        return cls(**read)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, one line per field, whole or not at all."""
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.to_dict().items()]
        write_text(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> ThresholdResult:
        """Read what `save` wrote. Raises `FreezeError` when the file holds something else."""
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except FreezeError as error:
            raise FreezeError(f"{path}: {error} Was it edited, or written by another version?") from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises `FreezeError`, with the file's name, for whatever else it holds."""
    try:
        values = json.loads(Path(path).read_bytes().decode("utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise FreezeError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise FreezeError(f"{path} is not JSON ({error}). Was its writing interrupted?") from error
    if not isinstance(values, dict):
        raise FreezeError(f"{path} holds {short(values)}, not a JSON object.")
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return values


def is_number(value: Any) -> bool:
    """Return whether this is a real number: not a bool, not a text, not an array."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_result(threshold: Any) -> ThresholdResult:
    """Return a result for a bare margin; a result as it is. Raises `FreezeError` for anything else."""
    return threshold if isinstance(threshold, ThresholdResult) else ThresholdResult(threshold=threshold)


def check_class_id(positive: Any) -> None:
    """Raise `FreezeError` unless this is the id of one of two classes."""
    if not (isinstance(positive, numbers.Integral) and positive in (0, 1)):
        raise FreezeError(f"positive={short(positive)} is not the id of one of two classes. Give 0 or 1.")


def short(value: Any) -> str:
    """Return the `repr` of a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_finite(value: Any) -> bool:
    return is_number(value) and abs(value) <= _LARGEST_FLOAT32


def _is_float(value: Any) -> bool:
    return is_number(value) and (abs(value) <= sys.float_info.max or abs(value) == math.inf)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_float, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are(length: int) -> Any:
    return lambda value: value is None or (_are_numbers(value) and len(value) == length)


def _is_curve(value: Any) -> bool:
    if value is None:
        return True
    names = {f.name for f in fields(ThresholdCurve)}
    if not isinstance(value, Mapping) or set(value) != names or not all(map(_are_numbers, value.values())):
        return False
    return len({len(column) for column in value.values()}) == 1


def _is_rates(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_float, value.values()))


_NUMBER = "a number or null", lambda value: value is None or _is_float(value)
_TEXT = "a text", lambda value: isinstance(value, str)
_PAIR = "two numbers or null", _are(2)
_COUNT = "a count of rows", _is_count
_KINDS: Mapping[str, tuple[str, Any]] = {
    "threshold": ("a finite number", _is_finite),
    "objective": ("a text or null", lambda value: value is None or isinstance(value, str)),
    "constraints": ("rates by name", _is_rates),
    "value": _NUMBER,
    "oob_value": _NUMBER,
    "interval": _PAIR,
    "threshold_interval": _PAIR,
    "oob_counts": ("four numbers or null", _are(4)),
    "plateau": _PAIR,
    **dict.fromkeys(("tp", "fp", "fn", "tn", "n_distinct", "n_ignored"), _COUNT),
    "auroc": _NUMBER,
    "positive": ("0 or 1", lambda value: _is_count(value) and value in (0, 1)),
    "head": ('"logits" or "probability"', lambda value: value in ("logits", "probability")),
    "status": _TEXT,
    "message": _TEXT,
    "curve": ("four columns of numbers, of one length, or null", _is_curve),
}


def sigmoid(margin: float) -> float:
    """Return the probability of the positive class at a margin, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * margin))
