"""What a head would read at every depth of a model, for all rows, from one pass over them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.errors import FreezeError, SelectionError, UnsupportedSetupError
from hf_freeze.features.batches import Source
from hf_freeze.features.calls import Call, intercepted
from hf_freeze.features.untouched import untouched
from hf_freeze.reporting.head_reads import hidden_of, read, real_tokens, token_that_is_read
from hf_freeze.selection.language import paths_in_front
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.selection.stacks import Stack

_LABELS = ("labels", "label")


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
    """The largest modules whose parameters are all among `names`, the names that the root gives to them."""
    own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(remove_duplicate=False)]
    if own and names.issuperset(own):
        yield path, module
    elif not names.isdisjoint(own):
        for name, child in module.named_children():
            yield from _largest_within(child, names, f"{path}.{name}" if path else name)


@dataclass(frozen=True, kw_only=True)
class DepthFeatures:
    """`values`: by depth, (row, feature) float32; `labels` (row,); and what was read: "mean", "first", "last"."""

    values: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]
    reads: tuple[str, ...]


def depth_features(
    model: nn.Module, depths: Depths, source: Source, batches: Sequence[Sequence[int]], *, show_progress: bool
) -> DepthFeatures:
    """Run all rows through the model once, and keep what a head would read at every depth."""
    values: dict[int, list[torch.Tensor]] = {}
    labels: list[torch.Tensor] = []
    bar = tqdm(total=sum(map(len, batches)), unit="rows", desc="Features", disable=not show_progress)
    reads: tuple[str, ...] = ()
    with bar, untouched(model):
        model.eval()
        for batch in source.batches(batches):
            inputs = batch.inputs()
            labels.append(_labels(inputs))
            reads = reads or ("mean", *token_that_is_read(model, depths.top, inputs))
            with torch.no_grad():
                seen = _seen(model, depths, inputs)
            for depth, hidden in enumerate(seen):
                mask = real_tokens(hidden, inputs)
                parts = [read(hidden, mask, how) for how in (reads if mask is not None else reads[:1])]
                values.setdefault(depth, []).append(torch.cat(parts, dim=1).float().cpu())
            bar.update(batch.rows)
    per_depth = tuple(torch.cat(pieces).numpy() for _, pieces in sorted(values.items()))
    return DepthFeatures(values=per_depth, labels=torch.cat(labels).numpy(), reads=reads)


def _labels(inputs: dict[str, Any]) -> torch.Tensor:
    found = [inputs.pop(name) for name in _LABELS if name in inputs]
    if not found:
        raise FreezeError(f"A batch holds {sorted(inputs)}, and no labels to learn: name the column 'label'.")
    labels: torch.Tensor = found[0].detach().cpu()
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or bool((labels != labels.long()).any()) or bool((labels < 0).any()):
        raise UnsupportedSetupError(
            f"Labels of shape {tuple(labels.shape)}, {labels.dtype}: a probe at every depth needs one class per row, "
            "0, 1, 2, ..."
        )
    return labels.long()


def _seen(model: nn.Module, depths: Depths, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Return what goes into the first layer, and what each layer returns; where it is called again, the last."""
    seen: dict[int, torch.Tensor] = {}

    def note(call: Call) -> Any:
        depth = depths.depth_of[call.key.name]
        if not seen:
            seen[0] = hidden_of(call.key.name, (call.args, call.kwargs))
        output = call.run()
        seen[depth] = hidden_of(call.key.name, output)
        return output

    with intercepted(model, depths.modules, note):
        model(**inputs)
    missing = sorted({0, *depths.depth_of.values()} - seen.keys())
    if missing:
        raise UnsupportedSetupError(f"The model did not call its layers {[depth - 1 for depth in missing]}.")
    return [seen[depth] for depth in sorted(seen)]


def keep_what_the_model_takes(model: nn.Module, row: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the columns that the model's forward does not take, as the Trainer does."""
    inner: Any = unwrap(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    taken = {*inspect.signature(inner.forward).parameters, *_LABELS}
    return {name: value for name, value in row.items() if name in taken}
