"""What a launched script does in each of its processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate import PartialState


@contextmanager
def process_group(*, cpu: bool = True) -> Iterator[None]:
    """Start the process group, which decides on the batch size; end it when all processes have come so far."""
    PartialState(cpu=cpu)
    yield
    dist.barrier()
    dist.destroy_process_group()
