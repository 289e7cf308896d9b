"""Tensors that are made of others, such as what torchao quantises."""

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that hold the values of a tensor: itself, or what a subclass wraps."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts_of(getattr(tensor, name))]


def bytes_of(tensor: torch.Tensor) -> int:
    """Return how much memory the values of a tensor take."""
    return sum(part.numel() * part.element_size() for part in parts_of(tensor))
