"""Pictures of what was found. matplotlib (the extra `plots`) is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hf_freeze.binary.result import ThresholdCurve, ThresholdResult
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.figure import new_figure

Rates: TypeAlias = dict[str, np.ndarray[Any, Any]]
"""Threshold, precision, recall, false positive rate and objective along the curve."""

_CHOSEN = "#c1272d"
_COLOURS = {"precision": "#0072b2", "recall": "#e69f00", "objective": "#222222"}


def plot_threshold(result: ThresholdResult, path: str | Path | None = None) -> Any:
    """Draw what a threshold trades: figures against the threshold, the ROC curve and the precision-recall curve.

    In all three the chosen point is marked; a band shows the middle 95 % of the re-tuned thresholds, in the curves the
    stretch that they cover. `path` writes the figure there (PNG by its suffix). Returns the matplotlib figure.
    Raises `FreezeError` when the result has no curve (the threshold was given, or comes from a config alone) and when
    matplotlib is missing.
    """
    if result.curve is None:
        raise FreezeError(
            "This threshold has no curve to draw: it was given, or read from a config. Plot what tune_threshold "
            "returned, or load the folder that has its decision_threshold.json."
        )
    figure = new_figure("plot_threshold", width=13.5, height=4.2)
    against_threshold, roc, precision_recall = figure.subplots(1, 3)
    rates = _rates(result, result.curve)
    _draw_against_threshold(against_threshold, result, rates)
    _draw_roc(roc, result, rates)
    _draw_precision_recall(precision_recall, result, rates)
    figure.suptitle(str(result), fontsize=10)
    if path is not None:
        figure.savefig(Path(path))
    return figure


def _rates(result: ThresholdResult, curve: ThresholdCurve) -> Rates:
    tp, fp = np.array(curve.tp, float), np.array(curve.fp, float)
    return {
        "threshold": np.array(curve.threshold),
        "precision": tp / np.maximum(tp + fp, 1.0),
        "recall": tp / result.n_pos,
        "fpr": fp / result.n_neg,
        "objective": np.array(curve.value),
    }


def _retuned(result: ThresholdResult, threshold: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return which of the points lie within the interval of the re-tuned thresholds."""
    if result.threshold_interval is None:
        return np.zeros(len(threshold), bool)
    low, high = result.threshold_interval
    inside: np.ndarray[Any, Any] = (threshold >= low) & (threshold <= high)
    return inside


def _draw_against_threshold(axes: Any, result: ThresholdResult, rates: Rates) -> None:
    some = slice(0, -1)  # the last candidate predicts none: its precision is 0 / 0
    for name in ("precision", "recall"):
        axes.plot(rates["threshold"][some], rates[name][some], color=_COLOURS[name], label=name)
    objective = result.objective or "objective"
    axes.plot(rates["threshold"], rates["objective"], color=_COLOURS["objective"], lw=2, label=objective)
    if result.threshold_interval is not None:
        axes.axvspan(*result.threshold_interval, color=_CHOSEN, alpha=0.12, lw=0, label="95 % of re-tunings")
    axes.axvline(result.threshold, color=_CHOSEN, lw=1.5, label=f"threshold {result.threshold:.3g}")
    if result.interval is not None and result.oob_value is not None:
        error = [[result.oob_value - result.interval[0]], [result.interval[1] - result.oob_value]]
        axes.errorbar(
            [result.threshold], [result.oob_value], yerr=error, color=_CHOSEN, marker="o", capsize=3, label="out of bag"
        )
    axes.set(xlabel="threshold (margin, logits)", title="Figures against the threshold")
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.25)


def _draw_roc(axes: Any, result: ThresholdResult, rates: Rates) -> None:
    axes.plot(rates["fpr"], rates["recall"], color=_COLOURS["precision"], label=f"AUROC {result.auroc:.3f}")
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", label="chance")
    inside = _retuned(result, rates["threshold"])
    axes.plot(rates["fpr"][inside], rates["recall"][inside], color=_CHOSEN, lw=6, alpha=0.3, label="95 % of re-tunings")
    axes.plot([result.fp / result.n_neg], [result.tp / result.n_pos], "o", color=_CHOSEN, label="chosen")
    axes.set(xlabel="false positive rate", ylabel="recall", title="ROC", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)


def _draw_precision_recall(axes: Any, result: ThresholdResult, rates: Rates) -> None:
    some = slice(0, -1)
    axes.plot(rates["recall"][some], rates["precision"][some], color=_COLOURS["recall"], label="precision and recall")
    share = result.n_pos / (result.n_pos + result.n_neg)
    axes.axhline(share, color="0.6", lw=1, ls="--", label=f"share of positives {share:.3g}")
    inside = _retuned(result, rates["threshold"])
    axes.plot(
        rates["recall"][inside], rates["precision"][inside], color=_CHOSEN, lw=6, alpha=0.3, label="95 % of re-tunings"
    )
    precision = result.tp / max(result.tp + result.fp, 1)
    axes.plot([result.tp / result.n_pos], [precision], "o", color=_CHOSEN, label="chosen")
    axes.set(xlabel="recall", ylabel="precision", title="Precision-recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.25)
