"""The reported metrics as functions: of the confusion counts, of the scores, and those that the user adds."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.counts import FloatArray, ScoreCounts
from hf_freeze.binary.result import short, sigmoid
from hf_freeze.errors import FreezeError

MetricOfCounts: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray, FloatArray], FloatArray]
"""A function of the arrays (tp, fp, fn, tn), all of one shape, that returns the value at each: larger is better."""

_SMALLEST = 1e-300
_CALIBRATION_BINS = 15


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return part / whole, and 0 where both are 0: scikit-learn's convention for a metric without any row."""
    return part / np.maximum(whole, _SMALLEST)


def f1(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the harmonic mean of precision and recall."""
    return ratio(2.0 * tp, 2.0 * tp + fp + fn)


def precision(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of positive rows among those called positive."""
    return ratio(tp, tp + fp)


def recall(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of the positive rows that are called positive."""
    return ratio(tp, tp + fn)


def specificity(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """Return the share of the negative rows that are called negative."""
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


_AT_THRESHOLD: Mapping[str, MetricOfCounts] = {
    "f1": f1,
    "precision": precision,
    "recall": recall,
    "specificity": specificity,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "mcc": mcc,
}
_OF_SCORES = ("auroc", "average_precision", "brier", "expected_calibration_error")


def metrics_at(threshold: float, counts: ScoreCounts) -> dict[str, float]:
    """Return the confusion counts at a threshold and the metrics that follow from them."""
    candidate = np.array([counts.candidate_at(threshold)])
    table = counts.table(candidate)
    values = {name: float(metric(*table)[0]) for name, metric in _AT_THRESHOLD.items()}
    return values | {name: float(count[0]) for name, count in table._asdict().items()}


def metrics_of_scores(counts: ScoreCounts, *, slope: float = 1.0, intercept: float = 0.0) -> dict[str, float]:
    """Return the metrics of ranking and calibration, which need no threshold; 0 without rows.

    The log-odds of a row are slope * margin + intercept.
    """
    if not len(counts.scores):
        return dict.fromkeys(_OF_SCORES, 0.0)
    probability = sigmoid(slope * counts.scores.astype(np.float64) + intercept)
    pos, neg = counts.tp[:-1] - counts.tp[1:], counts.fp[:-1] - counts.fp[1:]
    return {
        "auroc": counts.auroc(),
        "average_precision": counts.average_precision(),
        **probability_errors(probability, pos, neg),
    }


def probability_errors(probability: FloatArray, pos: FloatArray, neg: FloatArray) -> dict[str, float]:
    """Return how far probabilities are from the labels, given the weight of positives and negatives at each.

    `brier`: mean squared error of the probability (Brier, 1950). `expected_calibration_error`: distance between the
    mean probability of the positive class and the share of positives, over 15 bins of equal width weighted by their
    rows (Guo et al., 2017, for the positive class).
    """
    bins = np.minimum((probability * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    surplus = np.bincount(bins, weights=probability * (pos + neg) - pos, minlength=_CALIBRATION_BINS)
    squared = np.dot(pos, (1.0 - probability) ** 2) + np.dot(neg, probability**2)
    total = (pos + neg).sum()
    return {"brier": float(squared / total), "expected_calibration_error": float(np.abs(surplus).sum() / total)}


def all_zero() -> dict[str, float]:
    """Return every metric of the two functions above as 0, for scores that are NaN."""
    return dict.fromkeys([*_AT_THRESHOLD, *_OF_SCORES, "tp", "fp", "fn", "tn"], 0.0)


def finite(value: float) -> float:
    """Return the value, or 0 when it is NaN, infinite or too large for a float."""
    try:
        return float(value) if math.isfinite(value) else 0.0
    except OverflowError:
        return 0.0


def recall_below_accuracy(*, accuracy: float, recall: float, n_pos: int) -> str | None:
    """Return a warning when a good-looking accuracy hides that most positives are missed."""
    if n_pos == 0 or recall >= 0.5 or accuracy - recall < 0.3:
        return None
    return (
        f"Accuracy {accuracy:.3f} hides a recall of {recall:.3f}: {round((1 - recall) * n_pos)} of {n_pos} positive "
        "rows are missed. Compare runs by average_precision, and choose the objective or a min_recall accordingly."
    )


# Metrics that the user adds: those of the `evaluate` library, and functions.


def check_extra(metrics: Any) -> list[Any]:
    """Return the metrics as a list. Raises `FreezeError` for what cannot be called with predictions and references."""
    if not isinstance(metrics, list | tuple):
        raise FreezeError(f"extra={short(metrics)} must be a list of metrics: extra=[evaluate.load(...)].")
    for metric in metrics:
        compute = getattr(metric, "compute", metric)
        if isinstance(metric, str):
            raise FreezeError(f"extra={short(metrics)} has a name in it. Load the metric: evaluate.load({metric!r}).")
        if not callable(compute) or not _takes_predictions(compute):
            raise FreezeError(
                f"extra={short(metrics)}: {_name(metric)} cannot be called with predictions= and references=. Give "
                "metrics of the evaluate library, or functions of these two that return a dict."
            )
    return list(metrics)


def extra_metrics(
    metrics: Sequence[Any], predicted: NDArray[np.bool_], positive: NDArray[np.bool_], *, taken: Mapping[str, float]
) -> tuple[dict[str, float], list[str]]:
    """Return the values of the metrics, and the names of results that are not single numbers and were left out.

    A metric is an `evaluate` module, or any callable, that takes `predictions=` and `references=` (0 and 1, 1 being the
    positive class) and returns a dict. A name that is `taken` gets the metric's own name in front.
    """
    values: dict[str, float] = {}
    left_out = []
    for metric in metrics:
        for key, value in _computed(metric, predicted.astype(np.int64), positive.astype(np.int64)).items():
            name = str(key) if key not in taken and key not in values else f"{_name(metric)}_{key}"
            number = value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value  # of numpy or torch
            if isinstance(number, int | float):
                values[name] = finite(number)
            else:
                left_out.append(name)
    return values, left_out


def _computed(metric: Any, predictions: NDArray[np.int64], references: NDArray[np.int64]) -> Mapping[str, Any]:
    try:
        computed = getattr(metric, "compute", metric)(predictions=predictions, references=references)
    except Exception as error:
        raise FreezeError(f"The extra metric {_name(metric)} failed: {type(error).__name__}: {error}") from error
    if not isinstance(computed, Mapping) and computed is not None:
        raise FreezeError(f"The extra metric {_name(metric)} returned {short(computed)}, but must return a dict.")
    return computed or {}


def _takes_predictions(compute: Any) -> bool:
    try:
        inspect.signature(compute).bind(predictions=None, references=None)
    except TypeError:
        return False
    except ValueError:  # a function without a signature
        return True
    return True


def _name(metric: Any) -> str:
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__)
