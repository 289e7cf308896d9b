"""The memory that a piece of work takes at its peak."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import torch

_EVERY_SECONDS = 0.01

HOW = {
    "cuda": "allocated by torch on the device at the peak (max_memory_allocated), above what was there before",
    "cpu": "resident memory of the process at the peak, looked at 100 times a second, above what was there before",
}
"""How the peak was measured, by kind of device."""


@dataclass
class Peak:
    """The bytes at the peak above those at the start; known once the context is left."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak while the context lasts; see `HOW`."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _give_back()
    watch = _Watch()
    watch.start()
    try:
        yield peak
    finally:
        peak.bytes = watch.end()


class _Watch(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True, name="peak memory")
        self._process = psutil.Process()
        self._over = threading.Event()
        self._before = self._highest = self._now()

    def run(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self._highest = max(self._highest, self._now())

    def end(self) -> int:
        self._over.set()
        self.join()
        return max(self._highest, self._now()) - self._before

    def _now(self) -> int:
        return int(self._process.memory_info().rss)


def _give_back() -> None:
    """Return freed memory to the system: what the allocator keeps from an earlier run would hide this run's peak."""
    with suppress(OSError, AttributeError, TypeError):  # the C library of this system has no such call
        ctypes.CDLL(None).malloc_trim(0)
