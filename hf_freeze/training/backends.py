"""What each wrapper needs when what is trainable changes. The only file that knows of wrappers."""

import gc
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.selection.model_map import unwrap


def find_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """Find the live DistributedDataParallel wrappers around `model`.

    The Trainer keeps the wrapper in a local variable and hands the bare model to callbacks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return []
    model = unwrap(model)
    return [
        candidate
        for candidate in gc.get_objects()
        # type() and not isinstance, which asks the object for its class and so wakes lazy modules.
        if issubclass(type(candidate), DistributedDataParallel) and unwrap(candidate) is model
    ]


def tell_wrappers(wrappers: Sequence[DistributedDataParallel]) -> None:
    """Let the wrappers know that the `requires_grad` of their parameters changed.

    DistributedDataParallel reduces only the gradients of parameters that required one when its reducer was built:
    what thaws later drifts apart silently. Its own pickling protocol builds the reducer anew, in place.
    Compiled code is dropped, as each set of trainable parameters is a graph of its own and dynamo keeps eight.
    """
    for wrapper in wrappers:
        _rebuild_reducer(wrapper)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    if wrapper.process_group is not dist.group.WORLD:
        raise UnsupportedSetupError(
            "DistributedDataParallel runs in a process group of its own; its reducer can be rebuilt for what thaws "
            "only in the default group. Wrap the model without process_group=, or use a plan without stages."
        )
    hooks = wrapper._comm_hooks
    wrapper.__setstate__(wrapper.__getstate__())  # type: ignore[no-untyped-call]
    for hook, state in hooks:
        _forget_buckets(state)
        dist._register_comm_hook(wrapper.reducer, state, hook)  # type: ignore[attr-defined]


def _forget_buckets(state: object) -> None:
    """Clear what PowerSGD keeps per bucket: the rebuilt reducer has other buckets."""
    for name in ("error_dict", "p_memory_dict", "q_memory_dict"):
        if hasattr(state, name):
            getattr(state, name).clear()
