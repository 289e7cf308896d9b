"""Gradient checkpointing where the first layers are frozen."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_freeze.features.frontier import without_input_gradients


def stop_backward_at_lowest_trainable(model: nn.Module) -> Callable[[], None]:
    """Stop the backward pass at the first layer that trains, under gradient checkpointing too; return what undoes it.

    Under reentrant checkpointing a layer gets no gradient unless one of its inputs requires one, so transformers and
    PEFT make embeddings require one. The backward pass then goes through all layers, frozen ones too, and keeps what
    they computed. Here the input of the recomputed layer that trains requires a gradient instead, where checkpointing
    is reentrant; otherwise nothing needs to. For a model that calls torch's `checkpoint` by itself, embeddings go on to
    require one: its layers cannot be told apart.
    """
    undo = ExitStack()
    found = [(module, getattr(module, "_gradient_checkpointing_func", None)) for module in model.modules()]
    by_transformers = [(module, recompute) for module, recompute in found if recompute is not None]
    if by_transformers:
        undo.enter_context(without_input_gradients(model))
    for module, recompute in by_transformers:
        if _is_reentrant(recompute):
            ours: Any = partial(_recompute, recompute, module)
            module._gradient_checkpointing_func = ours
            undo.callback(_put_back, module, ours, recompute)
    return undo.close


def _is_reentrant(recompute: Any) -> bool:
    """Tell whether it is; torch's `checkpoint` is, where nothing was said, as PEFT leaves it for quantised models."""
    return getattr(recompute, "keywords", {}).get("use_reentrant") is not False


def _put_back(module: nn.Module, ours: Any, before: Any) -> None:
    if getattr(module, "_gradient_checkpointing_func", None) is ours:  # and not that of a later run
        module._gradient_checkpointing_func = before


def _recompute(recompute: Callable[..., Any], module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    if any(parameter.requires_grad for parameter in _layer_of(function, module).parameters()):
        args = _requiring_gradient(args)
    return recompute(function, *args)


def _layer_of(function: Callable[..., Any], module: nn.Module) -> nn.Module:
    """Return the layer that is recomputed: `module`, or one that it calls, as older models do."""
    if isinstance(function, partial):
        bound = [*function.args[:1], getattr(function.func, "__self__", None)]
    else:
        bound = [getattr(function, "__self__", None)]
    return next((candidate for candidate in bound if isinstance(candidate, nn.Module)), module)


def _requiring_gradient(args: tuple[Any, ...]) -> tuple[Any, ...]:
    floating = [index for index, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.is_floating_point()]
    if not floating or any(args[index].requires_grad for index in floating):
        return args
    first = floating[0]
    return (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :])
