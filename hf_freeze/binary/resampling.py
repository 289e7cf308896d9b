"""Estimate how optimistic a tuned threshold is: tune on one half of the rows, judge on the other, many times.

Each draw splits the rows at random into two halves; the threshold tuned on one is judged on the other, both ways.
Halves drawn without replacement carry the bias and the variance of the full bootstrap (Friedman and Hall, 2007; the
pairing is that of Shah and Samworth, 2013), and they need no sorting and no weights per row: of m rows with one score,
Binomial(m, 1/2) fall into the first half.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.counts import FloatArray, ScoreCounts, Table
from hf_freeze.binary.criterion import Criterion


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
    counts: ScoreCounts, criterion: Criterion, *, kept: NDArray[np.intp], tuned: int, n_boot: int, seed: int
) -> Resamples:
    """Re-tune on `n_boot` random halves, among the candidates `kept`. All rows together chose `tuned`, one of them."""
    rng = np.random.default_rng(seed)
    in_tp, out_tp = _halves(counts.tp[kept], rng, n_boot)
    in_fp, out_fp = _halves(counts.fp[kept], rng, n_boot)
    usable = (in_tp[0] > 0) & (in_fp[0] > 0)
    # Counted twice, half of the rows weigh as much as all of them: Wilson's bounds then mean what they mean there.
    bag = _table(2.0 * in_tp, 2.0 * in_fp)
    value = criterion.value(*bag)
    values_at_tuned = value[np.searchsorted(kept, tuned)].copy()
    value[~criterion.feasible(*bag, confidence=criterion.confidence)] = -np.inf
    best = value.max(axis=0)
    usable &= np.isfinite(best)
    chosen = _middle_of_first_plateau(value, best)
    if usable.sum() < max(1, n_boot / 2):
        return Resamples(np.empty(0), np.empty(0), None)
    judged = [_at(count, chosen)[usable].sum() for count in _table(out_tp, out_fp)]
    scale = (counts.n_pos + counts.n_neg) / max(sum(judged), 1.0)
    tp, fp, fn, tn = (float(count * scale) for count in judged)
    return Resamples(
        thresholds=_margins(counts, kept)[chosen[usable]],
        values=values_at_tuned[usable],
        oob_counts=(tp, fp, fn, tn) if tp + fn > 0 and fp + tn > 0 else None,
    )


def _halves(passed: FloatArray, rng: np.random.Generator, n_boot: int) -> tuple[FloatArray, FloatArray]:
    """Split the rows of one class; return how many of each half pass every candidate, (candidates, n_boot)."""
    rows = (passed[:-1] - passed[1:]).astype(np.int64)
    n_draws = (n_boot + 1) // 2
    # One n per row of the table: the generator prepares its sampler once for each n.
    first = rng.binomial(rows[:, None], 0.5, size=(len(rows), n_draws))
    second = rows[:, None] - first
    drawn = np.zeros((len(passed), 2 * n_draws))
    np.cumsum(np.concatenate([first, second], axis=1)[::-1], axis=0, out=drawn[:-1][::-1])
    left_out = np.roll(drawn, n_draws, axis=1)
    return drawn[:, :n_boot], left_out[:, :n_boot]


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
