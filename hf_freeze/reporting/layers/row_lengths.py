"""How long the rows of a data set are, as they are before they are collated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


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
