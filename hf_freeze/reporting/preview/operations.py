"""Floating-point operations by formula: torch's table, with what it lacks or counts wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten


class OperationCount(TorchDispatchMode):
    """Counts floating-point operations while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (flops := _FLOPS.get(func._overloadpacket)) is not None:
            self.count += flops(*args, **kwargs, out_val=result)
        return result


class GroupedProductsOfAnyType(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets the products of experts have any type, as where there are values; without them, torch knows bfloat16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket is not _aten._grouped_mm or args[0].dtype is torch.bfloat16:
            return func(*args, **(kwargs or {}))
        first, second, *rest = args
        return func(first.bfloat16(), second.bfloat16(), *rest, **(kwargs or {})).to(first.dtype)


def _of_experts(first: torch.Tensor, second: torch.Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    """Operations of a grouped product: each row meets the matrix of one group."""
    groups = first.shape[0] if first.dim() == second.dim() == 3 else 1
    return 2 * groups * first.shape[-2] * first.shape[-1] * second.shape[-1]


def _of_convolution_backward(
    gradient: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **kwargs: Any,
) -> int:
    """Operations of the gradients that are wanted, of input and weight; either takes what the forward pass takes.

    The weight's shape has the channels of one group only. torch's formula of its gradient takes those of all groups.
    """
    places = (inputs if transposed else gradient).shape[2:]
    return 2 * inputs.shape[0] * math.prod(places) * weight.numel() * sum(wanted[:2])


_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten.convolution_backward: _of_convolution_backward,
    _aten._grouped_mm: _of_experts,
    # The fused attention of the CPU, which torch's table leaves out, takes what that of the GPU does.
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
