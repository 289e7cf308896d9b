"""True and false positives at every threshold worth trying, from one sort.

All thresholds between two neighbouring distinct scores label the rows alike, so they are one candidate. With m distinct
scores there are m + 1 candidates: "from this score on", m times, and "predict none".
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]


class Table(NamedTuple):
    """The four confusion counts, as arrays of one shape."""

    tp: FloatArray
    fp: FloatArray
    fn: FloatArray
    tn: FloatArray


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """The confusion counts of all candidates.

    `scores` (m,) float32: the distinct scores, ascending. `tp` and `fp` (m + 1,): positives and negatives with a score
    of at least `scores[i]`; the last entry is "predict none" and zero, the first is "predict all".
    """

    scores: NDArray[np.float32]
    tp: FloatArray
    fp: FloatArray

    @property
    def n_pos(self) -> float:
        """Number of positive rows."""
        return float(self.tp[0])

    @property
    def n_neg(self) -> float:
        """Number of negative rows."""
        return float(self.fp[0])

    def table(self, candidates: slice | int | NDArray[np.intp]) -> Table:
        """Return the confusion counts at some of the candidates."""
        tp, fp = self.tp[candidates], self.fp[candidates]
        return Table(tp, fp, self.n_pos - tp, self.n_neg - fp)

    def auroc(self) -> float:
        """Return the area under the ROC curve, ties counted half; 0.0 when a class is missing."""
        pairs = self.n_pos * self.n_neg
        midpoint = self.tp[:-1] + self.tp[1:]
        return float(np.dot(midpoint, self.fp[:-1] - self.fp[1:]) / (2.0 * pairs)) if pairs else 0.0

    def average_precision(self) -> float:
        """Return the step-wise area under the precision-recall curve; 0.0 without positives."""
        if not self.n_pos:
            return 0.0
        precision = self.tp[:-1] / (self.tp[:-1] + self.fp[:-1])
        return float(np.dot(precision, self.tp[:-1] - self.tp[1:]) / self.n_pos)

    def candidate_at(self, threshold: float) -> int:
        """Return the candidate that labels the rows as `threshold` does."""
        return int(np.searchsorted(self.scores, np.float32(threshold), side="left"))

    def gaps(self, first: NDArray[np.intp] | int, last: NDArray[np.intp] | int) -> tuple[FloatArray, FloatArray]:
        """Return the thresholds (low, high] of the candidates from `first` to `last`; `high` is a float32.

        "Predict all" begins just below the smallest score and "predict none" ends just above the largest; a gap that
        reaches to an infinite score shrinks to its finite side. An end stays infinite where no finite float32 is left.
        """
        smallest, largest = self.scores[0], self.scores[-1]
        below = 0.0 if smallest == np.inf else np.nextafter(np.float64(smallest), -np.inf)
        with np.errstate(over="ignore"):  # above the largest float is infinity, and that is the answer
            edges = np.concatenate([[below], self.scores, [np.nextafter(largest, np.float32(np.inf))]])
            low, high = edges[first], edges[last + 1]
            high = np.where((low == -np.inf) & (high == np.inf), 0.0, high)
            low = np.where(low == -np.inf, np.nextafter(high, -np.inf), low)
            just_above = np.nextafter(low.astype(np.float32), np.float32(np.inf))
        return low, np.where(high == np.inf, just_above, high)

    def reachable(self) -> NDArray[np.bool_]:
        """Return which candidates have a finite threshold: where scores are infinite, the outermost have none."""
        outermost = np.array([0, len(self.scores) - 1, len(self.scores)])
        reachable = np.ones(len(self.tp), dtype=bool)
        low, high = self.gaps(outermost, outermost)
        reachable[outermost] = np.isfinite(low) & np.isfinite(high)
        return reachable

    def thinned(self, size: int, *, keep: int) -> NDArray[np.intp]:
        """Return about `size` candidates at most, evenly spread over the rows of both classes, `keep` among them.

        Each class has half of the weight, so fewer than size / 2 positives all keep a candidate of their own.
        """
        last = len(self.scores)
        if last < size:
            return np.arange(last + 1)
        passed = -(self.tp / self.n_pos + self.fp / self.n_neg)
        evenly = np.searchsorted(passed, np.linspace(-2.0, 0.0, size))
        return np.unique(np.concatenate([evenly, [0, keep, last]]).clip(0, last))


def count_scores(margin: NDArray[np.float32], positive: NDArray[np.bool_]) -> ScoreCounts:
    """Count the rows at every distinct score. `margin` (n,) has no NaN; `positive` (n,) is bool.

    Score and label are packed into one integer, because sorting integers is several times cheaper than an argsort of
    the scores and a gather of the labels.
    """
    packed = _ordered_bits(margin + np.float32(0.0)).astype(np.int64)  # + 0.0 makes one score of -0.0 and 0.0
    packed <<= 1
    packed |= positive
    packed.sort()
    positives_up_to = np.cumsum((packed & 1).astype(np.int8), dtype=np.int32)
    packed >>= 1
    is_first = np.ones(len(packed), dtype=bool)
    np.not_equal(packed[1:], packed[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    scores = _ordered_bits(packed[first].astype(np.int32).view(np.float32)).view(np.float32)
    tp, fp = np.zeros((2, len(first) + 1))
    if len(first):
        tp[0] = n_pos = positives_up_to[-1]
        np.subtract(n_pos, positives_up_to[first[1:] - 1], out=tp[1:-1])
        np.subtract(len(packed), first, out=fp[:-1])
        fp[:-1] -= tp[:-1]
    return ScoreCounts(scores=scores, tp=tp, fp=fp)


def _ordered_bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Map float32 to integers of the same order; applied twice, it is the identity on the bits."""
    bits: NDArray[np.int32] = values.view(np.int32)
    ordered: NDArray[np.int32] = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return ordered
