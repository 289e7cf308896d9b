"""Where stages begin, on an axis of steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_ROOM = 0.14  # of the width that a level label takes
_LEAST = 0.04  # of the width between two slanted ones


def mark_stages(axes: Any, begins: Sequence[int], labels: Sequence[str], *, end: int) -> None:
    """Draw a dashed line at every transition, and the stages' names above; names that would overlap are slanted."""
    for begin in begins[1:]:
        axes.axvline(begin, color="black", lw=1.1, ls="--")
    ticks = joined_ticks(begins, labels, least=_LEAST * end)
    crowded = any(after - before < _ROOM * end for before, after in pairwise(ticks))
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(ticks), list(ticks.values()), fontsize=8, ha="left", rotation=30 if crowded else 0)
    above.tick_params(length=2 if crowded else 0, pad=1)


def joined_ticks(begins: Sequence[int], labels: Sequence[str], *, least: float) -> dict[int, str]:
    """Return step -> label; a stage that begins less than `least` steps after the tick before shares it.

    >>> joined_ticks([0, 1, 50], ["0: start", "1: step 1", "2: step 50"], least=5)
    {0: '0: start, 1: step 1', 50: '2: step 50'}
    """
    ticks: dict[int, str] = {}
    for begin, label in zip(begins, labels, strict=True):
        last = max(ticks, default=None)
        if last is not None and begin - last < least:
            ticks[last] += f", {label}"
        else:
            ticks[begin] = label
    return ticks
