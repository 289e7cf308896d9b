"""Whether stored features are what the model computes now."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import set_seed

from hf_freeze.features.answers import Frontier
from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import tensors_of
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.extraction import Forward, captures, stored_rows
from hf_freeze.features.frontier import DifferentiableOutputs
from hf_freeze.features.replay import Replay
from hf_freeze.features.store import Features
from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.no_trace import untouched

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Relative to the largest value. Other rows in a batch change the order of sums, which 8 or 11 bits show."""


def check_still(
    model: nn.Module,
    frontier: Frontier,
    forward: Forward,
    *,
    batches: tuple[Batch, Batch],
    shared: int,
    computed_in: torch.dtype | None = None,
) -> dict[int, torch.Tensor]:
    """Compare the last rows of two batches, which they share, under different random numbers.

    Return what was captured of the first batch. Raises `CacheRefused` where the frozen part is random, or where a row
    depends on the others of its batch.
    """
    with untouched(model), captures(model, [frontier]) as capture:
        seen = []
        for seed, batch in ((1, batches[0]), (2, batches[0]), (3, batches[1])):
            set_seed(seed)
            seen.append(capture(forward, batch)[0])
    for column, (key, _, layout) in frontier.columns.items():
        first, again = (stored_rows(seen[index][column], layout, batches[0]) for index in (0, 1))
        if _difference(again.values, first.values) > _tolerance(first.values.dtype):
            raise CacheRefused(
                f"what {key} returns is random: dropout in front of it or between frozen modules is on"
                f"{_named(_training_dropout(model, frontier))}. Set its p, or the configuration's dropout, to 0"
            )
        one, other = first.last(shared), stored_rows(seen[2][column], layout, batches[1]).last(shared)
        if _difference(other, one) > _tolerance(one.dtype, computed_in):
            raise CacheRefused(
                f"what {key} returns for a row depends on the other rows of its batch or on their padding"
            )
    first_seen: dict[int, torch.Tensor] = seen[0]
    return first_seen


def _training_dropout(model: nn.Module, frontier: Frontier) -> list[str]:
    """Name the dropout modules in train mode that lie next to frozen modules."""
    parents = {key.name.rpartition(".")[0] for key in frontier.answers}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.training and module.p > 0 and name.rpartition(".")[0] in parents
    ]


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(map(repr, names))})" if names else ""


def reads_labels(
    model: nn.Module,
    frontier: Frontier,
    forward: Forward,
    *,
    batch: Batch,
    labels: Collection[str],
    captured: Mapping[int, torch.Tensor] | None = None,
) -> bool:
    """Tell whether the features depend on the labels, as where a decoder's inputs are made from them.

    `captured` are the features of `batch`, as `check_still` returns them, where they are known.
    """
    given = [name for name in labels if isinstance(batch.tensors.get(name), torch.Tensor)]
    if len(given) < sum(batch.tensors.get(name) is not None for name in labels):
        return True
    if not given:
        return False
    made = _MadeOf([batch.tensors[name] for name in given])
    with untouched(model), captures(model, [frontier]) as capture:
        set_seed(1)
        with made:
            found = capture(forward, batch)[0]
        if any(map(made.has, found.values())):  # also where it does not show in these rows
            return True
        captured = found if captured is None else captured
        for changed in (_other_values, _ignored_elsewhere):
            others = {name: changed(batch.tensors[name]) for name in given}
            set_seed(1)
            try:
                found = capture(forward, Batch({**batch.tensors, **others}))[0]
            except (RuntimeError, ValueError, IndexError, CacheRefused):
                return True
            same_shapes = all(found[column].shape == value.shape for column, value in captured.items())
            if not same_shapes or any(_difference(found[column], value) > 0 for column, value in captured.items()):
                return True
    return False


class _MadeOf(TorchFunctionMode):
    """Follows what torch makes of tensors, and of that, while the context lasts."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._by_memory: dict[int, torch.Tensor] = {}  # kept, so that nothing else gets their memory
        self._note(tensors)

    def has(self, value: Any) -> bool:
        """Tell whether anything in a nested value was made of them."""
        return any(_memory(tensor) in self._by_memory for tensor in tensors_of(value))

    def _note(self, value: Any) -> None:
        self._by_memory.update((_memory(tensor), tensor) for tensor in tensors_of(value))

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if self.has((args, kwargs)):
            self._note(args[:1] if made is None else made)  # x[...] = y returns nothing
        return made


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _other_values(labels: torch.Tensor) -> torch.Tensor:
    return torch.where(labels == IGNORED_LABEL, labels, labels.float().add(1).to(labels.dtype))


def _ignored_elsewhere(labels: torch.Tensor) -> torch.Tensor:
    if labels.dtype is torch.bool or labels.dtype is torch.uint8:
        return ~labels
    return torch.where(labels == IGNORED_LABEL, 0, IGNORED_LABEL).to(labels.dtype)


def check_stored(
    model: nn.Module,
    frontier: Frontier,
    features: Features,
    *,
    forward: Forward,
    batch: Batch,
    places: torch.Tensor,
    computed_in: torch.dtype | None = None,
) -> float:
    """Compute the features of these rows again; return the largest difference, relative to the largest value.

    Raises `CacheRefused` where they are not what is stored.
    """
    with untouched(model), captures(model, [frontier]) as capture:
        (seen,) = capture(forward, batch)
    worst = 0.0
    for column, (key, _, layout) in frontier.columns.items():
        now = stored_rows(seen[column], layout, batch).values
        mask = batch.mask(layout.positions).cpu() if layout.keeps_positions and layout.positions else None
        stored = features.rows(column, places, mask).cpu()
        stored = stored if mask is None else stored[mask]
        difference = _difference(stored, now)
        if not difference <= _tolerance(now.dtype, stored.dtype, computed_in):
            raise CacheRefused(
                f"what is stored of {key} is not what the model computes now (it differs by {difference:.2g} of the "
                "largest value). If the code of the model has changed, delete the folder of features"
            )
        worst = max(worst, difference)
    return worst


def check_replay(
    model: nn.Module,
    replay: Replay,
    *,
    roots: DifferentiableOutputs,
    batch: Batch,
    places: torch.Tensor,
    computed_in: torch.dtype | None = None,
) -> None:
    """Compare the loss and the outputs of these rows with stored features and without.

    Raises `CacheRefused` where they are not the same.
    """
    with untouched(model), torch.no_grad():
        with untouched(model):  # a head may remember, and the second pass begin where the first one did
            expected = roots(batch.inputs())
        try:
            with replay.of(places, batch):
                found = roots(batch.inputs())
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise CacheRefused(f"the rest of the model does not run on stored features ({error})") from error
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape or not _difference(other, one) <= 10 * _tolerance(one.dtype, computed_in):
            raise CacheRefused("the loss or the outputs on stored features differ from those of the whole model")


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    if not other.numel():
        return 0.0
    one, other = one.double(), other.double().to(one.device)
    largest = other[other.isfinite()].abs().max().item() if other.isfinite().any() else 0.0
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (one - other).abs())
    return apart.max().item() / max(largest, 1e-12)


def _tolerance(*types: torch.dtype | None) -> float:
    """Return the tolerance of the coarsest type: values may be computed under autocast and then widened."""
    return max((_TOLERANCE.get(dtype, 0.0) for dtype in types if dtype is not None), default=0.0)
