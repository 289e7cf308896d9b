"""Compute what a frontier stores, for all rows of a data set, and check it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from hf_freeze.features import store
from hf_freeze.features.answers import Answer, Frontier
from hf_freeze.features.batches import Batch, Source
from hf_freeze.features.calls import Call, CallKey, Interception, Origins
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.row_digests import Keys
from hf_freeze.features.shapes import Layout
from hf_freeze.features.store import Column, FeatureStore
from hf_freeze.no_trace import untouched

_OTHER_CALLS = "the calls of the frozen part differ from batch to batch"
CHANGING = "its rows change from one reading to the next, as with random augmentation or masking"

Forward = Callable[[dict[str, Any]], Any]


class _AllSeen(Exception):  # noqa: N818  # ends a forward pass once nothing more is wanted of it
    pass


@dataclass
class Work:
    """A store to fill with what `frontier` stores, in `dtype` if that is not the model's own.

    `keys` are those of all rows, in which the frozen part reads the labels, or not; `missing` rows are to be computed,
    and written as the parts from `first_part` on.
    """

    frontier: Frontier
    store: FeatureStore
    keys: Keys
    reads_labels: bool = False
    dtype: torch.dtype | None = None
    missing: Sequence[int] = ()
    first_part: int = 0


@contextmanager
def captures(model: nn.Module, frontiers: Sequence[Frontier]) -> Iterator[Callable[[Forward, Batch], list[Any]]]:
    """Yield a function that runs a batch until all that the frontiers store was seen, and returns it by frontier."""
    interceptions = [Interception(model, frontier.watched(model)) for frontier in frontiers]
    try:
        yield partial(_capture, frontiers, interceptions)
    finally:
        for interception in reversed(interceptions):
            interception.remove()


def _capture(
    frontiers: Sequence[Frontier], interceptions: Sequence[Interception], forward: Forward, batch: Batch
) -> list[dict[int, Any]]:
    captured = [_Captured(frontier, Origins(batch.tensors)) for frontier in frontiers]

    def note(one: _Captured, call: Call) -> Any:
        output = one.note(call)
        if all(other.is_complete for other in captured):
            raise _AllSeen
        return output

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for one, interception in zip(captured, interceptions, strict=True):
            stack.enter_context(interception.handled_by(partial(note, one)))
        try:
            forward(batch.inputs())
        except _AllSeen:
            return [one.columns() for one in captured]
    raise CacheRefused(_OTHER_CALLS)


class _Captured:
    """What one pass has shown of the calls whose outputs a frontier stores."""

    def __init__(self, frontier: Frontier, origins: Origins) -> None:
        self._frontier = frontier
        self._origins = origins
        self._wanted = {key for key, _, _ in frontier.columns.values()}
        self._seen: dict[CallKey, list[Any]] = {}

    def note(self, call: Call) -> Any:
        """Make a call, keep what is stored of its output, and return the output."""
        if (known := self._frontier.answers.get(call.key)) is None:
            return call.run()
        output, leaves = _made(call, known, self._origins)
        if call.key in self._wanted:
            # A copy, since what comes next may write into it.
            self._seen[call.key] = pytree.tree_map_only(torch.Tensor, torch.clone, leaves)
        return output

    @property
    def is_complete(self) -> bool:
        """Whether every call was seen of which something is stored."""
        return self._wanted <= self._seen.keys()

    def columns(self) -> dict[int, Any]:
        """Return the tensors to store, by column."""
        return {column: self._seen[key][index] for column, (key, index, _) in self._frontier.columns.items()}


def _made(call: Call, known: Answer, origins: Origins) -> tuple[Any, list[Any]]:
    """Make a call; return its output, and the leaves of that. Raises `CacheRefused` where they are not as expected."""
    if not origins.fit(call, known.given):
        raise CacheRefused(_OTHER_CALLS)
    output = call.run()
    leaves = pytree.tree_leaves(output)
    known.refuse_others(call.key, leaves)
    origins.note(call.key, leaves)
    return output, leaves


def extract(
    model: nn.Module,
    source: Source,
    work: Sequence[Work],
    forward: Forward,
    *,
    lengths: npt.NDArray[np.int64],
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    show_progress: bool = False,
) -> None:
    """Fill the stores in one pass over the rows that any of them misses, the longest first.

    Of the parts, share (i, n) computes every n-th from i on. Raises `CacheRefused` where rows are not those that they
    were when `keys` were taken; what was written then is deleted, as it is after any error.
    """
    rows = np.array(sorted({row for one in work for row in one.missing}), dtype=np.int64)
    rows = rows[by_length(lengths[rows])]
    starts = list(enumerate(range(0, len(rows), store.PART_ROWS)))[share[0] :: share[1]]
    parts = {part: rows[start : start + store.PART_ROWS] for part, start in starts}
    chunks = {part: np.array_split(of_part, -(-len(of_part) // batch_size)) for part, of_part in parts.items()}
    written: list[tuple[FeatureStore, int]] = []
    try:
        with (
            _progress(sum(map(len, parts.values())), is_shown=show_progress) as bar,
            untouched(model),
            captures(model, [one.frontier for one in work]) as capture,
        ):
            batches = source.batches([chunk.tolist() for of_part in chunks.values() for chunk in of_part])
            for part, of_part in parts.items():
                pieces = []
                for chunk, batch in zip(chunks[part], batches, strict=False):
                    seen = capture(forward, batch)
                    pieces.append([_columns_of(one, chunk, batch, its) for one, its in zip(work, seen, strict=True)])
                    bar.update(len(chunk))
                for one, its_pieces in zip(work, zip(*pieces, strict=True), strict=True):
                    if not set(one.missing).isdisjoint(of_part.tolist()):
                        written.append((one.store, one.first_part + part))
                        columns = [_joined(its_pieces, column) for column in one.frontier.columns]
                        one.store.write(one.first_part + part, one.keys[of_part], columns)
    except Exception:
        for filled, part in written:
            filled.discard([part])
        raise


def _progress(rows: int, *, is_shown: bool) -> "tqdm[Any]":
    return tqdm(total=rows, unit="rows", desc="Frozen features", disable=not is_shown, leave=False)


def _columns_of(
    work: Work, rows: npt.NDArray[np.int64], batch: Batch, seen: dict[int, torch.Tensor]
) -> dict[int, Column]:
    keys = batch.keys(with_labels=work.reads_labels)
    if keys is None or not np.array_equal(keys, work.keys[rows]):
        raise CacheRefused(CHANGING)
    columns = work.frontier.columns.items()
    return {column: stored_rows(seen[column], layout, batch, work.dtype) for column, (_, _, layout) in columns}


def stored_rows(tensor: torch.Tensor, layout: Layout, batch: Batch, dtype: torch.dtype | None = None) -> Column:
    """Bring what a call returned into the form in which it is stored."""
    expected = tuple(dim.at(batch.sizes) for dim in layout.dims)
    if tuple(tensor.shape) != expected:
        raise CacheRefused(f"a tensor of shape {tuple(tensor.shape)} was expected to have shape {expected}")
    values = layout.rows_first(tensor.detach())
    if dtype is not None and values.is_floating_point():
        values = values.to(dtype)
    if layout.positions is None:
        return Column((values if layout.at is None else values[:, layout.at]).cpu())
    mask = batch.mask(layout.positions).to(values.device)
    if layout.keeps_positions:
        return Column(values[mask].cpu(), mask.sum(1).cpu())
    return Column(values[torch.arange(len(values), device=values.device), layout.place(mask)].cpu())


def _joined(pieces: Sequence[dict[int, Column]], column: int) -> Column:
    columns = [piece[column] for piece in pieces]
    lengths = [one.lengths for one in columns if one.lengths is not None]
    return Column(torch.cat([one.values for one in columns]), torch.cat(lengths) if lengths else None)


def by_length(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Order rows by length, the longest first: a batch that does not fit into memory shows at once."""
    return np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").astype(np.int64)
