"""Which `train()` call of a Trainer runs now, read off the stack: no event tells that an exception ended one."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any
from weakref import ref

from transformers import Trainer, TrainerCallback

_TRAIN = inspect.unwrap(Trainer.train).__code__


def while_training(callback: TrainerCallback) -> Callable[[], bool]:
    """Return a function that says whether the present `train()` call still runs and has `callback` among its callbacks.

    Where no Trainer is found on the stack, because its `train()` is its own, the answer is always yes.
    """
    thread = threading.get_ident()
    call = train_call()
    if call is None:
        return lambda: True
    mine, me = ref(call["self"]), ref(callback)

    def is_running() -> bool:
        # No object made by the call would show it: a traceback that somebody keeps also keeps all of them alive.
        found = next((call["self"] for call in _train_calls_in(thread) if call["self"] is mine()), None)
        return found is not None and any(one is me() for one in found.callback_handler.callbacks)

    return is_running


def running_trainer(callback: TrainerCallback) -> Trainer | None:
    """Return the Trainer whose `train()` runs in this thread, if `callback` is among its callbacks."""
    call = train_call()
    return call["self"] if call and callback in call["self"].callback_handler.callbacks else None


def train_call() -> Mapping[str, Any] | None:
    """Return the Trainer (`self`) whose `train()` runs in this thread, with its arguments; the innermost of several."""
    return next(_train_calls_in(threading.get_ident()), None)


def _train_calls_in(thread: int) -> Iterator[Mapping[str, Any]]:
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is _TRAIN:
            yield frame.f_locals
        frame = frame.f_back
