"""Formulas for floating-point operations: torch's, and others for what it lacks or counts wrongly."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_aten = torch.ops.aten
_GROUPED_MM: Any = getattr(_aten, "_grouped_mm", None)  # torch 2.8 has it on other backends only


def operation_counter() -> FlopCounterMode:
    """Return torch's counter of floating-point operations, with formulas for what it lacks or counts wrongly."""
    return FlopCounterMode(display=False, custom_mapping=_ADDED)


class GroupedProductsOfAnyType(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets the products of experts have any type, as where there are values; without them, torch knows bfloat16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket is not _GROUPED_MM or args[0].dtype is torch.bfloat16:
            return func(*args, **(kwargs or {}))
        first, second, *rest = args
        return func(first.bfloat16(), second.bfloat16(), *rest, **(kwargs or {})).to(first.dtype)


def _of_experts(first: torch.Size, second: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Operations of a grouped product: each row meets the matrix of one group."""
    groups = first[0] if len(first) == len(second) == 3 else 1
    return 2 * groups * first[-2] * first[-1] * second[-1]


def _of_convolution_backward(
    gradient: torch.Size,
    inputs: torch.Size,
    weight: torch.Size,
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
    places = (inputs if transposed else gradient)[2:]
    return 2 * inputs[0] * math.prod(places) * math.prod(weight) * sum(wanted[:2])


def _by_shape(operation: Any) -> Callable[..., int]:
    formula: Callable[..., int] = flop_registry[operation].__wrapped__  # the counter wraps it once more
    return formula


_ADDED: dict[Any, Callable[..., int]] = {
    _aten.convolution_backward: _of_convolution_backward,
    **({_GROUPED_MM: _of_experts} if _GROUPED_MM else {}),
    # The fused attention of the CPU, which torch's table leaves out, takes what that of the GPU does.
    _aten._scaled_dot_product_flash_attention_for_cpu: _by_shape(_aten._scaled_dot_product_flash_attention),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _by_shape(
        _aten._scaled_dot_product_flash_attention_backward
    ),
}
