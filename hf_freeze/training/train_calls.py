"""Which `train()` call of a Trainer runs now, read off the stack: a callback is not told when an exception ends one."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from weakref import ref

from transformers import Trainer, TrainerCallback

_TRAIN = inspect.unwrap(Trainer.train).__code__


def while_training(callback: TrainerCallback) -> Callable[[], bool]:
    """Return what tells whether the present `train()` call still runs and has `callback` among its callbacks.

    Where no Trainer is found on the stack, because its `train()` is its own, the answer is always yes.
    """
    thread = threading.get_ident()
    trainer = next(_trainers_in(thread), None)
    if trainer is None:
        return lambda: True
    mine, me = ref(trainer), ref(callback)

    def is_running() -> bool:
        # Nothing that the call made would tell: a traceback that somebody keeps keeps all of it alive.
        found = next((one for one in _trainers_in(thread) if one is mine()), None)
        return found is not None and any(one is me() for one in found.callback_handler.callbacks)

    return is_running


def _trainers_in(thread: int) -> Iterator[Trainer]:
    """Trainers whose `train()` is on the stack of this thread, the innermost first."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is _TRAIN:
            yield frame.f_locals["self"]
        frame = frame.f_back
