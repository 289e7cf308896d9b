"""Stand in for the frozen prefix: its calls return what is stored for the rows of the batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_freeze.features.answers import Answer, Computed, Frontier, Leaf, Passed, Stored, Unread
from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import Call, CallKey, Interception, Origins, tensors_of
from hf_freeze.features.partly_stored import StandIn
from hf_freeze.features.shapes import Layout
from hf_freeze.features.store import Features

Noticed = Callable[[CallKey], None]


class Replay:
    """The frozen prefix of `model`, answered for from stored features."""

    def __init__(self, model: nn.Module, frontier: Frontier, features: Features) -> None:
        self._frontier = frontier
        self._features = features
        self._interception = Interception(model, frontier.watched(model))

    def remove(self) -> None:
        """Leave the model as it was."""
        self._interception.remove()

    @contextmanager
    def of(self, places: torch.Tensor, batch: Batch, *, noticed: Noticed = lambda key: None) -> Iterator[None]:
        """Answer for `batch`, whose rows lie at these places of the features.

        `noticed` is called for each call that must be made after all: more of it is read than is stored, or it was not
        seen before, or has other arguments. The calls that follow it are made as well.
        """
        origins, is_usual = Origins(batch.tensors), True

        def answer(call: Call) -> Any:
            nonlocal is_usual
            known = self._frontier.answers.get(call.key)
            fits = call.key in self._frontier.usual if known is None else origins.fit(call, known.given)
            if is_usual and not fits:
                noticed(call.key)
            is_usual = is_usual and fits
            if known is None or not is_usual:
                return call.run()
            leaves = self._leaves(call, known, places, batch, noticed)
            origins.note(call.key, leaves)
            return pytree.tree_unflatten(leaves, known.spec)

        with self._interception.handled_by(answer):
            yield

    def _leaves(self, call: Call, known: Answer, places: torch.Tensor, batch: Batch, noticed: Noticed) -> list[Any]:
        made = _Made(call, self._interception, noticed)
        computed = _computed(call) if known.is_computed else []

        def value_of(index: int, leaf: Leaf) -> Any:
            if isinstance(leaf, Stored):
                return leaf.standing_in(self._stored(leaf, places, batch), partial(made.leaf, index), batch)
            if isinstance(leaf, Passed):
                return tensors_of((call.args, call.kwargs))[leaf.position]
            if isinstance(leaf, Unread):
                return leaf.standing_in(partial(made.leaf, index), batch)
            return computed[index] if isinstance(leaf, Computed) else leaf.value

        return [value_of(index, leaf) for index, leaf in enumerate(known.leaves)]

    def _stored(self, leaf: Stored, places: torch.Tensor, batch: Batch) -> torch.Tensor:
        layout = leaf.layout
        mask = batch.mask(layout.positions) if layout.keeps_positions and layout.positions else None
        values = self._features.rows(leaf.column, places, mask).to(device=leaf.device, dtype=leaf.dtype)
        return _spread(values, layout, batch)


class _Made:
    """A call that is made, as the model would have made it, once something reads what is not stored of it."""

    def __init__(self, call: Call, interception: Interception, noticed: Noticed) -> None:
        self._call = call
        self._interception = interception
        self._noticed = noticed
        self._leaves: list[Any] | None = None

    def leaf(self, index: int) -> torch.Tensor:
        """Return one of the tensors of its output."""
        if self._leaves is None:
            self._noticed(self._call.key)
            with torch.no_grad(), self._interception.aside():
                self._leaves = pytree.tree_leaves(self._call.run())
        found: torch.Tensor = self._leaves[index]
        return found


def _computed(call: Call) -> Sequence[Any]:
    """Make a call for what depends on no stored value, such as a position bias, with fillers as arguments."""
    args, kwargs = pytree.tree_map_only(StandIn, lambda given: given.filler, (call.args, call.kwargs))
    with torch.no_grad():
        return pytree.tree_leaves(call.forward(*args, **kwargs))


def _spread(values: torch.Tensor, layout: Layout, batch: Batch) -> torch.Tensor:
    """Bring stored rows into the shape that the model reads; a single position stands for all."""
    if layout.at is not None:
        dims = [dim for index, dim in enumerate(layout.dims) if index != layout.rows_dim]
        where = layout.dims[layout.length_dim] if layout.length_dim is not None else dims[0]
        values = values.unsqueeze(1).expand(-1, where.at(batch.sizes), *values.shape[1:])
        if values.device.type != "cpu":  # where dropout draws by how a tensor lies in memory
            values = values.contiguous()
    return layout.restored(values)
