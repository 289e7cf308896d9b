"""The layers of a model, and which of their inputs and outputs are the features of rows.

The latter is found by running them, as architectures differ.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_freeze.errors import SelectionError, UnsupportedSetupError
from hf_freeze.features.calls import Call, intercepted, tensors_of
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.selection.stacks import Stack
from hf_freeze.selection.vocabulary import paths_in_front

Note = Callable[[int, list[torch.Tensor]], None]


class _AllSeen(Exception):  # noqa: N818  # ends a forward pass once nothing more is wanted of it
    pass


@dataclass(frozen=True, kw_only=True)
class Depths:
    """A stack of layers, and the modules that make up each of them: depth 0 is what goes into the first layer.

    `prefix` stands before `layers[...]` in selections, `below` are the paths of the stacks that this one reads.
    """

    prefix: str
    below: tuple[str, ...]
    modules: Mapping[str, nn.Module]
    depth_of: Mapping[str, int]
    layers: int

    @property
    def top(self) -> dict[str, nn.Module]:
        """The modules of the last layer."""
        return {path: module for path, module in self.modules.items() if self.depth_of[path] == self.layers}


def find_depths(model: nn.Module, stack: str | None = None) -> Depths:
    """Find the stack of layers of a model; `stack` names one where there are several, as in `encoder.layers[0]`.

    Raises `SelectionError` where there is none, or several and none was named.
    """
    model = unwrap(model)
    found = map_model(model).stacks
    if stack is None and len(found) == 1:
        return _depths(model, found[0])
    paths = paths_in_front(found)
    chosen = [path for path in paths if stack is not None and f".{path}".endswith(f".{stack}")]
    if len(chosen) != 1:
        wanted = f"stack={stack!r}" if stack is not None else "stack= was not given"
        raise SelectionError(f"{wanted}, and the stacks of layers of this model are {paths}. Name one of them.")
    index = paths.index(chosen[0])
    reads_others = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    prefix = f"{chosen[0]}." if len(found) > 1 else ""
    return _depths(model, found[index], prefix=prefix, below=tuple(paths[:index]) if reads_others else ())


def _depths(model: nn.Module, stack: Stack, *, prefix: str = "", below: tuple[str, ...] = ()) -> Depths:
    modules: dict[str, nn.Module] = {}
    depth_of: dict[str, int] = {}
    for depth, names in enumerate(stack.layers, start=1):
        for path, module in _largest_within(model, names):
            modules[path], depth_of[path] = module, depth
    return Depths(prefix=prefix, below=below, modules=modules, depth_of=depth_of, layers=len(stack.layers))


def _largest_within(module: nn.Module, names: frozenset[str], path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return the largest modules that are called and whose parameters are all among `names`, as the root names them."""
    own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(remove_duplicate=False)]
    if own and names.issuperset(own) and _can_be_called(module):
        yield path, module
    elif not names.isdisjoint(own):
        for name, child in module.named_children():
            yield from _largest_within(child, names, f"{path}.{name}" if path else name)


def _can_be_called(module: nn.Module) -> bool:
    """Tell a module from a list or dict of modules, which has no forward."""
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


@dataclass(frozen=True)
class Place:
    """Features are the tensor number `index` of a call, and its dimension `rows` runs over the rows of the batch."""

    index: int
    rows: int

    def take(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the features, rows first."""
        return tensors[self.index].movedim(self.rows, 0)


def run_layers(
    model: nn.Module, depths: Depths, inputs: dict[str, Any], *, note: Note, calls: int | None = None
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
        note(depths.depth_of[call.key.name], tensors_of(output))
        if made == calls:
            raise _AllSeen
        return output

    with torch.no_grad(), intercepted(model, depths.modules, noted), suppress(_AllSeen):
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
