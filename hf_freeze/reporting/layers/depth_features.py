"""The features that a head would read at every depth of a model, for all rows, from one pass over them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.features.batches import Source
from hf_freeze.no_trace import untouched
from hf_freeze.reporting.layers.head_reads import read, real_tokens, token_that_is_read
from hf_freeze.reporting.layers.labelled_batches import CLASSES
from hf_freeze.reporting.layers.layer_outputs import Depths, Place, find_places, run_layers, shapes_of

_ROWS_FOR_THE_HEAD = 4


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
        # The same rows, once repeated: of one length, so that no dimension but that of the rows changes.
        sides = [_shapes(model, depths, source, chosen, calls) for chosen in (ends, [*ends, rows[0]])]
        places = find_places(sides[0][1], sides[1][1], (sides[0][0], sides[1][0]))
        some = [rows[index] for index in np.linspace(0, len(rows) - 1, min(len(rows), _ROWS_FOR_THE_HEAD), dtype=int)]
        inputs = (_inputs(source, [row]) for row in dict.fromkeys(some))
        token = token_that_is_read(model, depths.top, places[depths.layers], inputs)
    return FeatureReader(calls=calls, places=places, reads=("mean", *token))


def _calls(model: nn.Module, depths: Depths, source: Source, row: int) -> int:
    """Return how many calls of layers a pass makes. A single row: heads without a pad token take no more."""
    called: set[int] = set()
    calls = run_layers(model, depths, _inputs(source, [row]), note=lambda depth, _: called.add(depth))
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

    def note(depth: int, tensors: list[torch.Tensor]) -> None:
        shapes[depth] = shapes_of(tensors)

    run_layers(model, depths, batch, note=note, calls=calls)
    return number, shapes


def _inputs(source: Source, rows: Sequence[int]) -> dict[str, Any]:
    return {name: value for name, value in source.batch(rows).inputs().items() if name != CLASSES}


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

    Raises `FreezeError` for features that are not finite.
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

    run_layers(model, depths, inputs, note=note, calls=reader.calls)
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
