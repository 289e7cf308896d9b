"""Limits that hold with a given confidence, although the threshold was chosen by looking at the same rows.

Learn then test (Angelopoulos, Bates, Candès, Jordan and Lei, 2021, arXiv 2110.01052; MAPIE has it as
`BinaryClassificationController`): candidates are tested, the chance that any of them passes wrongly is at most
1 - confidence, and so any that passes may be chosen. The tests are exact binomial ones.

Candidates are those that call 1, 2, 3, ... rows positive, from 50 on in steps of 2 %: a choice made without the labels.

Recall and the false positive rate only fall as the threshold rises, so all candidates that break the limit lie on one
side. Tested one after the other from the other side, until one fails, each is tested at the full level.

Precision is tested from the highest threshold downwards. A sequence that ends at its first failure would end at the
first false positive among the top rows, so there are several starts, each with a share of the level, and what a passed
test had passes on to the next (the fallback procedure: Wiens, 2003). Where the true precision rises with the threshold,
the level is exact.

Several constraints share the level equally (Bonferroni).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from hf_freeze.binary.counts import FloatArray, ScoreCounts, Table
from hf_freeze.binary.criterion import Criterion
from hf_freeze.errors import FreezeError

_STEP = 1.02  # finer steps would gain under 1 % of recall
_FIRST_START = 0.8  # of the level; the rest is for starts at twice as many rows, four times as many, and so on


def refuse_row_weights(criterion: Criterion) -> None:
    """Raise `FreezeError` when the constraints have a confidence: the tests take rows that were drawn alike."""
    if criterion.confidence is not None:
        raise FreezeError(
            "confidence= assumes that all rows were drawn in the same way, and sample_weight= says that they were "
            "not. Leave one of them out; at_prevalence= can be combined with confidence=."
        )


@dataclass(frozen=True, eq=False)
class RiskControl:
    """The tests of one search.

    Args:
        criterion: The constraints as limits on numbers of rows, whatever the classes weigh.
        of_pos, of_neg: The weight of a positive and of a negative row.
        tested: The candidates to test, ascending.
    """

    criterion: Criterion
    of_pos: float
    of_neg: float
    tested: NDArray[np.intp]

    @classmethod
    def of(cls, counts: ScoreCounts, criterion: Criterion) -> "RiskControl":
        """Return the tests for these rows, whose weights are those of their class.

        A limit on the weighted precision is one on the unweighted precision. As the weights fix the share of positives,
        a precision varies no more than it does where that share is left to chance, and the test stays on the safe side.
        """
        rows = counts.rows
        of_pos, of_neg = counts.n_pos / float(rows.tp[0]), counts.n_neg / float(rows.fp[0])
        limit = criterion.min_precision
        if limit is not None:
            limit = limit * of_neg / (limit * of_neg + (1.0 - limit) * of_pos)
        of_rows = replace(criterion, min_precision=limit)
        return cls(of_rows, of_pos, of_neg, _tested(rows.tp + rows.fp, _rows_needed(of_rows)))

    def passed(self, table: Table, candidates: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Return which candidates pass, along the first axis: those of the search, or the `candidates` of them."""
        tested = self.tested if candidates is None else np.searchsorted(candidates, self.tested)
        tp, fp, fn, tn = (
            np.rint(count[tested] / weight)
            for count, weight in zip(table, (self.of_pos, self.of_neg, self.of_pos, self.of_neg), strict=True)
        )
        passed = np.zeros(table.tp.shape, dtype=bool)
        passed[tested] = _shown(self.criterion, Table(tp, fp, fn, tn))
        return passed

    def how_to_show_more(self) -> str:
        """Say why limits that are kept on these rows are not shown to be kept on fresh ones."""
        fewest = _rows_needed(self.criterion)
        if fewest == math.inf:
            return "No number of rows can show that precision is 1 on fresh rows."
        takes = (
            f" To show a precision, {fewest:g} rows must be called positive without an error, or more with some errors."
        )
        narrow = "The observed rates keep it, but too narrowly to show the same for fresh rows."
        return narrow + (takes if self.criterion.min_precision else "")


def _tested(called: NDArray[np.intp], fewest: float) -> NDArray[np.intp]:
    n_rows = int(called[0])
    if fewest > n_rows:
        return np.empty(0, dtype=np.intp)
    sizes = np.ceil(fewest * _STEP ** np.arange(math.log(n_rows / fewest, _STEP)))
    # The last candidate that calls at least so many: tied scores allow no fewer.
    return np.unique(len(called) - 1 - np.searchsorted(called[::-1], np.append(sizes, n_rows)))


def _shown(criterion: Criterion, table: Table) -> NDArray[np.bool_]:
    tp, fp, fn, tn = table
    passed = np.ones(tp.shape, dtype=bool)
    level = _level(criterion)
    if criterion.min_recall is not None:
        passed &= _p_value(tp, tp + fn, criterion.min_recall) <= level
    if criterion.max_fpr is not None:
        passed &= _p_value(tn, tn + fp, 1.0 - criterion.max_fpr) <= level
    if criterion.min_precision:
        called = tp + fp
        at_hand = level * _share(called / _rows_needed(criterion))
        passed &= _passed_downwards(_p_value(tp, called, criterion.min_precision), at_hand)
    return passed


def _rows_needed(criterion: Criterion) -> float:
    limit = criterion.min_precision
    if not limit:
        return 1.0
    if limit == 1.0:
        return math.inf
    return max(1.0, math.ceil(math.log(_FIRST_START * _level(criterion)) / math.log(limit)))


def _level(criterion: Criterion) -> float:
    return (1.0 - (criterion.confidence or 0.0)) / len(criterion.constraints)


def _share(size: FloatArray) -> FloatArray:
    """Return the share of the level whose start was reached, at so many times the rows of the first start."""
    doublings = np.floor(np.log2(np.maximum(size, 0.5)))
    later = (1.0 - _FIRST_START) * np.maximum(doublings, 0.0) / max(doublings.max(initial=1.0), 1.0)
    return np.where(doublings >= 0.0, _FIRST_START + later, 0.0)


def _passed_downwards(p_value: FloatArray, at_hand: FloatArray) -> NDArray[np.bool_]:
    """Test from the last candidate to the first. `at_hand`: the level given out so far; a failure loses all of it."""
    passed = np.zeros(p_value.shape, dtype=bool)
    lost = np.zeros(p_value.shape[1:])
    for candidate in range(len(p_value) - 1, -1, -1):
        passed[candidate] = (at_hand[candidate] > lost) & (p_value[candidate] <= at_hand[candidate] - lost)
        lost = np.where(passed[candidate], lost, at_hand[candidate])
    return passed


def _p_value(successes: FloatArray, trials: FloatArray, limit: float) -> FloatArray:
    """Return the chance of as many successes at a rate of `limit`; 0 where any rate keeps it."""
    if limit <= 0.0:
        return np.zeros(successes.shape)
    least = np.maximum(successes, 1.0)
    return np.where(successes > 0.0, betainc(least, np.maximum(trials - least, 0.0) + 1.0, limit), 1.0)
