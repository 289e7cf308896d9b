"""Try a model out and leave no trace."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers, train and eval flags and all random states back to what they were."""
    buffers = {name: (buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    with random_states_kept():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers.values():
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
            for module, mode in training.items():
                module.training = mode


@contextmanager
def random_states_kept(*owners: object) -> Iterator[None]:
    """Put the random states of python, numpy and torch, on all devices, back to what they were.

    Those of the generators that `owners` hold as attributes, too.
    """
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


def random_states() -> Callable[[], None]:
    """Note the random states of python, numpy and torch, on all devices; return what puts them back, any time."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def put_back() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        for device, state in enumerate(of_devices):
            torch.cuda.set_rng_state(state, device)

    return put_back


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
