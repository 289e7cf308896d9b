"""The picture of a threshold. matplotlib (the extra `plots`) is imported when it is drawn."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hf_freeze.binary.result import ThresholdCurve, ThresholdResult
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.figure import CHOSEN, new_figure

_Rates: TypeAlias = dict[str, np.ndarray[Any, Any]]
"""Threshold, precision, recall, false positive rate and objective along the curve."""

_RETUNED = "95 % of re-tunings"
_COLOURS = {"precision": "#0072b2", "recall": "#e69f00", "objective": "#222222"}


def plot_threshold(result: ThresholdResult, path: str | Path | None = None) -> Any:
    """Draw the metrics against the threshold, the ROC curve and the precision-recall curve.

    In all three the chosen point is marked; a band shows the middle 95 % of the re-tuned thresholds, in the curves the
    stretch that they cover.

    Args:
        result: What `tune_threshold` or `load_threshold` returned, with its curve: a threshold that was given, or comes
            from a config alone, has none.
        path: Write the figure there, in the format of its suffix. By default nothing is written.

    Returns:
        The matplotlib figure.

    Raises:
        FreezeError: For anything but a `ThresholdResult`, one without a curve, for a path that no picture can be
            written to, and without matplotlib.
    """
    if not isinstance(result, ThresholdResult):
        raise FreezeError(f"{result!r} is not a ThresholdResult: give what tune_threshold or load_threshold returned.")
    if result.curve is None:
        raise FreezeError(
            "This threshold has no curve to draw: it was given, or read from a config. Plot what tune_threshold "
            "returned, or load the folder that has its decision_threshold.json."
        )
    figure = new_figure("plot_threshold", width=13.5, height=4.2, path=path)
    against_threshold, roc, precision_recall = figure.subplots(1, 3)
    rates = _rates(result, result.curve)
    _draw_against_threshold(against_threshold, result, rates)
    _draw_roc(roc, result, rates)
    _draw_precision_recall(precision_recall, result, rates)
    figure.suptitle(str(result), fontsize=10)
    if path is not None:
        figure.savefig(Path(path))
    return figure


def _rates(result: ThresholdResult, curve: ThresholdCurve) -> _Rates:
    # The curve is thinned: the chosen threshold may lie between two of its candidates that count other rows.
    chosen = np.array([result.threshold, *result.counts[:2], result.value], float)
    candidates = np.array([curve.threshold, curve.tp, curve.fp, curve.value], float)
    place = np.searchsorted(curve.threshold, result.threshold)
    threshold, tp, fp, value = np.insert(candidates, place, chosen, axis=1)
    with np.errstate(invalid="ignore"):  # who predicts none has no precision, and no point in the picture
        precision = tp / (tp + fp)
    n_pos, n_neg = _class_sizes(result)
    return {
        "threshold": threshold,
        "precision": precision,
        "recall": tp / n_pos,
        "fpr": fp / n_neg,
        "objective": value,
    }


def _class_sizes(result: ThresholdResult) -> tuple[float, float]:
    tp, fp, fn, tn = result.counts
    return tp + fn, fp + tn


def _draw_retuned(axes: Any, result: ThresholdResult, rates: _Rates, *, along: tuple[str, str]) -> None:
    """Mark the stretch of a curve that the re-tuned thresholds cover, if there are any."""
    if result.threshold_interval is None:
        return
    low, high = result.threshold_interval
    inside = (rates["threshold"] >= low) & (rates["threshold"] <= high)
    x, y = (rates[name][inside] for name in along)
    axes.plot(x, y, color=CHOSEN, lw=6, alpha=0.3, label=_RETUNED)


def _draw_against_threshold(axes: Any, result: ThresholdResult, rates: _Rates) -> None:
    labels = {"precision": "precision", "recall": "recall", "objective": result.objective or "objective"}
    for name, label in labels.items():
        # A row is positive from the threshold on: up to each candidate, that candidate's figures hold.
        width = 2 if name == "objective" else 1.5
        axes.step(rates["threshold"], rates[name], where="pre", color=_COLOURS[name], lw=width, label=label)
    if result.threshold_interval is not None:
        axes.axvspan(*result.threshold_interval, color=CHOSEN, alpha=0.12, lw=0, label=_RETUNED)
    axes.axvline(result.threshold, color=CHOSEN, lw=1.5, label=f"threshold {result.threshold:.3g}")
    if result.interval is not None and result.oob_value is not None:
        error = [[result.oob_value - result.interval[0]], [result.interval[1] - result.oob_value]]
        axes.errorbar(
            [result.threshold], [result.oob_value], yerr=error, color=CHOSEN, marker="o", capsize=3, label="out of bag"
        )
    axes.set(xlabel="threshold (margin, logits)", title="Figures against the threshold")
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.25)


def _draw_roc(axes: Any, result: ThresholdResult, rates: _Rates) -> None:
    axes.plot(rates["fpr"], rates["recall"], color=_COLOURS["precision"], label=f"AUROC {result.auroc:.3f}")
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", label="chance")
    _draw_retuned(axes, result, rates, along=("fpr", "recall"))
    (tp, fp, *_), (n_pos, n_neg) = result.counts, _class_sizes(result)
    axes.plot([fp / n_neg], [tp / n_pos], "o", color=CHOSEN, label="chosen")
    axes.set(xlabel="false positive rate", ylabel="recall", title="ROC", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.25)


def _draw_precision_recall(axes: Any, result: ThresholdResult, rates: _Rates) -> None:
    axes.plot(rates["recall"], rates["precision"], color=_COLOURS["recall"], label="precision and recall")
    (tp, fp, *_), (n_pos, n_neg) = result.counts, _class_sizes(result)
    share = n_pos / (n_pos + n_neg)
    axes.axhline(share, color="0.6", lw=1, ls="--", label=f"share of positives {share:.3g}")
    _draw_retuned(axes, result, rates, along=("recall", "precision"))
    precision = tp / (tp + fp) if tp + fp else 0.0
    axes.plot([tp / n_pos], [precision], "o", color=CHOSEN, label="chosen")
    axes.set(xlabel="recall", ylabel="precision", title="Precision-recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.25)
