"""Estimate how optimistic a tuned threshold is: tune on one half of the rows, judge on the other, many times.

Each draw splits the rows at random into two halves; the threshold tuned on one is judged on the other, both ways.
Halves drawn without replacement carry the bias and the variance of the full bootstrap (Friedman and Hall, 2007; the
pairing is that of Shah and Samworth, 2013), and they need no sorting and no weights per row: of m rows with one score,
Binomial(m, 1/2) fall into the first half.

Rows of weights w at one score bring the first half a weight with mean sum(w) / 2 and variance sum(w^2) / 4. As many
rows of one weight as have both of these are drawn for them: sum(w)^2 / sum(w^2), their effective number (Kish, 1965),
rounded up or down at random so that the variance is met on average. Rows of equal weight are drawn exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.counts import FloatArray, ScoreCounts, Table
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.metric_values import ratio
from hf_freeze.binary.risk_control import RiskControl
from hf_freeze.binary.smoothing import Smoothing


@dataclass(frozen=True, eq=False)
class Resamples:
    """The re-tunings, of those draws that had both classes and an acceptable threshold.

    thresholds: (k,) re-tuned margins. values: (k,) what each half scores at the threshold tuned on all rows.
    oob_counts: (tp, fp, fn, tn) of the re-tuned thresholds on the rows left out, scaled to all rows; None when fewer
    than half of the draws could be tuned.
    """

    thresholds: FloatArray
    values: FloatArray
    oob_counts: tuple[float, float, float, float] | None


def resample(
    counts: ScoreCounts,
    criterion: Criterion,
    *,
    kept: NDArray[np.intp],
    tuned: int,
    control: RiskControl | None = None,
    smoothing: Smoothing | None = None,
    n_boot: int,
    seed: int,
) -> Resamples:
    """Re-tune on `n_boot` random halves, among the candidates `kept`, of which all rows together chose `tuned`.

    `control`: the test of a confidence, whose candidates are among those kept. `smoothing`: of the counts at these.
    """
    rng = np.random.default_rng(seed)
    squares = counts.table_of_squares(kept) or counts.table(kept)
    in_tp, out_tp = halves(counts.tp[kept], squares.tp, rng, n_boot)
    in_fp, out_fp = halves(counts.fp[kept], squares.fp, rng, n_boot)
    usable = (in_tp[0] > 0) & (in_fp[0] > 0)
    # Each row counts twice, so that half of the rows weigh as much as all: a confidence then means the same as there.
    bag = _table(2.0 * in_tp, 2.0 * in_fp)
    value = criterion.value(*bag)
    values_at_tuned = value[np.searchsorted(kept, tuned)].copy()
    if smoothing is not None:
        value = criterion.value(*smoothing.table(bag.tp, bag.fp))
    value[~(criterion.feasible(*bag) if control is None else control.passed(bag, kept))] = -np.inf
    best = value.max(axis=0)
    usable &= np.isfinite(best)
    chosen = _middle_of_first_plateau(value, best)
    if usable.sum() < max(1, n_boot / 2):
        return Resamples(np.empty(0), np.empty(0), None)
    return Resamples(
        thresholds=_margins(counts, kept)[chosen[usable]],
        values=values_at_tuned[usable],
        oob_counts=_scaled_to_all(counts, [_at(count, chosen)[usable] for count in _table(out_tp, out_fp)]),
    )


def _scaled_to_all(counts: ScoreCounts, out_of_bag: Sequence[FloatArray]) -> tuple[float, float, float, float] | None:
    """Add up (tp, fp, fn, tn) of the halves left out, scaled to all rows; None where they lack a class."""
    judged = [count.sum() for count in out_of_bag]
    scale = (counts.n_pos + counts.n_neg) / (sum(judged) or 1.0)
    tp, fp, fn, tn = (float(count * scale) for count in judged)
    return (tp, fp, fn, tn) if tp + fn > 0 and fp + tn > 0 else None


def halves(
    passed: FloatArray, squares: FloatArray, rng: np.random.Generator, n_boot: int
) -> tuple[FloatArray, FloatArray]:
    """Split the rows of one class; return what passes every candidate in each half, (candidates, n_boot)."""
    rows, weight = _rows_of_one_weight(passed[:-1] - passed[1:], squares[:-1] - squares[1:], rng)
    n_draws = (n_boot + 1) // 2
    # One n per row of the table: the generator prepares its sampler once for each n.
    first = rng.binomial(rows[:, None], 0.5, size=(len(rows), n_draws))
    both = np.concatenate([first, rows[:, None] - first], axis=1) * weight[:, None]
    drawn = _from_the_top(both)
    left_out = np.roll(drawn, n_draws, axis=1)
    return drawn[:, :n_boot], left_out[:, :n_boot]


def _rows_of_one_weight(
    total: FloatArray, squares: FloatArray, rng: np.random.Generator
) -> tuple[NDArray[np.int64], FloatArray]:
    """Return the effective number of rows for each sum of weights, and the weight of one of them."""
    effective = np.where((total > 0) & (squares > 0), ratio(total**2, squares), 0.0)
    down = np.floor(effective)
    # The variance goes with 1 / rows, so it is the mean of 1 / rows that has to be 1 / effective.
    share_down = down * (ratio(down + 1.0, effective) - 1.0)
    rows = np.where(rng.random(len(total)) < share_down, down, np.ceil(effective))
    return rows.astype(np.int64), ratio(total, rows)


def _from_the_top(drawn: FloatArray) -> FloatArray:
    passing = np.zeros((len(drawn) + 1, drawn.shape[1]))
    np.cumsum(drawn[::-1], axis=0, out=passing[:-1][::-1])
    return passing


def _table(tp: FloatArray, fp: FloatArray) -> Table:
    return Table(tp, fp, tp[0] - tp, fp[0] - fp)


def _middle_of_first_plateau(value: FloatArray, best: FloatArray) -> NDArray[np.intp]:
    """Return the middle one of the first equally good candidates: those between two drawn scores always are."""
    good = value >= best - 1e-12 * np.abs(np.where(np.isfinite(best), best, 0.0))
    start = good.argmax(axis=0)
    after = ~good & (np.arange(len(good))[:, None] > start)
    end = np.where(after.any(axis=0), after.argmax(axis=0), len(good))
    middle: NDArray[np.intp] = (start + end - 1) // 2
    return middle


def _at(count: FloatArray, candidate: NDArray[np.intp]) -> FloatArray:
    taken: FloatArray = np.take_along_axis(count, candidate[None, :], axis=0)[0]
    return taken


def _margins(counts: ScoreCounts, kept: NDArray[np.intp]) -> FloatArray:
    """Return a finite threshold for each candidate: the middle of its gap."""
    low, high = counts.gaps(kept, kept)
    largest = float(np.finfo(np.float32).max)
    return np.clip((low + high) / 2.0, -largest, largest)  # a gap that ends at an infinite score has no middle
