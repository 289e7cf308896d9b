"""What a launched script does in each of its processes."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from accelerate import PartialState


@contextmanager
def process_group(*, cpu: bool = True) -> Iterator[None]:
    """Start the process group, which decides on the batch size; end it when all processes have come so far."""
    if cpu:
        # Otherwise each gets "cpu:0", from which transformers below 5.24 cannot load the state of an optimizer.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    PartialState(cpu=cpu)
    yield
    dist.barrier()
    dist.destroy_process_group()
    atexit.register(_leave_at_once)


def _leave_at_once() -> None:
    """End without tearing the interpreter down: a thread of gloo that still lets go of a tensor would abort it.

    See pytorch issue 190489; on a busy machine, all work being done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
