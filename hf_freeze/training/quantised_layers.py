"""Layers that bitsandbytes quantised, which compute otherwise in eval mode on a CPU.

8-bit layers then round what they are given, too. 4-bit ones, once nothing asks for a gradient, round their scales and
repack their weight for a kernel that passes no gradient on: an evaluation would change the model, and nothing below the
last of these layers would train from there on.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def eight_bit_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules with a weight of 8 bits."""
    return [module for module in model.modules() if hasattr(getattr(module, "weight", None), "SCB")]


def four_bit_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules with a weight of 4 bits."""
    return [module for module in model.modules() if hasattr(getattr(module, "weight", None), "quant_state")]


def unpack(four_bit: Iterable[nn.Module]) -> None:
    """Bring weights of 4 bits back into the layout in which they are trained and saved."""
    for layer in four_bit:
        weight: Any = layer.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            layer.state_dict()
