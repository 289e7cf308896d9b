"""The threshold search as its definition reads: try every candidate, count every row. Slow and plain on purpose."""

import numpy as np
from sklearn import metrics as sk


def candidates(scores):
    """Finite thresholds that split the scores in every way that a finite threshold can."""
    largest = np.finfo(np.float32).max
    finite = scores.astype(np.float32)[np.isfinite(scores)]
    with np.errstate(over="ignore"):
        above = np.nextafter(finite, np.float32(np.inf))
    return [*finite.tolist(), *above[np.isfinite(above)].tolist(), 0.0, float(-largest), float(largest)]


def confusion(scores, labels, threshold):
    predicted = scores.astype(np.float32) >= np.float32(threshold)
    tp = int((predicted & labels).sum())
    fp = int((predicted & ~labels).sum())
    return tp, fp, int(labels.sum()) - tp, int((~labels).sum()) - fp


def value(objective, scores, labels, threshold):
    """The objective by scikit-learn, at one threshold."""
    predicted = scores.astype(np.float32) >= np.float32(threshold)
    tp, fp, fn, tn = confusion(scores, labels, threshold)
    return {
        "f1": lambda: sk.f1_score(labels, predicted, zero_division=0),
        "fbeta": lambda: sk.fbeta_score(labels, predicted, beta=2, zero_division=0),
        "mcc": lambda: sk.matthews_corrcoef(labels, predicted),
        "balanced_accuracy": lambda: sk.balanced_accuracy_score(labels, predicted),
        "youden": lambda: sk.balanced_accuracy_score(labels, predicted, adjusted=True),
        "accuracy": lambda: sk.accuracy_score(labels, predicted),
        "cost": lambda: -(fp + 3 * fn) / len(labels),
        "precision": lambda: sk.precision_score(labels, predicted, zero_division=0),
        "recall": lambda: sk.recall_score(labels, predicted),
        "custom": lambda: tp - 0.5 * fp - 0.1 * fn + 0.01 * tn,
    }[objective]()
