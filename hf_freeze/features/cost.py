"""What features cost and what they save: seconds that are measured, bytes, and whether it is worth it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_freeze.features.answers import Frontier
from hf_freeze.features.calls import Call, intercepted
from hf_freeze.features.sets import FeatureSet, Reading
from hf_freeze.features.shapes import elements

_TIMED_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One data set in one stage: `passes` over its `rows`, each `row_seconds`, or `cached_row_seconds` with features.

    >>> estimate = Estimate(rows=1000, passes=5, row_seconds=0.007, cached_row_seconds=0.0005, size=1_536_000)
    >>> round(net_gain([estimate]), 1), round(estimate.saved_seconds, 1)
    (25.5, 32.5)
    """

    rows: int
    passes: float
    row_seconds: float
    cached_row_seconds: float
    size: int
    stored: bool = False

    @property
    def saved_seconds(self) -> float:
        """Seconds that the passes save."""
        return self.rows * self.passes * max(self.row_seconds - self.cached_row_seconds, 0.0)

    @property
    def extraction_seconds(self) -> float:
        """Seconds that computing the features takes; none where they are stored already."""
        return 0.0 if self.stored else self.rows * self.row_seconds

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.passes:.2g} passes, {in_bytes(self.size)}; {1000 * self.row_seconds:.3g} ms "
            f"per row without features, {1000 * self.cached_row_seconds:.3g} with them; saves {self.saved_seconds:.3g} "
            f"s for {self.extraction_seconds:.3g} s of extraction"
        )


def net_gain(estimates: Sequence[Estimate]) -> float:
    """Return the seconds that features save stages together, less those of the one extraction pass that serves them."""
    saved = sum(estimate.saved_seconds for estimate in estimates)
    return saved - max((estimate.extraction_seconds for estimate in estimates), default=0.0)


def in_bytes(count: float) -> str:
    """Write a number of bytes with a unit.

    >>> in_bytes(28_740_000)
    '28.7 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def seconds_per_row(model: nn.Module, frontier: Frontier, feature_set: FeatureSet) -> float:
    """Time the calls that would be stood in for, over random rows."""
    count = min(feature_set.batch_size, len(feature_set.source), _TIMED_ROWS)
    rows = np.random.default_rng(0).choice(len(feature_set.source), count, replace=False)
    batch = feature_set.source.batch(rows.tolist())
    seconds = 0.0

    def timed(call: Call) -> Any:
        nonlocal seconds
        if call.key not in frontier.answers or frontier.answers[call.key].is_computed:
            return call.run()
        began = _clock(feature_set.device)
        output = call.run()
        seconds += _clock(feature_set.device) - began
        return output

    with torch.no_grad(), intercepted(model, frontier.watched(model), timed):
        feature_set.roots(batch.inputs())  # not the first pass: the frontier was looked for before
    return seconds / len(rows)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def stored_bytes(frontier: Frontier, feature_set: FeatureSet, reading: Reading, stored_as: torch.dtype | None) -> int:
    """Return how large the features of a set are, in bytes; floating-point ones in the type `stored_as`, if given."""
    rows = len(feature_set.source)
    positions = int(reading.lengths.sum()) or rows * max(feature_set.probes[0].sizes.values())
    size = 0
    for leaf in frontier.leaves.values():
        dtype = stored_as if stored_as is not None and leaf.dtype.is_floating_point else leaf.dtype
        size += elements(leaf.layout, rows=rows, positions=positions) * dtype.itemsize
    return size
