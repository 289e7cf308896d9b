"""A data set whose features may be kept, and what must be known of its rows before."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from hf_freeze.features.batches import Batch, Source
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.extraction import CHANGING, Forward, by_length
from hf_freeze.features.frontier import DifferentiableOutputs
from hf_freeze.features.ranks import Ranks
from hf_freeze.features.row_digests import WIDTH, Keys, keys_of

_LEAST_ROWS = 8
_LOOKED_AT = 64
_CHECKED_ROWS = 8
_COMPARED_ROWS = 512
_MOST_READINGS = 8


@dataclass
class FeatureSet:
    """A data set whose features may be kept: rows, how they become inputs, and what is asked of the model.

    `training` is the mode in which the model runs over it, `device` where, `batch_size` how many rows at most at a
    time, `computed_in` the type that autocast takes.
    """

    name: str
    source: Source
    roots: DifferentiableOutputs
    forward: Forward
    training: bool
    device: torch.device
    batch_size: int
    labels: Collection[str] = ("labels",)
    computed_in: torch.dtype | None = None

    @cached_property
    def probes(self) -> tuple[Batch, Batch]:
        """Two batches that differ in rows and, if any do, in length, and share their last `shared` rows.

        Raises `CacheRefused` where they are random.
        """
        if len(self.source) < _LEAST_ROWS:
            raise CacheRefused(f"{len(self.source)} rows are too few")
        if self.batch_size < 2:
            raise CacheRefused("with one row per batch, it cannot be told which dimension runs over rows")
        some = np.linspace(0, len(self.source) - 1, min(_LOOKED_AT, len(self.source))).astype(np.int64)
        lengths = next(self.source.collated([some.tolist()])).lengths
        order = by_length(lengths.sum(axis=0)).tolist()
        fewer, more = order[1 - self.batch_size :][-3:], min(5, self.batch_size)
        # The longest of every input, since inputs of one length in both batches would seem to have but one.
        longest = [row for row in dict.fromkeys([*lengths.argmax(axis=1).tolist(), *order]) if row not in fewer]
        rows = [some[places].tolist() for places in (longest[: more - self.shared] + order[-self.shared :], fewer)]
        self.source.fixed_widths = True
        first, second, again = self.source.batches([*rows, rows[0]])
        one, other = (_digests(batch)[-self.shared :, :2] for batch in (first, second))
        self.source.fixed_widths = np.array_equal(one, other)
        if not np.array_equal(_digests(first)[:, :2], _digests(again)[:, :2]):
            raise CacheRefused(CHANGING)
        return first, second

    @property
    def shared(self) -> int:
        """How many rows, the last ones, the two probes share."""
        return max(min(3, self.batch_size - 1) - 1, 1)

    def sample(self, lengths: npt.NDArray[np.int64]) -> list[int]:
        """Some rows to check: the longest, the shortest, and random ones."""
        count = min(_CHECKED_ROWS, len(self.source), self.batch_size)
        chosen = np.random.default_rng(0).choice(len(self.source), count, replace=False)
        return [*dict.fromkeys([int(lengths.argmax()), int(lengths.argmin()), *chosen.tolist()])][:count]


@dataclass(frozen=True)
class Reading:
    """The digests of all rows, (rows, WIDTH), and in how many of them inputs and labels changed meanwhile."""

    digests: Keys
    changed: int
    changed_labels: int

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of positions of each row that are not padding; 0 where it is not known."""
        return self.digests[:, -1]

    def keys(self, *, with_labels: bool) -> Keys:
        """Return what tells rows apart. Raises `CacheRefused` where some changed."""
        changed = self.changed + (self.changed_labels if with_labels else 0)
        if changed:
            raise CacheRefused(f"{CHANGING} ({changed:,} of {len(self.digests):,} did)")
        return keys_of(self.digests, with_labels=with_labels)


def read_rows(feature_set: FeatureSet, ranks: Ranks) -> Reading:
    """Read all rows, each process its share; small sets several times, so that rare changes are seen."""
    source, rows = feature_set.source, len(feature_set.source)
    chunks = np.array_split(np.arange(rows), -(-rows // feature_set.batch_size))
    times = min(max(_COMPARED_ROWS // rows, 1), _MOST_READINGS)
    found, changed = ranks.together(
        lambda: _read(source, [chunk.tolist() for chunk in chunks[ranks.index :: ranks.count]], times)
    )
    digests = np.empty((rows, WIDTH), np.int64)
    gathered = ranks.gather((found, changed))
    for rank, (part, _) in enumerate(gathered):
        mine = chunks[rank :: ranks.count]
        if mine:
            digests[np.concatenate(mine)] = part
    return Reading(digests, *(int(sum(counts)) for counts in zip(*(counts for _, counts in gathered), strict=True)))


def _read(source: Source, chunks: list[list[int]], times: int) -> tuple[Keys, tuple[int, int]]:
    if not chunks:
        return np.empty((0, WIDTH), np.int64), (0, 0)
    stream = source.collated(chunks * times)
    readings = [np.concatenate([_digests(batch) for batch in islice(stream, len(chunks))]) for _ in range(times)]
    differs = np.any([reading != readings[0] for reading in readings], axis=0)
    return readings[0], (int(differs[:, :2].any(axis=1).sum()), int(differs[:, 2:4].any(axis=1).sum()))


def _digests(batch: Batch) -> Keys:
    if batch.digests is None:
        raise CacheRefused(f"what the model is given, {sorted(batch.tensors)}, cannot be compared from batch to batch")
    return batch.digests
