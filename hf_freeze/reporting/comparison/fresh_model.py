"""The model that every run of a comparison begins with: built anew each time, and equal under the same seed."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison.described import describe_model
from hf_freeze.training.digests import digests


@dataclass(frozen=True)
class _Build:
    """What a built model is: its weights and buffers, digested, and what else it consists of."""

    weights: dict[str, Any]
    description: dict[str, Any]


def weights_of(model: nn.Module) -> dict[str, Any]:
    """Name -> type, shape and digest of each parameter and buffer."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: [str(tensors[name].dtype), list(tensors[name].shape), value] for name, value in digests(tensors).items()
    }


def check_model_init(build: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model twice, one after the other; return the second, and what describes both.

    Raises `FreezeError` where they share parameters, so that a run would go on training those of the one before, and
    where they begin with different weights.
    """
    first = _built(build)
    weights, description = weights_of(first), describe_model(first)
    alive = [weakref.ref(tensor) for tensor in (*first.parameters(), *first.buffers())]
    del first
    gc.collect()
    model = _built(build)
    known = {id(tensor) for ref in alive if (tensor := ref()) is not None}
    shared = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if id(tensor) in known]
    if shared:
        raise FreezeError(
            f"model_init returned the same model twice: both calls gave the same {shared[0]!r} (and {len(shared) - 1} "
            "more tensors). Every run would go on training the weights of the run before it. Build the model inside "
            "model_init, or return copy.deepcopy(model)."
        )
    again = weights_of(model)
    if different := [name for name in (*weights, *again) if weights.get(name) != again.get(name)]:
        raise FreezeError(
            f"model_init returned different weights under the same seed: {different[0]!r} and {len(different) - 1} "
            "more. The runs would not start alike. Let new weights depend only on the seed that is set before "
            "model_init is called."
        )
    # What differs between two builds, such as a time of creation, says nothing of the run.
    later = describe_model(model)
    return model, {name: value for name, value in description.items() if later.get(name) == value}


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    model = build()
    if not isinstance(model, nn.Module):
        raise FreezeError(f"model_init returned a {type(model).__name__}; it must return a newly built nn.Module.")
    return model
