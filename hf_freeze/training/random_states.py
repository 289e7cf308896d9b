"""Evaluating, predicting and saving leave the random states of a run as they were.

The loader of an evaluation draws a seed from torch's global generator, and a metric or a collator may draw more.
Without this, the weights would depend on when a run evaluates, and a run resumed at a checkpoint saved before
the evaluation of its step would differ from the one that went on.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback

from hf_freeze.no_trace import random_states, random_states_kept
from hf_freeze.training.attributes import replaced
from hf_freeze.training.train_calls import while_training

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class RandomStatesTrainerMixin(_Base):
    """Keeps random states while `train()` evaluates, predicts or saves; outside of `train()` they move as usual."""

    _is_training = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train."""
        with replaced(self, _is_training=True):
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and leave the random states of training as they were."""
        return self._unmoved(super().evaluate, *args, **kwargs)  # type: ignore[no-any-return]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict, and leave the random states of training as they were."""
        return self._unmoved(super().predict, *args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        return self._unmoved(super()._evaluate, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Called after every step; noting the random states is slow compared with a step on cached features.
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._unmoved(super()._maybe_log_save_evaluate, *args, **kwargs)
        else:
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _unmoved(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_training:
            return call(*args, **kwargs)
        with random_states_kept():
            return call(*args, **kwargs)


class RandomStatesCallback(TrainerCallback):
    """Does the same inside any other Trainer, as far as a callback can: for the evaluations and saves of its own loop.

    It must come last: what other callbacks draw at the end of a step is part of the run, and there is no event between
    them and the evaluation.
    """

    def __init__(self) -> None:
        self._put_back: Callable[[], None] | None = None
        self._is_running: Callable[[], bool] = lambda: True

    def __reduce__(self) -> tuple[Any, ...]:
        return RandomStatesCallback, ()  # a copy notes its own

    def keep_no_longer(self) -> None:
        """Let the random states move from here on."""
        self._put_back = None

    def _note(self, *args: Any, **kwargs: Any) -> None:
        self._put_back = random_states()

    def _restore(self, *args: Any, **kwargs: Any) -> None:
        if self._put_back and self._is_running():  # an exception may have ended the run, which no event reports
            self._put_back()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note the random states."""
        self._is_running = while_training(self)
        self._note()

    on_step_end = on_epoch_end = _note
    on_evaluate = on_predict = on_save = _restore
