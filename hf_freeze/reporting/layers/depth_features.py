"""What a head would read at every depth of a model, for all rows, from one pass over them."""

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
from hf_freeze.features.untouched import untouched
from hf_freeze.reporting.layers.head_reads import read, real_tokens, token_that_is_read
from hf_freeze.reporting.layers.labelled_batches import CLASSES
from hf_freeze.reporting.layers.layer_outputs import Note, Place, find_places, run_layers, shapes_of
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.selection.stacks import Stack
from hf_freeze.selection.vocabulary import paths_in_front

_ROWS_FOR_THE_HEAD = 4


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


@dataclass(frozen=True, kw_only=True)
class FeatureReader:
    """How the features of a model are read: how many calls its layers get, where the rows are, what its head reads."""

    calls: int
    places: Mapping[int, Place]
    reads: tuple[str, ...]


def find_reader(model: nn.Module, depths: Depths, source: Source, rows: Sequence[int]) -> FeatureReader:
    """Run a few of `rows`, which come longest first, and find out how to read the features.

    Raises `UnsupportedSetupError` for layers that were not called, or whose rows are not to be told from the rest.
    """
    ends = [rows[0], rows[-1]]
    with untouched(model):
        model.eval()
        calls = _calls(model, depths, source, rows[0])
        # The same rows, once more than once: of one length, so that no dimension but that of the rows changes.
        sides = [_shapes(model, depths, source, chosen, calls) for chosen in (ends, [*ends, rows[0]])]
        places = find_places(sides[0][1], sides[1][1], (sides[0][0], sides[1][0]))
        some = [rows[index] for index in np.linspace(0, len(rows) - 1, min(len(rows), _ROWS_FOR_THE_HEAD), dtype=int)]
        inputs = (_inputs(source, [row]) for row in dict.fromkeys(some))
        token = token_that_is_read(model, depths.top, places[depths.layers], inputs)
    return FeatureReader(calls=calls, places=places, reads=("mean", *token))


def _calls(model: nn.Module, depths: Depths, source: Source, row: int) -> int:
    """Return how many calls of layers a pass makes. A single row: heads without a pad token take no more."""
    called: set[int] = set()
    calls = _run(model, depths, _inputs(source, [row]), lambda depth, _: called.add(depth))
    missing = sorted(set(depths.depth_of.values()) - called)
    if missing:
        raise UnsupportedSetupError(
            f"The model did not call {', '.join(f'{depths.prefix}layers[{depth - 1}]' for depth in missing)}: its "
            "forward uses the weights of these layers in another way, and what they return cannot be seen."
        )
    return calls


def _shapes(
    model: nn.Module, depths: Depths, source: Source, rows: Sequence[int], calls: int
) -> tuple[int, dict[int, list[tuple[int, ...] | None]]]:
    """Return the number of rows in a batch, and the shapes of what layers take and return."""
    shapes: dict[int, list[tuple[int, ...] | None]] = {}
    batch = source.batch(rows).inputs()
    number = len(batch.pop(CLASSES))
    _run(model, depths, batch, lambda depth, tensors: shapes.update({depth: shapes_of(tensors)}), calls)
    return number, shapes


def _inputs(source: Source, rows: Sequence[int]) -> dict[str, Any]:
    return {name: value for name, value in source.batch(rows).inputs().items() if name != CLASSES}


def _run(model: nn.Module, depths: Depths, inputs: dict[str, Any], note: Note, calls: int | None = None) -> int:
    return run_layers(model, depths.modules, depths.depth_of, inputs, note=note, calls=calls)


@dataclass(frozen=True, kw_only=True)
class DepthFeatures:
    """`values`: by depth, (row, feature) float32; `numbers` (row,): the class of each, as the batches number them."""

    values: tuple[NDArray[np.float32], ...]
    numbers: NDArray[np.int64]


def depth_features(
    model: nn.Module,
    depths: Depths,
    reader: FeatureReader,
    source: Source,
    batches: Sequence[Sequence[int]],
    *,
    show_progress: bool,
) -> DepthFeatures:
    """Run all rows through the model once, up to the last layer, and keep what a head would read at every depth.

    Raises `FreezeError` for features that are no numbers.
    """
    values: dict[int, list[torch.Tensor]] = {}
    numbers: list[torch.Tensor] = []
    bar = tqdm(total=sum(map(len, batches)), unit="rows", desc="Features", disable=not show_progress)
    with bar, untouched(model):
        model.eval()
        for chosen, batch in zip(batches, source.batches(batches), strict=True):
            inputs = batch.inputs()
            numbers.append(inputs.pop(CLASSES))
            for depth, hidden in _seen(model, depths, reader, inputs).items():
                values.setdefault(depth, []).append(_features(depth, hidden, reader, inputs, rows=len(numbers[-1])))
            bar.update(len(chosen))
    per_depth = tuple(torch.cat(pieces).numpy() for _, pieces in sorted(values.items()))
    return DepthFeatures(values=per_depth, numbers=torch.cat(numbers).numpy())


def _seen(model: nn.Module, depths: Depths, reader: FeatureReader, inputs: dict[str, Any]) -> dict[int, torch.Tensor]:
    """Return what goes into the first layer, and what each layer returns; where it is called again, the last."""
    seen: dict[int, torch.Tensor] = {}

    def note(depth: int, tensors: list[torch.Tensor]) -> None:
        seen[depth] = reader.places[depth].take(tensors)

    _run(model, depths, inputs, note, reader.calls)
    return seen


def _features(
    depth: int, hidden: torch.Tensor, reader: FeatureReader, inputs: Mapping[str, Any], *, rows: int
) -> torch.Tensor:
    name = f"depth {depth} (after layers[{depth - 1}])" if depth else "depth 0 (before the layers)"
    if len(hidden) != rows:
        raise UnsupportedSetupError(f"Features at {name} have {len(hidden)} rows in a batch of {rows} rows.")
    mask = real_tokens(hidden, inputs)
    parts = [read(hidden, mask, how) for how in (reader.reads if mask is not None else reader.reads[:1])]
    features = torch.cat(parts, dim=1).float().cpu()
    if not bool(torch.isfinite(features).all()):
        raise FreezeError(
            f"Features at {name} hold NaN or infinity. Are the weights whole? A model in float16 can overflow: load it "
            "in float32 or bfloat16."
        )
    return features
