"""Stand in for the frozen prefix: its calls return what is stored for the rows of the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import Call, Interception, tensors_of
from hf_freeze.features.frontier import Computed, Frontier, Leaf, Other, Passed, Stored, Unread
from hf_freeze.features.shapes import Layout
from hf_freeze.features.store import Features


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
    def of(self, places: torch.Tensor, batch: Batch, *, unread: float = 0.0) -> Iterator[None]:
        """Answer for `batch`, whose rows lie at these places of the features; fill what nothing reads with `unread`."""

        def answer(call: Call) -> Any:
            known = self._frontier.answers.get(call.key)
            if known is None:
                return call.run()
            computed: list[Any] = []
            if known.is_computed:
                with torch.no_grad():
                    computed = pytree.tree_flatten(call.run())[0]
            leaves = [
                computed[index] if isinstance(leaf, Computed) else value_of(leaf, call)
                for index, leaf in enumerate(known.leaves)
            ]
            return pytree.tree_unflatten(leaves, known.spec)

        def value_of(leaf: Leaf, call: Call) -> Any:
            if isinstance(leaf, Stored):
                return self._stored(leaf, places, batch)
            if isinstance(leaf, Passed):
                return tensors_of((call.args, call.kwargs))[leaf.position]
            if isinstance(leaf, Unread):
                fill = unread if leaf.dtype.is_floating_point else 0
                shape = [dim.at(batch.sizes) for dim in leaf.dims]
                return torch.full((), fill, dtype=leaf.dtype, device=leaf.device).expand(shape)
            return leaf.value if isinstance(leaf, Other) else None

        with self._interception.handled_by(answer):
            yield

    def _stored(self, leaf: Stored, places: torch.Tensor, batch: Batch) -> torch.Tensor:
        layout = leaf.layout
        mask = batch.mask(layout.positions) if layout.keeps_positions and layout.positions else None
        values = self._features.rows(leaf.column, places, mask).to(device=leaf.device, dtype=leaf.dtype)
        return _spread(values, layout, batch)


def _spread(values: torch.Tensor, layout: Layout, batch: Batch) -> torch.Tensor:
    """Bring stored rows into the shape that the model reads; a single position stands for all."""
    if layout.at is not None:
        dims = [dim for index, dim in enumerate(layout.dims) if index != layout.rows_dim]
        where = layout.dims[layout.length_dim] if layout.length_dim is not None else dims[0]
        values = values.unsqueeze(1).expand(-1, where.at(batch.sizes), *values.shape[1:])
    return layout.restored(values)
