"""Try a model out and leave no trace."""

import random
from collections.abc import Iterator
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
def random_states_kept() -> Iterator[None]:
    """Put the random states of python, numpy and torch, on all devices, back to what they were."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.callback(random.setstate, of_python)
        stack.callback(np.random.set_state, of_numpy)
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        yield


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
