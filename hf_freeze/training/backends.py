"""What each wrapper needs when what is trainable changes. The only file that knows of wrappers."""

import gc

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_freeze.selection.model_map import unwrap


def tell_wrappers(model: nn.Module) -> None:
    """Let the wrappers around `model` know that the `requires_grad` of its parameters changed.

    DistributedDataParallel reduces only the gradients of parameters that required one when its reducer was built:
    what thaws later drifts apart silently. Its own pickling protocol builds the reducer anew in place.
    """
    for wrapper in _live_wrappers(unwrap(model)):
        wrapper.__setstate__(wrapper.__getstate__())  # type: ignore[no-untyped-call]


def _live_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    # The Trainer keeps the wrapper in a local variable, and callbacks are handed the bare model.
    return [
        candidate
        for candidate in gc.get_objects()
        if isinstance(candidate, DistributedDataParallel) and unwrap(candidate) is model
    ]
