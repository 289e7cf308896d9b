"""A threshold is only right for the share of positives that it was tuned at. Warn where it is applied at another.

The test: the odds differ by a factor of 1.5 or more, and the difference is significant at one in a thousand, by
Fisher's exact test between the rows tuned on and the rows seen, or by the exact binomial test where the share tuned at
was stated (`at_prevalence`) and not observed.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, fisher_exact

from hf_freeze.binary.counts import ScoreCounts
from hf_freeze.binary.result import ThresholdResult

_LEVEL = 0.001
_COUNTED_OF_CALLS = 0.25
"""The part of the rows tuned on that counts as evidence of the calls to expect, because the threshold varies as well.

Simulated with 6 positives among 300 rows tuned on: 1 % of false alarms, 9 % if all rows counted.
"""
_FACTOR = 1.5  # below it F1 at the threshold changes by less than it does from sample to sample


def log_odds_shift(tuned_at: float, share: float) -> float:
    """Return what prior shift adds to the log-odds of every row (Saerens, Latinne and Decaestecker, 2002)."""
    return float(np.log(tuned_at) - np.log1p(-tuned_at) - np.log(share) + np.log1p(-share))


def labels_far_from_tuned(result: ThresholdResult, counts: ScoreCounts, *, one_label: bool = True) -> str | None:
    """Return a warning when the share of positives in the labels is far from the one tuned at.

    The advice to tune at another prevalence is given where there is `one_label`, which alone can be.
    """
    n_rows = counts.n_pos + counts.n_neg
    if result.prevalence is None or not n_rows:
        return None
    share, n_seen = counts.n_pos / n_rows, n_rows
    if counts.squares is not None:
        n_seen = n_rows**2 / float(counts.squares.tp[-1] + counts.squares.fp[-1])  # effective rows (Kish, 1965)
    observed = result.weighted_counts is None
    n_tuned = float(result.n_pos + result.n_neg) or n_seen  # unknown from a config alone: as many as are seen
    if not _is_far(share, n_seen, result.prevalence, n_tuned if observed else None):
        return None
    advice = f" Tune with at_prevalence={share:.3g} if the model will run on rows like these." if one_label else ""
    return (
        f"{_percent(share)} of the {n_rows:.0f} rows are positive, but the threshold was tuned at "
        f"{_percent(result.prevalence)}: it is not the best one here, and the estimates for fresh rows do not "
        f"hold.{advice}"
    )


def calls_far_from_tuned(result: ThresholdResult, margin: NDArray[np.float32], *, one_label: bool = True) -> str | None:
    """Return a warning when the share of rows called positive is far from that of the rows tuned on.

    For rows without labels. Rows whose margin is NaN are left out. `one_label` as in `labels_far_from_tuned`.
    """
    margin = margin[~np.isnan(margin)]
    tp, fp, fn, tn = result.oob_counts or result.counts  # on the rows tuned on, the calls are biased towards them
    if result.prevalence is None or not len(margin) or not (tp + fn and fp + tn):
        return None
    called = float((margin >= np.float32(result.threshold)).mean())
    expected = (tp + fp) / (tp + fp + fn + tn)
    n_tuned: float = result.n_pos + result.n_neg
    if result.weighted_counts is not None:
        n_tuned = min(n_tuned, expected * (1 - expected) / _variance_of_calls(result))
    if not _is_far(called, len(margin), expected, n_tuned * _COUNTED_OF_CALLS):
        return None
    advice = " If not, tune with at_prevalence=." if one_label else ""
    return (
        f"{_percent(called)} of the {len(margin)} rows are called positive, where {_percent(expected)} were expected: "
        f"the threshold was tuned on data in which {_percent(result.prevalence)} were positive. Is the share the same "
        f"here?{advice}"
    )


def _variance_of_calls(result: ThresholdResult) -> float:
    """Return the variance of the weighted share called positive, with a row more of each kind, as zeros vary too."""
    prevalence = result.prevalence or 0.0
    classes = (prevalence, result.tp, result.n_pos), (1.0 - prevalence, result.fp, result.n_neg)
    rates = [(share, (called + 1) / (n_rows + 2), n_rows) for share, called, n_rows in classes]
    return sum(share**2 * rate * (1 - rate) / n_rows for share, rate, n_rows in rates)


def _is_far(share: float, n_rows: float, tuned: float, n_tuned: float | None) -> bool:
    n, k = round(n_rows), round(share * n_rows)
    if n_tuned is None:
        return _odds_differ(share, tuned, 0.5 / n) and bool(binomtest(k, n, tuned).pvalue < _LEVEL)
    m, j = round(n_tuned), round(tuned * n_tuned)
    return _odds_differ(share, tuned, 0.5 / max(n, m)) and bool(fisher_exact([[k, n - k], [j, m - j]])[1] < _LEVEL)


def _odds_differ(one: float, other: float, least: float) -> bool:
    one, other = (min(max(share, least), 1.0 - least) for share in (one, other))
    ratio = one / (1.0 - one) * (1.0 - other) / other
    return max(ratio, 1.0 / ratio) >= _FACTOR


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
