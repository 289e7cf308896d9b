"""What DistributedDataParallel and DeepSpeed need when other parameters train, and how sharded tensors are read."""

import gc
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.row_parameters import members_held


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


def rebuild_ddp_reducers(wrappers: Sequence[DistributedDataParallel]) -> None:
    """Rebuild the reducers of wrappers after `requires_grad` of their parameters changed.

    DistributedDataParallel reduces only the gradients of parameters that required one when its reducer was built:
    what is unfrozen later drifts apart silently. Its own pickling protocol builds the reducer anew, in place.
    Compiled code is dropped, as each set of trainable parameters is a graph of its own and dynamo keeps eight.
    """
    for wrapper in wrappers:
        _rebuild_reducer(wrapper)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    if wrapper.process_group is not dist.group.WORLD:
        raise UnsupportedSetupError(
            "DistributedDataParallel runs in a process group of its own; its reducer can be rebuilt for what is "
            "unfrozen only in the default group. Wrap the model without process_group=, or use a plan without stages."
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


def uses_master_weights(optimizer: object) -> bool:
    """Tell whether the optimizer steps copies of the weights, as that of a DeepSpeed engine does.

    The copies are made once, of what requires a gradient then, and all of them are stepped in every step, with zeros
    where there is no gradient. `requires_grad` neither freezes nor unfreezes them afterwards; a learning rate and a
    weight decay of 0 freeze. Without ZeRO and in float32 the engine has the optimizer that it was given: False.
    """
    inner = inner_optimizer(optimizer)
    comes_from_deepspeed = any(base.__module__.startswith("deepspeed.") for base in type(inner).__mro__)
    return comes_from_deepspeed and not isinstance(inner, torch.optim.Optimizer)


def group_members(optimizer: torch.optim.Optimizer) -> list[list[torch.Tensor]]:
    """Return the model's parameters in each optimizer group, also where the groups hold copies of them.

    Raises `UnsupportedSetupError` where they are unknown.
    """
    groups = optimizer.param_groups
    if not uses_master_weights(optimizer):
        return [[member for parameter in group["params"] for member in members_held(parameter)] for group in groups]
    inner = inner_optimizer(optimizer)
    kept: list[Any] = next((getattr(inner, name) for name in _GROUPS_OF_ORIGINALS if hasattr(inner, name)), [])
    members = [list(group["params"] if isinstance(group, Mapping) else group) for group in kept]
    if len(members) != len(groups):
        raise UnsupportedSetupError(
            f"{type(inner).__name__} has {len(groups)} groups, but keeps parameters of {len(members)}, so it is "
            "unknown which it steps at which rate. hf_freeze knows the ZeRO and mixed precision optimizers of "
            "DeepSpeed 0.19, with AdamW or SGD inside."
        )
    return members


# ZeRO 1 and 2; ZeRO 3; bfloat16 with float32 gradients; float16 without ZeRO. ZeRO 3 has the last one too, cut smaller.
_GROUPS_OF_ORIGINALS = ("bit16_groups", "trainable_param_groups", "bf16_groups", "fp16_groups")


def inner_optimizer(optimizer: Any) -> Any:
    """Return what accelerate wraps, and any other optimizer as it is."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def is_sharded(tensor: torch.Tensor) -> bool:
    """Tell whether each process holds a piece of its own: a DTensor of FSDP2, a parameter under ZeRO 3."""
    return hasattr(tensor, "to_local") or hasattr(tensor, "ds_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the piece that this process holds of a sharded tensor, and any other tensor as it is."""
    whole: Any = tensor
    if hasattr(whole, "ds_tensor"):
        shard = whole.ds_tensor
        before = dist.get_rank(whole.ds_process_group) * shard.numel()
        whole = shard[: max(whole.ds_numel - before, 0)]  # the last pieces are padded, with what was in memory
    elif hasattr(whole, "to_local"):
        whole = whole.to_local()
    piece: torch.Tensor = whole
    return piece
