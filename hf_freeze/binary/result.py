"""The result of tuning: the threshold, how it was found, and every reason to doubt it."""

import json
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hf_freeze.errors import FreezeError
from hf_freeze.main_process import is_main_process
from hf_freeze.whole_files import write_text

_LARGEST_FLOAT32 = 3.4028234663852886e38
_FEW_OF_A_CLASS = 10
_FEW_POSITIVES = 50
_ONE_SIDED_5_PERCENT = 1.645


class ThresholdWarning(UserWarning):
    """A threshold was found, or kept, and there is a reason to doubt it."""


def warn_once_per_run(text: str, *, stacklevel: int = 2) -> None:
    """Warn on the first process only: all processes see the same rows, and would give the same warning."""
    if is_main_process():
        warnings.warn(text, ThresholdWarning, stacklevel=stacklevel + 1)


@dataclass(frozen=True, kw_only=True)
class ThresholdCurve:
    """A few hundred of the candidates, from "predict all" to "predict none", for a plot.

    Four tuples of one length: the lowest score called positive (for the last candidate, a value just above the largest
    score), the true and the false positives there, and the objective's value.
    """

    threshold: tuple[float, ...]
    tp: tuple[float, ...]
    fp: tuple[float, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ThresholdResult:
    """A decision threshold and how it was found: a row is positive if and only if its margin is at least `threshold`.

    `tune_threshold` and `load_threshold` return one. `ThresholdResult(threshold=0.4)` stands for a margin of your own,
    about which nothing else is known.

    Args:
        threshold: The margin, in logit units; float32 precision.
        objective, constraints, value: What was maximised, under which limits, and its value on the rows tuned on. That
            value is optimistic: the same rows chose the threshold.
        oob_value: The value to expect on fresh rows, from re-tuning on half of the rows and judging on the other half.
        interval: 95 % interval of the value on fresh rows.
        threshold_interval: The middle 95 % of the re-tuned thresholds.
        oob_counts: (tp, fp, fn, tn) on fresh rows, scaled to as many rows as were tuned on.
        plateau: Every threshold in (low, high] labels the rows equally well.
        prevalence: The share of positives that the threshold was tuned at: that of the rows, or `at_prevalence`.
        tp, fp, fn, tn, auroc: Of the rows tuned on, at the threshold: numbers of rows, whatever they weigh.
        weighted_counts: (tp, fp, fn, tn) as sums of weights; None where rows had none and no prevalence was asked for.
        n_distinct: Number of different scores among them. n_ignored: number of rows left out, labelled -100 or of
            weight 0.
        slope, intercept: The log-odds of a row are slope * margin + intercept. Not 1 and 0 where they were calibrated
            or shifted to `at_prevalence`; no label depends on them.
        calibrated, calibration: How, if at all, and the Brier score and expected calibration error out of bag, beside
            those of the model's own probability ("..._uncalibrated"). calibration_doubt: what was done instead.
        positive: Id of the label that a row at or above the threshold gets.
        head: "probability" when the model returns probabilities, whose log-odds are the margin.
        status: "ok"; "predict_none", "predict_all", "constant", "anti_correlated" or "low_support" for what is unusual;
            "given" when nothing was tuned.
        message: Every reason to doubt the threshold, in sentences; empty when there is none.
        curve: The candidates, for `plot_threshold`.

    Raises:
        FreezeError: For a threshold that is not a finite number, and any other value that its field cannot have.

    >>> print(ThresholdResult(threshold=0.4))
    threshold 0.4 (probability 0.599); given
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
    prevalence: float | None = None
    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    weighted_counts: tuple[float, float, float, float] | None = None
    auroc: float | None = None
    n_distinct: int = 0
    n_ignored: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    calibrated: Literal["temperature", "platt"] | None = None
    calibration: Mapping[str, float] = field(default_factory=dict)
    calibration_doubt: str = ""
    positive: int = 1
    head: Literal["logits", "probability"] = "logits"
    status: str = "given"
    message: str = ""
    curve: ThresholdCurve | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise `FreezeError` for a value that the field cannot have."""
        for name, (wanted, fits) in _KINDS.items():
            value = getattr(self, name)
            if not fits(value):
                raise FreezeError(f"{name}={short(value)} must be {wanted}.")

    @property
    def probability(self) -> float:
        """The threshold as a probability of the positive class, for display."""
        return float(sigmoid(self.log_odds(float(self.threshold))))

    def log_odds(self, margin: Any) -> Any:
        """Return the log-odds of the positive class at a margin, or at each of an array or tensor."""
        plain = self.slope == 1.0 and self.intercept == 0.0
        return margin if plain else self.slope * margin + self.intercept

    @property
    def n_pos(self) -> int:
        """Number of positive rows tuned on."""
        return self.tp + self.fn

    @property
    def n_neg(self) -> int:
        """Number of negative rows tuned on."""
        return self.fp + self.tn

    @property
    def counts(self) -> tuple[float, float, float, float]:
        """(tp, fp, fn, tn) as `value` was computed from them: sums of weights, if rows had weights."""
        return self.weighted_counts or (self.tp, self.fp, self.fn, self.tn)

    @property
    def confusion_matrix(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Counts by true class (rows) and predicted class (columns), negative first, as in scikit-learn."""
        return (self.tn, self.fp), (self.fn, self.tp)

    @property
    def optimism(self) -> float | None:
        """Part of `value` that is lost on fresh rows: `value - oob_value`."""
        return None if self.value is None or self.oob_value is None else self.value - self.oob_value

    def __str__(self) -> str:
        text = f"threshold {self.threshold:.4g} (probability {self.probability:.3g})"
        if self.value is not None:
            text += f": {self.objective} {self.value:.4f} on the {self.n_pos + self.n_neg} rows tuned on"
        if self.oob_value is not None and self.interval is not None:
            text += f", {self.oob_value:.4f} out of bag [{self.interval[0]:.4f}, {self.interval[1]:.4f}]"
        return f"{text}; {self.status}"

    def to_dict(self) -> dict[str, Any]:
        """Return values for JSON, with the threshold as a probability as well, for human readers."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["constraints"], values["calibration"] = dict(self.constraints), dict(self.calibration)
        values["curve"] = None if self.curve is None else dict(vars(self.curve))
        values["positive"] = int(self.positive)
        return {"threshold": float(values.pop("threshold")), "probability": self.probability, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ThresholdResult":
        """Rebuild a result from `to_dict`, also after a round trip through JSON.

        Raises `FreezeError` for other keys, and for values of another kind than `to_dict` gives.
        """
        if not isinstance(values, Mapping):
            raise FreezeError(f"Not a threshold result: {short(values)}.")
        given = {name: value for name, value in values.items() if name != "probability"}
        unknown = sorted(map(str, set(given) - {f.name for f in fields(cls)}))
        if unknown or "threshold" not in given:
            problem = f"unknown keys {unknown}" if unknown else "no threshold"
            raise FreezeError(f"Not a threshold result: {problem} in {sorted(map(str, values))}.")
        read: dict[str, Any] = {
            name: tuple(v) if name in _TUPLES and isinstance(v, list) else v for name, v in given.items()
        }
        if _is_columns(given.get("curve")):
            read["curve"] = ThresholdCurve(**{name: tuple(column) for name, column in given["curve"].items()})
        return cls(**read)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, one line per field, whole or not at all."""
        lines = [f"  {json.dumps(name)}: {json.dumps(value, default=plain)}" for name, value in self.to_dict().items()]
        write_text(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> "ThresholdResult":
        """Read what `save` wrote. Raises `FreezeError` when the file holds something else."""
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except FreezeError as error:
            raise FreezeError(f"{path}: {error} Was it edited, or written by another version?") from error


def status_of(result: ThresholdResult) -> str:
    """Return the most serious problem of a tuned threshold in one word, or "ok"."""
    if result.n_distinct == 1:
        return "constant"
    if _is_anti_correlated(result):
        return "anti_correlated"
    if result.tp + result.fp == 0:
        return "predict_none"
    if result.fn + result.tn == 0:
        return "predict_all"
    return "low_support" if min(result.n_pos, result.n_neg) < _FEW_OF_A_CLASS else "ok"


def reasons_to_doubt(result: ThresholdResult) -> dict[str, str]:
    """Return every reason to doubt a tuned threshold: a word for the kind, and a sentence."""
    n_rows = result.n_pos + result.n_neg
    found = {}
    if result.n_distinct == 1:
        found["constant"] = (
            f"All {n_rows} scores are the same, so a threshold can only call all rows positive or none. "
            "Is the head trained at all?"
        )
    elif result.n_distinct < 0.01 * n_rows:
        found["coarse_scores"] = (
            f"Only {result.n_distinct} distinct scores in {n_rows} rows: half-precision logits? "
            "A threshold can only lie between them. Evaluate in float32 if the model can."
        )
    if _is_anti_correlated(result):
        found["anti_correlated"] = (
            f"AUROC is {result.auroc:.3f}, below 0.5 by more than chance: is the positive label reversed?"
        )
    if result.calibration_doubt:
        found["calibration"] = result.calibration_doubt
    few_rows = _few_rows(result)
    if few_rows:
        found["low_support" if min(result.n_pos, result.n_neg) < _FEW_OF_A_CLASS else "few_positives"] = few_rows
    return found


def _is_anti_correlated(result: ThresholdResult) -> bool:
    """Test AUROC < 0.5, one-sided at 5 % (Mann and Whitney, 1947): by chance half of untrained models lie below."""
    if result.auroc is None:
        return False
    deviation = math.sqrt((result.n_pos + result.n_neg + 1) / (12 * result.n_pos * result.n_neg))
    return result.auroc < 0.5 - _ONE_SIDED_5_PERCENT * deviation


def _few_rows(result: ThresholdResult) -> str | None:
    n_pos, n_neg = result.n_pos, result.n_neg
    if min(n_pos, n_neg) >= _FEW_OF_A_CLASS and n_pos >= _FEW_POSITIVES:
        return None
    expected = "with no estimate of how optimistic that is"
    if result.oob_value is not None and result.optimism is not None and result.interval is not None:
        expected = (
            f"optimistic by about {max(result.optimism, 0.0):.3f}; expect {result.oob_value:.3f} on fresh rows "
            f"(95 % interval {result.interval[0]:.3f} to {result.interval[1]:.3f})"
        )
    few = f"{n_pos} positive" if n_pos <= n_neg else f"{n_neg} negative"
    rows = "row" if min(n_pos, n_neg) == 1 else "rows"
    return (
        f"The threshold depends on only {few} {rows}: {result.objective} is {result.value:.3f} on the rows tuned on, "
        f"{expected}."
    )


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
    try:
        return is_number(value) and not math.isnan(value)
    except OverflowError:  # an integer beyond any float
        return False


def _are_numbers(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_float, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0


def _are(length: int) -> Any:
    return lambda value: value is None or (_are_numbers(value) and len(value) == length)


def _is_share(value: Any) -> bool:
    return value is None or (is_number(value) and 0.0 <= value <= 1.0)


def _is_columns(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {f.name for f in fields(ThresholdCurve)}


def _is_curve(value: Any) -> bool:
    if value is None:
        return True
    columns = list(vars(value).values()) if isinstance(value, ThresholdCurve) else []
    return all(map(_are_numbers, columns)) and len({len(column) for column in columns}) == 1


def _is_rates(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_float, value.values()))


def plain(number: Any) -> int | float:
    """Return a number of numpy's as one that JSON knows."""
    return int(number) if isinstance(number, numbers.Integral) else float(number)


_TUPLES = ("interval", "threshold_interval", "oob_counts", "plateau", "weighted_counts")
_NUMBER = "a number or None", lambda value: value is None or _is_float(value)
_TEXT = "a string", lambda value: isinstance(value, str)
_PAIR = "two numbers or None", _are(2)
_COUNT = "a count of rows", _is_count
_KINDS: Mapping[str, tuple[str, Any]] = {
    "threshold": ("a finite number", _is_finite),
    "objective": ("a string or None", lambda value: value is None or isinstance(value, str)),
    "constraints": ("rates by name", _is_rates),
    "value": _NUMBER,
    "oob_value": _NUMBER,
    "interval": _PAIR,
    "threshold_interval": _PAIR,
    "oob_counts": ("four numbers or None", _are(4)),
    "plateau": _PAIR,
    "prevalence": ("a share from 0 to 1, or None", _is_share),
    "weighted_counts": ("four numbers or None", _are(4)),
    **dict.fromkeys(("tp", "fp", "fn", "tn", "n_distinct", "n_ignored"), _COUNT),
    "auroc": _NUMBER,
    "slope": ("a number above 0", lambda value: _is_finite(value) and value > 0.0),
    "intercept": ("a finite number", _is_finite),
    "calibrated": ('"temperature", "platt" or None', lambda value: value in (None, "temperature", "platt")),
    "calibration": ("numbers by name", _is_rates),
    "positive": ("0 or 1", lambda value: _is_count(value) and value in (0, 1)),
    "head": ('"logits" or "probability"', lambda value: isinstance(value, str) and value in ("logits", "probability")),
    **dict.fromkeys(("status", "message", "calibration_doubt"), _TEXT),
    "curve": ("four columns of numbers, of one length, or None", _is_curve),
}


def sigmoid(margin: Any) -> Any:
    """Return the probability of the positive class at a margin, or at each of an array, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * margin))
