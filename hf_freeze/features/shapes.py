"""How the shape of a tensor follows from the batch, and how its rows are laid out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hf_freeze.features.errors import CacheRefused

if TYPE_CHECKING:
    from hf_freeze.features.batches import Batch
    from hf_freeze.features.calls import CallKey


@dataclass(frozen=True)
class Dim:
    """One dimension: `factor` times a size of the batch plus `offset`. No size: just `offset`; "" is the rows."""

    size: str | None
    factor: int
    offset: int

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return the extent in a batch of these sizes."""
        return self.offset + (self.factor * sizes[self.size] if self.size is not None else 0)

    @property
    def is_rows(self) -> bool:
        """Whether this dimension runs over the rows of the batch."""
        return self == Dim("", 1, 0)

    @property
    def is_length(self) -> bool:
        """Whether this dimension runs over the positions of an input."""
        return bool(self.size) and (self.factor, self.offset) == (1, 0)


def fit_dims(
    shapes: tuple[Sequence[int], Sequence[int]], sizes: tuple[Mapping[str, int], Mapping[str, int]]
) -> tuple[Dim, ...] | None:
    """Explain two shapes of one tensor by the sizes of their batches; None where a dimension follows none.

    >>> fit_dims(((5, 9, 32), (3, 7, 32)), ({"": 5, "mask": 9}, {"": 3, "mask": 7}))[1]
    Dim(size='mask', factor=1, offset=0)
    """
    if len(shapes[0]) != len(shapes[1]):
        return None
    dims = [_fit(pair, sizes) for pair in zip(*shapes, strict=True)]
    return None if any(dim is None for dim in dims) else tuple(dim for dim in dims if dim is not None)


def _fit(extents: tuple[int, int], sizes: tuple[Mapping[str, int], Mapping[str, int]]) -> Dim | None:
    if extents[0] == extents[1]:
        return Dim(None, 0, extents[0])
    fits: list[Dim] = []
    for name in sizes[0]:
        run = sizes[0][name] - sizes[1][name]
        factor, rest = divmod(extents[0] - extents[1], run) if run else (0, 1)
        if not rest:
            fits.append(Dim(name, factor, extents[0] - factor * sizes[0][name]))
    return min(fits, key=lambda dim: (dim.offset != 0, dim.factor != 1), default=None)


@dataclass(frozen=True)
class Layout:
    """Rows first, then positions if the tensor has one per token, then the rest, of shape `rest`.

    `positions` names the input whose positions these are; `at` is the only position that is read, among those that
    are not padding: 0, -1, or any where the length is fixed; None is all.
    """

    dims: tuple[Dim, ...]
    rows_dim: int
    length_dim: int | None
    at: int | None = None

    @classmethod
    def of(cls, dims: tuple[Dim, ...]) -> "Layout | None":
        """Return the layout of a tensor with one entry per row, or None for any other tensor."""
        rows = [index for index, dim in enumerate(dims) if dim.is_rows]
        lengths = [index for index, dim in enumerate(dims) if dim.is_length]
        varying = [dim for dim in dims if dim.size is not None]
        if len(rows) != 1 or len(lengths) > 1 or len(varying) > len(rows) + len(lengths):
            return None
        return cls(dims, rows[0], lengths[0] if lengths else None)

    @property
    def positions(self) -> str | None:
        """The input whose positions are kept or read, where their number varies."""
        return self.dims[self.length_dim].size if self.length_dim is not None else None

    @property
    def keeps_positions(self) -> bool:
        """Whether every position is stored, so that rows differ in length."""
        return self.length_dim is not None and self.at is None

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape of what is stored for a row, or for a position of it."""
        dropped = {self.rows_dim, self.length_dim}
        kept = [dim.offset for index, dim in enumerate(self.dims) if index not in dropped]
        return tuple(kept[1:] if self.at is not None and self.length_dim is None else kept)

    def describe(self) -> str:
        """Say what of the tensor is stored."""
        where = {None: "", 0: "[first position]", -1: "[last position]"}.get(self.at, f"[position {self.at}]")
        return where if self.at is not None else ("[every position]" if self.keeps_positions else "")

    def rows_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring rows to the front, and positions behind them."""
        if self.length_dim is None:
            return tensor.movedim(self.rows_dim, 0)
        return tensor.movedim((self.rows_dim, self.length_dim), (0, 1))

    def restored(self, tensor: torch.Tensor) -> torch.Tensor:
        """Undo `rows_first`."""
        if self.length_dim is None:
            return tensor.movedim(0, self.rows_dim)
        return tensor.movedim((0, 1), (self.rows_dim, self.length_dim))

    def known(self, batch: "Batch") -> torch.Tensor:
        """Find which positions are stored, in a shape that expands to that of the tensor."""
        if self.positions is None:
            others = [dim for index, dim in enumerate(self.dims) if index != self.rows_dim]
            stored = torch.zeros(1, others[0].at(batch.sizes), dtype=torch.bool)
            stored[:, self.at] = True
        else:
            stored = batch.mask(self.positions)
            if self.at is not None:
                stored = torch.arange(stored.shape[1], device=stored.device) == self.place(stored)[:, None]
        return self.restored(stored.view(*stored.shape, *[1] * (len(self.dims) - 2)))

    def place(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the position that is stored of each row, (rows,), the first or the last that is not padding."""
        places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        if self.at == 0:
            return places.masked_fill(~mask, mask.shape[1] - 1).min(dim=1).values
        return places.masked_fill(~mask, 0).max(dim=1).values

    def narrowed(self, key: "CallKey", gradients: Sequence[tuple[torch.Tensor | None, "Batch"]]) -> "Layout":
        """Keep the only position that a gradient reaches, if that is the same one in all rows.

        Raises `CacheRefused` where the rest of the model reads padding, which depends on the other rows of the batch.
        """
        found: set[int | None] = set()
        for gradient, batch in gradients:
            if gradient is not None:
                found |= self._positions_read(key, self.rows_first(gradient), batch)
        single = len(found) == 1 and None not in found
        return replace(self, at=found.pop()) if single else self

    def _positions_read(self, key: "CallKey", gradient: torch.Tensor, batch: "Batch") -> set[int | None]:
        if gradient.dim() < 3 or (self.length_dim is None and gradient.dim() != 3):
            return {None}
        read = gradient.flatten(2).ne(0).any(dim=2)
        if self.positions is None:
            return {_only(row) for row in read}
        mask = batch.mask(self.positions).to(read.device)
        if (read & ~mask).any():
            raise CacheRefused(f"the rest of the model reads the padding in what {key} returns")
        return set().union(*(_first_or_last(row[real]) for row, real in zip(read, mask, strict=True)))


def _only(read: torch.Tensor) -> int | None:
    where = read.nonzero().flatten().tolist()
    return where[0] if len(where) == 1 else None


def _first_or_last(read: torch.Tensor) -> set[int | None]:
    where = _only(read)
    if len(read) == 1:
        return set()  # its first is its last
    return {{0: 0, len(read) - 1: -1}.get(where) if where is not None else None}


def elements(layout: Layout, *, rows: int, positions: int) -> int:
    """Return how many elements are stored for `rows` rows with so many positions in all."""
    return math.prod(layout.rest) * (positions if layout.keeps_positions else rows)
