"""A data set whose features may be kept, and what must be known of its rows before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hf_freeze.features.batches import Batch, Source
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.extraction import Forward, by_length
from hf_freeze.features.frontier import Roots
from hf_freeze.features.untouched import random_states_kept, seed_all

SHARED = 2
"""So many rows are in both probes, at their ends."""

_LEAST_ROWS = 8
_CHECKED_ROWS = 8


@dataclass
class FeatureSet:
    """A data set whose features may be kept: rows, how they become inputs, and what is asked of the model.

    `training` is the mode in which the model runs over it, `device` where, `computed_in` the type that autocast takes.
    """

    name: str
    source: Source
    roots: Roots
    forward: Forward
    training: bool
    device: torch.device
    computed_in: torch.dtype | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """The length of each row's longest list, 0 where rows have none."""
        return row_lengths(self.source.dataset)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """All rows, the longest first."""
        return by_length(self.lengths)

    @cached_property
    def probes(self) -> tuple[Batch, Batch]:
        """Two batches that differ in rows and, if any do, in length, and share their last rows.

        Raises `CacheRefused` where rows are random.
        """
        if len(self.source) < _LEAST_ROWS:
            raise CacheRefused(f"{len(self.source)} rows are too few")
        order = self.order.tolist()
        rows = (order[:3] + order[-SHARED:], order[-SHARED - 1 :])
        with random_states_kept():
            seed_all(1)
            probes = self.source.batch(rows[0]), self.source.batch(rows[1])
            seed_all(2)
            again = self.source.batch(rows[0])
        if not _same(probes[0], again):
            raise CacheRefused("its rows change from one reading to the next, as with random augmentation or masking")
        return probes

    def sample(self) -> list[int]:
        """Some rows to check: the longest, the shortest, and random ones."""
        chosen = np.random.default_rng(0).choice(len(self.source), min(_CHECKED_ROWS, len(self.source)), replace=False)
        return [*dict.fromkeys([int(self.order[0]), int(self.order[-1]), *chosen.tolist()])][:_CHECKED_ROWS]


def row_lengths(dataset: Any) -> list[int]:
    """Return the length of each row's longest one-dimensional value, 0 where there is none."""
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):
        rows = dataset.with_format(None)
        columns = [name for name in dataset.column_names if _is_flat(rows[0][name])] if len(rows) else []
        if not columns:
            return [0] * len(rows)
        return [max(map(len, values)) for values in zip(*(rows[name] for name in columns), strict=True)]
    if not len(dataset) or not isinstance(dataset[0], Mapping):
        return [0] * len(dataset)
    columns = [name for name, value in dataset[0].items() if _is_flat(value)]
    return [max((len(row[name]) for name in columns), default=0) for row in _rows(dataset, read=bool(columns))]


def _rows(dataset: Any, *, read: bool) -> Iterator[Mapping[str, Any]]:
    return (dataset[row] if read else {} for row in range(len(dataset)))


def _is_flat(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return not value or isinstance(value[0], int | float)
    return getattr(value, "ndim", None) == 1


def _same(one: Batch, other: Batch) -> bool:
    pairs = [(value, other.tensors.get(name)) for name, value in one.tensors.items()]
    return all(
        isinstance(b, torch.Tensor) and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in pairs
        if isinstance(a, torch.Tensor)
    )
