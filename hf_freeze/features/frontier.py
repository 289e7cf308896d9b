"""Where the frozen prefix of a model ends: which of its outputs the rest of the model reads.

Found by autograd, whatever the architecture. The prefix is every outermost call of a wholly frozen module whose output
requires no gradient. A second pass puts a fresh leaf in the place of each of these outputs: the leaves that a gradient
reaches are what the rest reads, and so what is worth keeping. A third one shows what it reads without a gradient.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_freeze.features.answers import Answer, Computed, Frontier, Leaf, Other, Passed, Stored, Unread
from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import (
    Call,
    CallKey,
    Interception,
    Origin,
    Origins,
    intercepted,
    tensors_of,
    wholly_frozen,
)
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.partly_stored import StandIn
from hf_freeze.features.shapes import Layout, fit_dims
from hf_freeze.no_trace import untouched

DifferentiableOutputs = Callable[[dict[str, Any]], Sequence[torch.Tensor]]
"""Runs the model on prepared inputs; returns the tensors whose gradient counts: the loss, and outputs that are kept."""


def find_frontier(model: nn.Module, batches: tuple[Batch, Batch], roots: DifferentiableOutputs) -> Frontier:
    """Find the frontier of what is frozen in `model` now, from two batches that differ in rows and, if any do, lengths.

    Raises `CacheRefused` where there is no frozen prefix, or where its outputs cannot be kept row by row.
    """
    with untouched(model), without_checkpointing(model):
        (first, usual), (second, others) = looks = [_look(model, batch, roots) for batch in batches]
        if first.keys() != second.keys() or any(len(first[key].leaves) != len(second[key].leaves) for key in first):
            raise CacheRefused("the calls of the frozen part differ from batch to batch")
        answers = _answers(looks, batches)
        for look, batch in zip(looks, batches, strict=True):
            _note_what_is_asked_for(model, batch, roots, look[0], answers)
        answers = _answers(looks, batches)
    frontier = Frontier(answers, frozenset(wholly_frozen(model)), usual | others)
    if not frontier.columns:
        raise CacheRefused(
            "nothing that the frozen part computes has one value per row that the rest of the model reads"
        )
    return frontier


_Looks = Sequence[tuple[dict[CallKey, "_SeenCall"], frozenset[CallKey]]]


def _answers(looks: _Looks, batches: tuple[Batch, Batch]) -> dict[CallKey, Answer]:
    (first, _), (second, _) = looks
    columns = count()
    return {
        key: Answer(
            tuple(_classify(key, pair, batches, columns) for pair in zip(seen.leaves, second[key].leaves, strict=True)),
            seen.paths,
            {place: origin for place, origin in seen.given.items() if second[key].given.get(place) == origin},
            seen.spec,
        )
        for key, seen in first.items()
    }


@dataclass
class _SeenLeaf:
    """What a call returned; `read` where a gradient reaches it, `asked` where more is read than the gradient shows."""

    value: Any
    passed: int | None = None
    leaf: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    read: bool = False
    asked: bool = False

    def ask(self) -> torch.Tensor:
        """Return the values, and note that they are asked for."""
        self.asked = True
        value: torch.Tensor = self.value
        return value

    def given(self, arguments: Sequence[torch.Tensor]) -> Any:
        """Return what takes its place: a copy, since the rest of the model may write into what it gets."""
        if self.passed is not None:
            return arguments[self.passed]
        value = self.value if self.leaf is None else self.leaf
        return value.clone() if isinstance(value, torch.Tensor) else value


@dataclass
class _SeenCall:
    leaves: list[_SeenLeaf]
    paths: tuple[str, ...]
    given: dict[int | str, Origin]
    spec: pytree.TreeSpec


def _look(
    model: nn.Module, batch: Batch, roots: DifferentiableOutputs
) -> tuple[dict[CallKey, _SeenCall], frozenset[CallKey]]:
    """Return the calls that make the prefix, and the keys of all calls of frozen modules."""
    modules = wholly_frozen(model)
    seen, usual = _calls_of_prefix(model, modules, batch, roots)

    def replace(call: Call) -> Any:
        if (known := seen.get(call.key)) is None:
            return call.run()
        arguments = tensors_of((call.args, call.kwargs))
        return pytree.tree_unflatten([part.given(arguments) for part in known.leaves], known.spec)

    with torch.enable_grad(), intercepted(model, modules, replace):
        _read_gradients(list(roots(batch.inputs())), seen)
    return seen, usual


def _calls_of_prefix(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch, roots: DifferentiableOutputs
) -> tuple[dict[CallKey, _SeenCall], frozenset[CallKey]]:
    seen: dict[CallKey, _SeenCall] = {}
    usual: set[CallKey] = set()
    origins = Origins(batch.tensors)

    def note(call: Call) -> Any:
        usual.add(call.key)
        given = origins.of(call)
        arguments = tensors_of((call.args, call.kwargs))
        with torch.set_grad_enabled(any(tensor.requires_grad for tensor in arguments)):
            output = call.run()
        if not any(tensor.requires_grad for tensor in tensors_of(output)):
            leaves, spec = pytree.tree_flatten(output)
            seen[call.key] = _SeenCall([_fresh(leaf, arguments) for leaf in leaves], _paths(output), given, spec)
            origins.note(call.key, leaves)
        return output

    with torch.enable_grad(), intercepted(model, modules, note) as interception:
        roots(batch.inputs())
        _refuse_second_pass(interception)
    if not seen:
        raise CacheRefused("no module before the part that trains is frozen as a whole")
    return seen, frozenset(usual)


def _note_what_is_asked_for(
    model: nn.Module,
    batch: Batch,
    roots: DifferentiableOutputs,
    seen: Mapping[CallKey, _SeenCall],
    answers: Mapping[CallKey, Answer],
) -> None:
    """Run the rest of the model on what will replace the prefix, and note what it reads beside what is stored."""

    def stand_in(call: Call) -> Any:
        if (answer := answers.get(call.key)) is None:
            return call.run()
        arguments, parts = tensors_of((call.args, call.kwargs)), seen[call.key].leaves
        leaves = []
        for leaf, part in zip(answer.leaves, parts, strict=True):
            if isinstance(leaf, Stored):
                leaves.append(leaf.standing_in(part.value.clone(), part.ask, batch))
            elif isinstance(leaf, Unread):
                leaves.append(StandIn.of(part.value, part.ask))
            else:
                leaves.append(part.given(arguments))
        return pytree.tree_unflatten(leaves, answer.spec)

    try:
        with torch.no_grad(), untouched(model), intercepted(model, wholly_frozen(model), stand_in):
            roots(batch.inputs())
    except Exception:  # what compiles or traces may not take tensors of a class of their own
        for part in (part for call in seen.values() for part in call.leaves):
            part.asked = True


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
        if not isinstance(one.value, bool | int | float | str):
            return Other(None)
        if one.value != two.value:
            raise CacheRefused(f"{key} returns {one.value!r} for some rows and {two.value!r} for others")
        return Other(one.value)
    if one.passed is not None:
        return Passed(one.passed)
    dims = fit_dims((one.value.shape, two.value.shape), (batches[0].sizes, batches[1].sizes))
    asked = one.asked or two.asked
    if not (one.read or two.read or asked):
        if dims is None:
            raise CacheRefused(
                f"the shape of what {key} returns, {tuple(one.value.shape)}, does not follow from the shapes of the "
                "inputs"
            )
        return Unread(dims, torch.full((), torch.nan, dtype=one.value.dtype, device=one.value.device))
    layout = Layout.of(dims) if dims is not None else None
    if layout is None:
        return Computed()
    parts = [*zip(pair, batches, strict=True)]
    narrowed = layout.narrowed(key, [(part.gradient, batch) for part, batch in parts])
    layout = layout if asked else narrowed
    is_partial = layout.at is not None or layout.keeps_positions
    is_watched = is_partial and not (asked and narrowed.at is None and (one.read or two.read))
    keeps_off = layout.at is None and any(part.read and _has_padding(layout, batch) for part, batch in parts)
    return Stored(next(columns), layout, one.value.dtype, one.value.device, is_watched, keeps_off)


def _has_padding(layout: Layout, batch: Batch) -> bool:
    return layout.positions is not None and not bool(batch.mask(layout.positions).all())


def _refuse_second_pass(interception: Interception) -> None:
    if interception.passes != 1:
        raise CacheRefused(f"computing the loss calls the model {interception.passes} times, not once")


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off, with the hooks by which it makes embeddings require a gradient."""
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
