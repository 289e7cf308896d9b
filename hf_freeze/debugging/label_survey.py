"""The labels of a whole data set: read from their column where possible, without making the rows."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from hf_freeze.label_columns import IGNORED_LABEL, label_values, values_in

_MOST_VALUES = 1_000_000
MOST_ROWS_MADE = 64
_MOST_SECONDS = 0.3


@dataclass(frozen=True)
class LabelSurvey:
    """The labels of `origin`: each value with the first row that has it, and how many values a row's label has.

    `label_at(row)` returns what reaches the model of one row's label, after every transform and the collator; None
    where that is nothing. `rows` is None for an iterable data set.
    """

    origin: str
    rows: int | None
    looked_at: int
    first: Mapping[Any, int]
    widths: Mapping[int, int]
    label_at: Callable[[int], Any] = field(compare=False)

    @property
    def is_complete(self) -> bool:
        """Whether the label of every row was looked at."""
        return self.looked_at == self.rows

    @property
    def is_two_valued(self) -> bool:
        """Whether the labels are 0 and 1, both of them, and nothing else."""
        return self.looked_at >= 8 and set(self.first) == {0, 1}

    def __str__(self) -> str:
        if self.rows is None:
            return f"the first {self.looked_at:,} labels of {self.origin} were read"
        share = f"all {self.rows:,}" if self.is_complete else f"{self.looked_at:,} of {self.rows:,}"
        return f"{share} labels of {self.origin} were read"


def survey_labels(
    dataset: Any,
    origin: str,
    names: Sequence[str],
    label_at: Callable[[int], Any],
    *,
    known_row: int,
    ids: Mapping[str, int],
) -> LabelSurvey | None:
    """Look at the labels of a data set; None where none is found.

    A column counts only if it agrees with `label_at` on `known_row`; else a few rows are made, within a time limit.
    `ids` are the numbers of labels that are given by name.
    """
    known = label_at(known_row)
    if known is None:
        return None
    for column in label_values(dataset, names):
        if len(column) == len(dataset) and _same(column[known_row], known, ids):
            step = max(math.ceil(len(column) * _width(column[known_row]) / _MOST_VALUES), 1)
            rows = range(0, len(column), step)
            values = column if step == 1 else [column[row] for row in rows]
            return LabelSurvey(origin, len(column), len(rows), *_distinct(values, rows, ids), label_at)
    made = list(_made_within_time(label_at, _spread(len(dataset), known_row)))
    return LabelSurvey(
        origin, len(dataset), len(made), *_distinct([y for _, y in made], [i for i, _ in made], {}), label_at
    )


def survey_stream(rows: Iterable[Any], origin: str, label_of: Callable[[Any], Any]) -> LabelSurvey | None:
    """Look at the labels of the first rows of an iterable data set."""
    seen: list[Any] = []
    end = time.monotonic() + _MOST_SECONDS
    for row in islice(rows, MOST_ROWS_MADE):
        seen.append(label_of(row))
        if time.monotonic() > end:
            break
    if not seen or seen[0] is None:
        return None
    return LabelSurvey(origin, None, len(seen), *_distinct(seen, range(len(seen)), {}), seen.__getitem__)


def _width(value: Any) -> int:
    return max(sum(1 for _ in values_in(value, {})), 1)


def _same(one: Any, other: Any, ids: Mapping[str, int]) -> bool:
    """Compare two labels, leaving out what a collator may have filled up."""
    left, right = ([x for x in values_in(value, ids) if x != IGNORED_LABEL] for value in (one, other))
    return left == right


def _spread(count: int, known_row: int) -> list[int]:
    step = max(count // MOST_ROWS_MADE, 1)
    return list(dict.fromkeys([known_row, *range(0, count, step)]))[:MOST_ROWS_MADE]


def _made_within_time(label_at: Callable[[int], Any], rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    end = time.monotonic() + _MOST_SECONDS
    for row in rows:
        yield row, label_at(row)
        if time.monotonic() > end:
            return


def _distinct(values: Any, rows: Sequence[int], ids: Mapping[str, int]) -> tuple[dict[Any, int], dict[int, int]]:
    """Return each value with the first row that has it, and each number of values per row likewise."""
    array = _as_numbers(values)
    if array is not None:
        width = int(np.prod(array.shape[1:], dtype=int))
        found, places = np.unique(array.reshape(-1), return_index=True, equal_nan=True)
        numbers = {_one_nan(x): rows[int(i) // width] for x, i in zip(found.tolist(), places, strict=True)}
        return numbers, {width: rows[0]}
    first: dict[Any, int] = {}
    widths: dict[int, int] = {}
    for row, value in zip(rows, values, strict=True):
        items = [_one_nan(item) for item in values_in(value, ids)]
        widths.setdefault(len(items), row)
        for item in items:
            first.setdefault(item, row)
    return first, widths


def _one_nan(value: Any) -> Any:
    return math.nan if isinstance(value, float) and value != value else value


def _as_numbers(values: Any) -> np.ndarray[Any, Any] | None:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # rows of several lengths
        return None
    return array if array.dtype.kind in "iufb" and array.size else None
