"""The rows of one evaluation, reduced to what the figures need: a margin and a class each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.margin import (
    Head,
    ValueRange,
    as_numpy,
    binary_labels,
    read_margin,
    refuse_probabilities,
)
from hf_freeze.errors import FreezeError


@dataclass(frozen=True, eq=False)
class EvaluatedRows:
    """`margin` (n,) float32 and `positive` (n,) bool of the rows that count; `n_ignored` others were labelled -100.

    `ranges`: where the values lay that the margins were made from, batch by batch.
    """

    margin: NDArray[np.float32]
    positive: NDArray[np.bool_]
    n_ignored: int
    ranges: tuple[ValueRange, ...]

    @property
    def n_nan(self) -> int:
        """Number of rows whose margin is NaN."""
        return int(np.isnan(self.margin).sum())

    @property
    def n_pos(self) -> int:
        """Number of positive rows."""
        return int(self.positive.sum())

    @property
    def n_neg(self) -> int:
        """Number of negative rows."""
        return len(self.positive) - self.n_pos


def read_rows(
    logits: Any, labels: Any, *, positive: int = 1, head: Head = "auto", label2id: Mapping[str, int] | None = None
) -> EvaluatedRows:
    """Reduce a model's outputs and their labels, in any form that `binary_margin` and `binary_labels` read.

    With head="auto" they are taken for logits; `judged` looks whether they can be.
    """
    read, seen = read_margin(logits, positive=positive, head=head)
    margin = as_numpy(read)
    is_positive, counted = binary_labels(labels, positive=positive, label2id=label2id)
    if len(margin) != len(is_positive):
        raise FreezeError(f"{len(margin)} scores and {len(is_positive)} labels do not belong together.")
    n_ignored = len(counted) - int(counted.sum())
    if n_ignored:
        margin, is_positive = margin[counted], is_positive[counted]
    return EvaluatedRows(margin, is_positive, n_ignored, (seen,))


def join_rows(batches: Sequence[EvaluatedRows]) -> EvaluatedRows:
    """Put batches together, in order."""
    return EvaluatedRows(
        np.concatenate([batch.margin for batch in batches]),
        np.concatenate([batch.positive for batch in batches]),
        sum(batch.n_ignored for batch in batches),
        tuple(seen for batch in batches for seen in batch.ranges),
    )


def judged(rows: EvaluatedRows, head: Head) -> EvaluatedRows:
    """Return the rows. Raises `FreezeError` when head="auto" and they were made from what are plainly probabilities."""
    if head == "auto":
        refuse_probabilities(rows.ranges)
    return rows
