"""True and false positives at every threshold worth trying, from one sort.

All thresholds between two neighbouring distinct scores label the rows alike, so they are one candidate. With m distinct
scores there are m + 1 candidates: "from this score on", m times, and "predict none".

Rows may have weights, as those of a sample that is not drawn as the data will be; a share of positives is one weight
per class. The counts are then sums of weights, and the number of rows and the sums of squared weights behind each stay
known: they determine how much a sum of weights may vary by chance.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]


class Table(NamedTuple):
    """The four confusion counts, as arrays of one shape."""

    tp: FloatArray
    fp: FloatArray
    fn: FloatArray
    tn: FloatArray


class Passing(NamedTuple):
    """What passes each candidate, by class."""

    tp: NDArray[Any]
    fp: NDArray[Any]

    def table(self, candidates: slice | int | NDArray[np.intp]) -> Table:
        """Return the confusion counts at some of the candidates."""
        tp, fp = self.tp[candidates], self.fp[candidates]
        return Table(tp, fp, self.tp[0] - tp, self.fp[0] - fp)


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """The confusion counts of all candidates.

    `scores` (m,) float32: the distinct scores, ascending. `tp` and `fp` (m + 1,): positives and negatives with a score
    of at least `scores[i]`; the last entry is "predict none" and zero, the first is "predict all". Where rows have
    weights these are sums of weights. `weighted_rows` has the numbers of rows then, and `squares` the sums of the
    squared weights of the first 0, 1, 2, ... rows of a class, from the largest score on.
    """

    scores: NDArray[np.float32]
    tp: FloatArray
    fp: FloatArray
    weighted_rows: Passing | None = None
    squares: Passing | None = None

    @property
    def n_pos(self) -> float:
        """Number of positive rows, or the sum of their weights."""
        return float(self.tp[0])

    @property
    def n_neg(self) -> float:
        """Number of negative rows, or the sum of their weights."""
        return float(self.fp[0])

    @property
    def rows(self) -> Passing:
        """The numbers of rows, whatever they weigh."""
        return self.weighted_rows or Passing(self.tp.astype(np.intp), self.fp.astype(np.intp))

    def table(self, candidates: slice | int | NDArray[np.intp]) -> Table:
        """Return the confusion counts at some of the candidates."""
        return Passing(self.tp, self.fp).table(candidates)

    def table_of_squares(self, candidates: slice | int | NDArray[np.intp]) -> Table | None:
        """Return the sums of squared weights behind `table`; None where rows have no weights."""
        if self.squares is None:
            return None
        table = self.rows.table(candidates)
        tp, fp = self.squares.tp[table.tp], self.squares.fp[table.fp]
        return Table(tp, fp, self.squares.tp[-1] - tp, self.squares.fp[-1] - fp)

    def at_prevalence(self, prevalence: float | None) -> "ScoreCounts":
        """Weight the classes so that positives make up this share; None, or a class that is missing, changes nothing.

        The sum of all weights stays what it was.
        """
        if prevalence is None or not self.n_pos or not self.n_neg:
            return self
        total = self.n_pos + self.n_neg
        of_pos, of_neg = prevalence * (total / self.n_pos), (1.0 - prevalence) * (total / self.n_neg)
        squares = self.squares or Passing(np.arange(self.n_pos + 1), np.arange(self.n_neg + 1))
        return ScoreCounts(
            scores=self.scores,
            tp=self.tp * of_pos,
            fp=self.fp * of_neg,
            weighted_rows=self.rows,
            squares=Passing(squares.tp * of_pos**2, squares.fp * of_neg**2),
        )

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


def count_scores(
    margin: NDArray[np.float32], positive: NDArray[np.bool_], weight: FloatArray | None = None
) -> ScoreCounts:
    """Count the rows at every distinct score, or add up their weights.

    Score and label are packed into one integer, because sorting integers is several times cheaper than an argsort of
    the scores and a gather of the labels. With weights, score and place are.

    Args:
        margin: (n,), without NaN.
        positive: (n,)
        weight: (n,), above 0.
    """
    packed = _ordered_bits(margin + np.float32(0.0)).astype(np.int64)  # + 0.0 makes one score of -0.0 and 0.0
    if weight is not None:
        return _count_weighted(packed, positive, weight)
    packed <<= 1
    packed |= positive
    packed.sort()
    positives_up_to = np.cumsum((packed & 1).astype(np.int8), dtype=np.int32)
    packed >>= 1
    scores, first = _distinct(packed)
    tp, fp = np.zeros((2, len(first) + 1))
    if len(first):
        tp[0] = n_pos = positives_up_to[-1]
        np.subtract(n_pos, positives_up_to[first[1:] - 1], out=tp[1:-1])
        np.subtract(len(packed), first, out=fp[:-1])
        fp[:-1] -= tp[:-1]
    return ScoreCounts(scores=scores, tp=tp, fp=fp)


def _count_weighted(bits: NDArray[np.int64], positive: NDArray[np.bool_], weight: FloatArray) -> ScoreCounts:
    packed = bits << 1
    packed |= positive
    packed <<= 31
    packed |= np.arange(len(bits))
    packed.sort()
    packed = packed[::-1]  # from the top, or the few rows there would drown in the rounding of all others
    weight = weight[packed & 0x7FFFFFFF]
    packed >>= 31
    positive = (packed & 1).astype(bool)
    packed >>= 1
    scores, first = _distinct(packed[::-1])
    sums = [_running(weight[rows]) for rows in (positive, ~positive)]
    squares = [_running(weight[rows] ** 2) for rows in (positive, ~positive)]
    n_passing = np.append(len(bits) - first, 0)
    n_pos = np.concatenate([[0], np.cumsum(positive, dtype=np.int32)])[n_passing]
    rows = Passing(n_pos, n_passing - n_pos)
    return ScoreCounts(
        scores=scores,
        tp=sums[0][rows.tp],
        fp=sums[1][rows.fp],
        weighted_rows=rows,
        squares=Passing(*squares),
    )


def _running(values: FloatArray) -> FloatArray:
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def _distinct(bits: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Return the distinct scores of sorted ones, and the place of the first row of each."""
    is_first = np.ones(len(bits), dtype=bool)
    np.not_equal(bits[1:], bits[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    return _ordered_bits(bits[first].astype(np.int32).view(np.float32)).view(np.float32), first


def _ordered_bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Map float32 to integers of the same order; applied twice, it is the identity on the bits."""
    bits: NDArray[np.int32] = values.view(np.int32)
    ordered: NDArray[np.int32] = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return ordered
