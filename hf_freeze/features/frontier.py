"""Where the frozen prefix of a model ends: which of its outputs the rest of the model reads.

Found by autograd, whatever the architecture. The prefix is every outermost call of a wholly frozen module whose output
requires no gradient. A second pass puts a fresh leaf in the place of each of these outputs: the leaves that a gradient
reaches are what the rest reads, and so what is worth keeping.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import Call, CallKey, Interception, intercepted, tensors_of, wholly_frozen
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.shapes import Dim, Layout, fit_dims
from hf_freeze.no_trace import untouched

DifferentiableOutputs = Callable[[dict[str, Any]], Sequence[torch.Tensor]]
"""Runs the model on prepared inputs; returns the tensors whose gradient counts: the loss, and outputs that are kept."""


@dataclass(frozen=True)
class Stored:
    """A tensor that the rest of the model reads, row by row: column `column` of the store."""

    column: int
    layout: Layout
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Passed:
    """A tensor that came in as the `position`-th of the call's arguments and goes out as it is."""

    position: int


@dataclass(frozen=True)
class Computed:
    """A tensor that the rest reads and that is not one per row, such as a position bias: the call is made for it."""


@dataclass(frozen=True)
class Unread:
    """A tensor that nothing reads: any of this shape will do."""

    dims: tuple[Dim, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Other:
    """No tensor: a flag or a number is returned again, an object such as a key-value cache is None."""

    value: Any


Leaf = Stored | Passed | Computed | Unread | Other


@dataclass(frozen=True)
class Answer:
    """What stands for the output of one call."""

    leaves: tuple[Leaf, ...]
    paths: tuple[str, ...]
    spec: pytree.TreeSpec = field(compare=False, repr=False)

    @property
    def is_computed(self) -> bool:
        """Whether the call must be made."""
        return any(isinstance(leaf, Computed) for leaf in self.leaves)


@dataclass(frozen=True)
class Frontier:
    """What every call of the frozen prefix returns, and which of these tensors are stored.

    Calls are counted among those of the modules `names`.
    """

    answers: Mapping[CallKey, Answer]
    names: frozenset[str]

    @property
    def columns(self) -> dict[int, tuple[CallKey, int, Layout]]:
        """Column of the store -> the call, the tensor among its outputs, its layout."""
        return {
            leaf.column: (key, index, leaf.layout)
            for key, answer in self.answers.items()
            for index, leaf in enumerate(answer.leaves)
            if isinstance(leaf, Stored)
        }

    @property
    def leaves(self) -> dict[int, Stored]:
        """Column of the store -> what it stores."""
        return {
            leaf.column: leaf for answer in self.answers.values() for leaf in answer.leaves if isinstance(leaf, Stored)
        }

    def watched(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the modules whose calls are counted, of this model."""
        return {name: module for name, module in model.named_modules() if name in self.names}

    def describe(self) -> str:
        """Name what is stored, for people."""
        return ", ".join(
            f"{_spoken(key.name + self.answers[key].paths[index])}{layout.describe()}{str(key)[len(key.name) :]}"
            for key, index, layout in self.columns.values()
        )


def find_frontier(model: nn.Module, batches: tuple[Batch, Batch], roots: DifferentiableOutputs) -> Frontier:
    """Find the frontier of what is frozen in `model` now, from two batches that differ in rows and, if any do, lengths.

    Raises `CacheRefused` where there is no frozen prefix, or where its outputs cannot be kept row by row.
    """
    with untouched(model), without_checkpointing(model):
        first, second = (_look(model, batch, roots) for batch in batches)
    if first.keys() != second.keys() or any(len(first[key].leaves) != len(second[key].leaves) for key in first):
        raise CacheRefused("the calls of the frozen part differ from batch to batch")
    columns = count()
    answers = {
        key: Answer(
            tuple(_classify(key, pair, batches, columns) for pair in zip(seen.leaves, second[key].leaves, strict=True)),
            seen.paths,
            seen.spec,
        )
        for key, seen in first.items()
    }
    frontier = Frontier(answers, frozenset(wholly_frozen(model)))
    if not frontier.columns:
        raise CacheRefused("nothing that the frozen part computes is read row by row")
    return frontier


@dataclass
class _SeenLeaf:
    value: Any
    passed: int | None = None
    leaf: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    read: bool = False

    def given(self, arguments: Sequence[torch.Tensor]) -> Any:
        """Return what stands in its place: a copy, since the rest of the model may write into what it gets."""
        if self.passed is not None:
            return arguments[self.passed]
        value = self.value if self.leaf is None else self.leaf
        return value.clone() if isinstance(value, torch.Tensor) else value


@dataclass
class _SeenCall:
    leaves: list[_SeenLeaf]
    paths: tuple[str, ...]
    spec: pytree.TreeSpec


def _look(model: nn.Module, batch: Batch, roots: DifferentiableOutputs) -> dict[CallKey, _SeenCall]:
    modules = wholly_frozen(model)
    seen: dict[CallKey, _SeenCall] = {}

    def note(call: Call) -> Any:
        moved = any(tensor.requires_grad for tensor in tensors_of((call.args, call.kwargs)))
        with torch.set_grad_enabled(moved):
            output = call.run()
        if not any(tensor.requires_grad for tensor in tensors_of(output)):
            arguments = tensors_of((call.args, call.kwargs))
            leaves, spec = pytree.tree_flatten(output)
            seen[call.key] = _SeenCall([_fresh(leaf, arguments) for leaf in leaves], _paths(output), spec)
        return output

    with torch.enable_grad(), intercepted(model, modules, note) as interception:
        roots(batch.inputs())
        _refuse_second_pass(interception)
    if not seen:
        raise CacheRefused("no module in front of what trains is frozen as a whole")

    def replace(call: Call) -> Any:
        if (known := seen.get(call.key)) is None:
            return call.run()
        arguments = tensors_of((call.args, call.kwargs))
        return pytree.tree_unflatten([part.given(arguments) for part in known.leaves], known.spec)

    with torch.enable_grad(), intercepted(model, modules, replace):
        _read_gradients(list(roots(batch.inputs())), seen)
    return seen


def _paths(output: Any) -> tuple[str, ...]:
    """Find each leaf of an output by its key, or its place where a type has no keys (transformers below 5.20)."""
    try:
        return tuple(pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(output)[0])
    except ValueError:
        if isinstance(output, Mapping):
            return tuple(f"[{key!r}]{path}" for key, part in output.items() for path in _paths(part))
        return tuple(f"[{place}]" for place in range(len(pytree.tree_leaves(output))))


def _fresh(value: Any, arguments: Sequence[torch.Tensor]) -> _SeenLeaf:
    if not isinstance(value, torch.Tensor):
        return _SeenLeaf(value)
    for position, argument in enumerate(arguments):
        if value is argument:
            return _SeenLeaf(value, passed=position)
    if not value.is_floating_point():
        return _SeenLeaf(value.clone(), read=True)  # no gradient would tell
    return _SeenLeaf(value, leaf=value.detach().clone().requires_grad_())


def _read_gradients(roots: list[torch.Tensor], seen: Mapping[CallKey, _SeenCall]) -> None:
    parts = [part for call in seen.values() for part in call.leaves if part.leaf is not None]
    roots = [root for root in roots if root.requires_grad]
    if not roots:
        raise CacheRefused("the loss does not require a gradient")
    # Random weights: the sum of an output may be constant, as that of probabilities is.
    weights = [torch.randn_like(root) if root.numel() > 1 else torch.ones_like(root) for root in roots]
    leaves = [part.leaf for part in parts if part.leaf is not None]
    gradients = torch.autograd.grad(roots, leaves, weights, allow_unused=True)
    for part, gradient in zip(parts, gradients, strict=True):
        part.read, part.gradient = gradient is not None, gradient


def _classify(
    key: CallKey, pair: tuple[_SeenLeaf, _SeenLeaf], batches: tuple[Batch, Batch], columns: Iterator[int]
) -> Leaf:
    one, two = pair
    if not isinstance(one.value, torch.Tensor):
        return Other(one.value if isinstance(one.value, bool | int | float | str) else None)
    if one.passed is not None:
        return Passed(one.passed)
    dims = fit_dims((one.value.shape, two.value.shape), (batches[0].sizes, batches[1].sizes))
    if not (one.read or two.read):
        if dims is None:
            raise CacheRefused(f"the shape of what {key} returns, {tuple(one.value.shape)}, follows no rule")
        return Unread(dims, one.value.dtype, one.value.device)
    layout = Layout.of(dims) if dims is not None else None
    if layout is None:
        return Computed()
    gradients = [(part.gradient, batch) for part, batch in zip(pair, batches, strict=True)]
    return Stored(next(columns), layout.narrowed(key, gradients), one.value.dtype, one.value.device)


def _refuse_second_pass(interception: Interception) -> None:
    if interception.passes != 1:
        raise CacheRefused(f"computing the loss calls the model {interception.passes} times, not once")


def _spoken(path: str) -> str:
    """Write the place of a tensor as people do.

    >>> _spoken("bert['pooler_output']")
    'bert.pooler_output'
    """
    return re.sub(r"\['(\w+)'\]", r".\1", path)


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Recompute nothing, and let no hook make embeddings require a gradient for the sake of that."""
    with ExitStack() as stack:
        stack.enter_context(without_input_gradients(model))
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False  # type: ignore[assignment]
                stack.callback(setattr, module, "gradient_checkpointing", True)
        yield


@contextmanager
def without_input_gradients(model: nn.Module) -> Iterator[None]:
    """Take away the hooks by which transformers and PEFT make the output of embeddings require a gradient."""
    with ExitStack() as stack:
        for module in model.modules():
            hooks = module._forward_hooks
            for handle, hook in list(hooks.items()):
                if getattr(hook, "__name__", "").startswith("make_inputs_require_grad"):
                    del hooks[handle]
                    stack.callback(hooks.__setitem__, handle, hook)
        yield
