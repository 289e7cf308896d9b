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
    """Give a function that runs a batch until all that the frontiers store was seen, and returns it by frontier."""
    interceptions = [Interception(model, frontier.watched(model)) for frontier in frontiers]
    try:

        def capture(forward: Forward, batch: Batch) -> list[Any]:
            seen: list[dict[CallKey, list[Any]]] = [{} for _ in frontiers]
            wanted = [{key for key, _, _ in frontier.columns.values()} for frontier in frontiers]
            origins = [Origins(batch.tensors) for _ in frontiers]

            def note(number: int, call: Call) -> Any:
                if (known := frontiers[number].answers.get(call.key)) is None:
                    return call.run()
                output, leaves = _made(call, known, origins[number])
                if call.key in wanted[number]:
                    # A copy, since what comes next may write into it.
                    seen[number][call.key] = pytree.tree_map_only(torch.Tensor, torch.clone, leaves)
                if all(keys <= found.keys() for keys, found in zip(wanted, seen, strict=True)):
                    raise _AllSeen
                return output

            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for number, interception in enumerate(interceptions):
                    stack.enter_context(interception.handled_by(partial(note, number)))
                try:
                    forward(batch.inputs())
                except _AllSeen:
                    pass
                else:
                    raise CacheRefused(_OTHER_CALLS)
            return [
                {column: found[key][index] for column, (key, index, _) in frontier.columns.items()}
                for frontier, found in zip(frontiers, seen, strict=True)
            ]

        yield capture
    finally:
        for interception in reversed(interceptions):
            interception.remove()


def _made(call: Call, known: Answer, origins: Origins) -> tuple[Any, list[Any]]:
    """Make a call; return its output, and the leaves of that. Raises `CacheRefused` for another one than was seen."""
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
    parts = [rows[start : start + store.PART_ROWS] for start in range(0, len(rows), store.PART_ROWS)]
    mine = range(len(parts))[share[0] :: share[1]]
    chunks = {part: np.array_split(parts[part], -(-len(parts[part]) // batch_size)) for part in mine}
    bar = tqdm(
        total=sum(len(parts[part]) for part in mine),
        unit="rows",
        desc="Frozen features",
        disable=not show_progress,
        leave=False,
    )
    written: list[tuple[FeatureStore, int]] = []
    try:
        with bar, untouched(model), captures(model, [one.frontier for one in work]) as capture:
            stream = source.batches([chunk.tolist() for part in mine for chunk in chunks[part]])
            for part in mine:
                collected: list[list[dict[int, Column]]] = [[] for _ in work]
                for chunk, batch in zip(chunks[part], stream, strict=False):
                    for sink, one, seen in zip(collected, work, capture(forward, batch), strict=True):
                        sink.append(_columns_of(one, chunk, batch, seen))
                    bar.update(len(chunk))
                for sink, one in zip(collected, work, strict=True):
                    if not set(one.missing).isdisjoint(parts[part].tolist()):
                        written.append((one.store, one.first_part + part))
                        columns = [_joined(sink, column) for column in one.frontier.columns]
                        one.store.write(one.first_part + part, one.keys[parts[part]], columns)
    except Exception:
        for filled, part in written:
            filled.discard([part])
        raise


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
