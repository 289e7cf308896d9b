"""Look at a model, or evaluate it, and leave no trace: each function here puts one thing back when its block ends.

It does so when something is raised, too. Whoever looks names what has to be put back:

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
>>> with flags_kept(model), random_states_kept():
...     _ = model.eval(), torch.rand(1)
>>> model.training
True
"""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass leaves: attributes and buffers, train and eval flags, and all random states."""
    with random_states_kept(), flags_kept(model), buffers_kept(model), modules_kept(model):
        yield


def random_states() -> Callable[[], None]:
    """Note the random states of python, numpy and torch, on all devices; return what puts them back, any time.

    A GPU that nothing has used yet is left alone: to ask for its state would start it.
    """
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    of_devices = torch.cuda.get_rng_state_all() if started else []

    def put_back() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_devices:
            torch.cuda.set_rng_state_all(of_devices)

    return put_back


@contextmanager
def random_states_kept(*owners: object) -> Iterator[None]:
    """Put back the random states, and those of the generators that `owners` hold as attributes."""
    with ExitStack() as stack:
        stack.callback(random_states())
        for owner in owners:
            for value in getattr(owner, "__dict__", {}).values():
                if isinstance(value, torch.Generator):
                    stack.callback(value.set_state, value.get_state())
                elif isinstance(value, np.random.Generator):
                    stack.callback(setattr, value.bit_generator, "state", value.bit_generator.state)
                elif isinstance(value, np.random.RandomState):
                    stack.callback(value.set_state, value.get_state())
                elif isinstance(value, random.Random):
                    stack.callback(value.setstate, value.getstate())
        yield


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Put back the train and eval flag of every module, without a call of `train()`, which a model may override."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back the values of the buffers, and of tensors that are plain attributes, of which it takes a copy."""
    plain = (value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    before = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *plain)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in before:
                if tensor.device.type != "meta" and not torch.equal(tensor, values):
                    tensor.copy_(values)


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Set aside the gradients that parameters hold; put them back, and whether each parameter requires one."""
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
def modules_kept(model: nn.Module) -> Iterator[None]:
    """Put back the attributes of every module, of its config, its hooks and its submodules; not the parameters."""
    configs = {id(config): config for config in (getattr(module, "config", None) for module in model.modules())}
    with ExitStack() as stack:
        for module in model.modules():
            # FSDP2 swaps parameters and keeps its state beside the module.
            if not hasattr(module, "reshard"):
                stack.enter_context(_module_kept(module))
        stack.enter_context(attributes_kept(*configs.values()))
        yield


@contextmanager
def _module_kept(module: nn.Module) -> Iterator[None]:
    state = {name: value for name, value in vars(module).items() if name != "_parameters"}
    # Handles point at these very dicts, so they are emptied and filled, not replaced.
    inner = {key: dict(value) for key, value in state.items() if isinstance(value, dict)}
    lists = {key: list(value) for key, value in state.items() if isinstance(value, list | deque)}
    try:
        yield
    finally:
        own = vars(module)
        for key in own.keys() - state.keys() - {"_parameters"}:
            del own[key]
        own.update(state)
        for key, content in inner.items():
            _refill(own[key], content)
        for key, items in lists.items():
            if len(own[key]) != len(items) or any(one is not other for one, other in zip(own[key], items, strict=True)):
                own[key].clear()
                own[key].extend(items)


@contextmanager
def attributes_kept(*owners: Any) -> Iterator[None]:
    """Put back the attributes that `owners` have; those without attributes, such as None, are passed over."""
    before = [(vars(owner), dict(vars(owner))) for owner in owners if hasattr(owner, "__dict__")]
    try:
        yield
    finally:
        for own, attributes in before:
            _refill(own, attributes)


def _refill(own: dict[Any, Any], before: dict[Any, Any]) -> None:
    if list(own) != list(before) or any(own[key] is not before[key] for key in before):
        own.clear()
        own.update(before)


@contextmanager
def tokenizer_kept(tokenizer: Any) -> Iterator[None]:
    """Put back the truncation and padding of a fast tokenizer, which keeps those of its last call."""
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
