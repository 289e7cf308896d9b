"""Where the features of rows are among what layers take and return; found by trying, as architectures differ."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.features.calls import Call, intercepted, tensors_of

Note = Callable[[int, list[torch.Tensor]], None]


class _AllSeen(Exception):  # noqa: N818  # ends a forward pass once nothing more is wanted of it
    pass


@dataclass(frozen=True)
class Place:
    """Features are the tensor number `index` of a call, and its dimension `rows` runs over the rows of the batch."""

    index: int
    rows: int

    def take(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features, rows first."""
        return tensors[self.index].movedim(self.rows, 0)


def run_layers(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    depth_of: Mapping[str, int],
    inputs: dict[str, Any],
    *,
    note: Note,
    calls: int | None = None,
) -> int:
    """Run a batch, and note by depth the tensors that go into the first call of a layer, and what each returns.

    After so many `calls` of layers the pass ends: what follows, such as a head, is not run. Returns how many were made.
    """
    made = 0

    def noted(call: Call) -> Any:
        nonlocal made
        if not made:
            note(0, tensors_of((call.args, call.kwargs)))
        output = call.run()
        made += 1
        note(depth_of[call.key.name], tensors_of(output))
        if made == calls:
            raise _AllSeen
        return output

    with torch.no_grad(), intercepted(model, modules, noted), suppress(_AllSeen):
        model(**inputs)
    return made


Shapes = Mapping[int, Sequence[tuple[int, ...] | None]]


def shapes_of(tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...] | None]:
    """Return the shapes of tensors; None for those that hold no features."""
    return [tuple(one.shape) if one.is_floating_point() and one.dim() >= 2 else None for one in tensors]


def find_places(few: Shapes, more: Shapes, rows: tuple[int, int]) -> dict[int, Place]:
    """Find by depth the first tensor of which exactly one dimension follows the number of rows, and the rest stay.

    `few` and `more` are its shapes for so many `rows` of the same lengths. Raises `UnsupportedSetupError` where no
    tensor is so.

    >>> find_places({0: [(6, 2, 32)]}, {0: [(6, 3, 32)]}, (2, 3))
    {0: Place(index=0, rows=1)}
    """
    return {depth: _place(depth, few[depth], more[depth], rows) for depth in sorted(few)}


def _place(
    depth: int,
    few: Sequence[tuple[int, ...] | None],
    more: Sequence[tuple[int, ...] | None],
    rows: tuple[int, int],
) -> Place:
    for index, (one, other) in enumerate(zip(few, more, strict=False)):
        if one is None or other is None or len(one) != len(other):
            continue
        changed = [dim for dim in range(len(one)) if one[dim] != other[dim]]
        if len(changed) == 1 and (one[changed[0]], other[changed[0]]) == rows:
            return Place(index, changed[0])
    where = f"what layer {depth - 1} returns" if depth else "what goes into the first layer"
    shapes = [[shape for shape in side if shape is not None] for side in (few, more)]
    raise UnsupportedSetupError(
        f"No dimension of {where} runs over the rows: its shapes are {shapes[0]} for {rows[0]} rows and {shapes[1]} "
        f"for {rows[1]}. suggest_layers needs layers that keep the rows of a batch apart."
    )
