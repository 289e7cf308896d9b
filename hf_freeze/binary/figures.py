"""The figures of a binary classifier at a threshold, all finite floats."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary import criterion as at_counts
from hf_freeze.binary.counts import ScoreCounts
from hf_freeze.binary.inference import probabilities

CALIBRATION_BINS = 15
_AT_THRESHOLD = {
    "f1": at_counts.f1,
    "precision": at_counts.precision,
    "recall": at_counts.recall,
    "specificity": at_counts.specificity,
    "accuracy": at_counts.accuracy,
    "balanced_accuracy": at_counts.balanced_accuracy,
    "mcc": at_counts.mcc,
}
_OF_SCORES = ("auroc", "average_precision", "brier", "expected_calibration_error")


def figures_at(threshold: float, counts: ScoreCounts) -> dict[str, float]:
    """Return the confusion counts and the rates that follow from them; a rate of no rows is 0, as in scikit-learn."""
    candidate = np.array([counts.candidate_at(threshold)])
    table = counts.table(candidate)
    figures = {name: float(figure(*table)[0]) for name, figure in _AT_THRESHOLD.items()}
    return figures | {name: float(count[0]) for name, count in table._asdict().items()}


def figures_of_scores(
    margin: NDArray[np.float32], positive: NDArray[np.bool_], counts: ScoreCounts
) -> dict[str, float]:
    """Return what does not depend on a threshold: ranking and calibration; 0 without rows.

    `brier`: mean squared error of the probability (Brier, 1950). `expected_calibration_error`: distance between mean
    probability of the positive class and share of positives, over 15 bins of equal width weighted by their rows
    (Guo et al., 2017, for the positive class).
    """
    if not len(margin):
        return dict.fromkeys(_OF_SCORES, 0.0)
    probability = probabilities(margin).astype(np.float64)
    return {
        "auroc": counts.auroc(),
        "average_precision": counts.average_precision(),
        "brier": float(np.mean((probability - positive) ** 2)),
        "expected_calibration_error": _calibration_error(probability, positive),
    }


def no_figures() -> dict[str, float]:
    """Return every figure as 0: what a model that outputs NaN has to show."""
    return dict.fromkeys([*_AT_THRESHOLD, *_OF_SCORES, "tp", "fp", "fn", "tn"], 0.0)


def finite(value: float) -> float:
    """Return the value, or 0 when it is NaN or infinite."""
    return float(value) if math.isfinite(value) else 0.0


def _calibration_error(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    surplus = np.bincount(bins, weights=probability - positive, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(probability))
