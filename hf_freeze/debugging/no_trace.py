"""Look at a model and leave it as it was: flags, random states, gradients, buffers, hooks, attributes."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, *owners: Any, tokenizer: Any = None) -> Iterator[None]:
    """Put back, at the end and when something is raised, whatever a forward or backward pass leaves in `model`.

    `owners` (a Trainer) get back the attributes that they had; `tokenizer` its truncation and padding. Gradients that
    parameters hold are set aside meanwhile. Costs a copy of the buffers, and nothing per parameter.
    """
    configs = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if hasattr(c, "__dict__")}
    with ExitStack() as stack:
        stack.enter_context(_random_states())
        stack.enter_context(_parameters(model))
        for module in model.modules():
            stack.enter_context(_module(module))
        for owner in (*configs.values(), *(owner for owner in owners if owner is not None)):
            stack.enter_context(_attributes(owner))
        stack.enter_context(_tokenizer(tokenizer))
        yield


@contextmanager
def _random_states() -> Iterator[None]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def _parameters(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires, gradient in before:
            if parameter.requires_grad is not requires:
                parameter.requires_grad_(requires)
            parameter.grad = gradient


@contextmanager
def _module(module: nn.Module) -> Iterator[None]:
    # FSDP2 swaps parameters and keeps its state beside the module: there, its flags alone are put back.
    state = {"training": module.training} if hasattr(module, "reshard") else dict(vars(module))
    state.pop("_parameters", None)
    # Handles point at these very dicts, so they are emptied and filled, not replaced.
    inner = {key: dict(value) for key, value in state.items() if key.startswith("_") and isinstance(value, dict)}
    buffers = [(buffer, buffer.detach().clone()) for buffer in module._buffers.values() if buffer is not None]
    try:
        yield
    finally:
        own = vars(module)
        if len(state) > 1:
            for key in own.keys() - state.keys() - {"_parameters"}:
                del own[key]
        own.update(state)
        for key, content in inner.items():
            if _differs(own[key], content):
                own[key].clear()
                own[key].update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                if buffer.device.type != "meta" and not torch.equal(buffer, value):
                    buffer.copy_(value)


def _differs(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return list(now) != list(before) or any(now[key] is not before[key] for key in before)


@contextmanager
def _attributes(owner: Any) -> Iterator[None]:
    before = dict(vars(owner))
    try:
        yield
    finally:
        own = vars(owner)
        if _differs(own, before):
            own.clear()
            own.update(before)


@contextmanager
def _tokenizer(tokenizer: Any) -> Iterator[None]:
    """A fast tokenizer keeps the truncation and padding of its last call."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "no_truncation") or not hasattr(backend, "no_padding"):
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()
