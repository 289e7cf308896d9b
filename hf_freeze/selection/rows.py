"""Rows of a matrix: which ones a selection means, and what they are called as members of a plan."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hf_freeze.errors import SelectionError


@dataclass(frozen=True, order=True)
class Rows:
    """The rows from `start` to before `stop` of the matrix with this canonical name."""

    matrix: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """What groups, logs and checkpoints call them: `bert.embeddings.word_embeddings.weight[30522:30525]`."""
        return self.of(self.matrix)

    def of(self, alias: str) -> str:
        """Return what they are called under another name of the matrix, which may be tied."""
        return f"{alias}[{self.start}:{self.stop}]"

    def is_within(self, other: "Rows") -> bool:
        """Tell whether all of them are among these others."""
        return self.matrix == other.matrix and other.start <= self.start and self.stop <= other.stop

    def __len__(self) -> int:
        return self.stop - self.start


def joined(rows: Iterable[Rows]) -> list[Rows]:
    """Join runs of rows that overlap or lie side by side.

    >>> joined([Rows("w", 2, 5), Rows("w", 0, 2), Rows("w", 7, 8)])
    [Rows(matrix='w', start=0, stop=5), Rows(matrix='w', start=7, stop=8)]
    """
    found: list[Rows] = []
    for one in sorted(rows):
        if found and found[-1].matrix == one.matrix and one.start <= found[-1].stop:
            found[-1] = Rows(one.matrix, found[-1].start, max(found[-1].stop, one.stop))
        else:
            found.append(one)
    return found


def pieces(rows: Collection[Rows], *, count: int) -> list[Rows]:
    """Cut a matrix of `count` rows wherever one of these runs begins or ends.

    >>> [len(piece) for piece in pieces([Rows("w", 7, 9)], count=10)]
    [7, 2, 1]
    """
    matrix = next(iter(rows)).matrix
    ends = sorted({0, count, *(row.start for row in rows), *(row.stop for row in rows)})
    return [Rows(matrix, start, stop) for start, stop in pairwise(ends)]


def row_ranges(text: str, matrix: str, indices: Sequence[int | slice], *, count: int) -> list[Rows]:
    """Return the runs of rows, none twice, that indices mean of a matrix of `count` rows.

    Python ignores what lies outside; here that is a `SelectionError`, as nothing else would show that the tokens whose
    rows should train were never added.
    """
    return joined(_one_range(text, matrix, index, count) for index in indices)


def _one_range(text: str, matrix: str, index: int | slice, count: int) -> Rows:
    has = f"{matrix!r} has {count} rows, 0 to {count - 1}"
    if isinstance(index, int):
        index = slice(index, index + 1 or None)
    if index.step not in (None, 1):
        raise SelectionError(f"{text!r} has a step of {index.step}. Rows are taken in runs, such as [3:8] or [3,5,7].")
    start, stop = index.start or 0, count if index.stop is None else index.stop
    outside = next((bound for bound, most in ((start, count), (stop, count)) if not -count <= bound <= most), None)
    start, stop = (bound + count if bound < 0 else bound for bound in (start, stop))
    if outside is not None or start >= count:
        raise SelectionError(
            f"{text!r} goes past the end: {has}. For tokens that were added, call model.resize_token_embeddings first."
        )
    if start >= stop:
        raise SelectionError(f"{text!r} is an empty slice: {has}.")
    return Rows(matrix, start, stop)


_NAME = re.compile(r"(?P<matrix>.+)\[(?P<start>\d+):(?P<stop>\d+)\]")


def rows_named(name: str) -> Rows | None:
    """Read what `Rows.name` wrote; None for the name of a whole tensor.

    >>> rows_named("lm_head.weight[3:5]"), rows_named("lm_head.weight")
    (Rows(matrix='lm_head.weight', start=3, stop=5), None)
    """
    found = _NAME.fullmatch(name)
    return Rows(found["matrix"], int(found["start"]), int(found["stop"])) if found else None


def tensors_of(members: Iterable[str]) -> frozenset[str]:
    """Return the names of the tensors that these members are, or are rows of."""
    return frozenset(rows.matrix if (rows := rows_named(name)) else name for name in members)
