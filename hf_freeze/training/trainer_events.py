"""The callback that a FreezeTrainer brings along."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_freeze.training.callbacks import FreezeCallback
from hf_freeze.training.planned_training import STATE_KEY, PlannedTraining
from hf_freeze.training.run_events import RunEvents
from hf_freeze.training.train_calls import while_training


class TrainerEvents(RunEvents):
    """The events of a FreezeTrainer, which itself makes the groups, looks at checkpoints and saves."""

    def __init__(
        self,
        training: PlannedTraining,
        *,
        bind: Callable[[], object],
        begin_loss_window: Callable[[Mapping[str, Any]], None],
    ) -> None:
        super().__init__(training)
        self._bind = bind
        self._begin_loss_window = begin_loss_window

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze by the plan, and go on with the loss of an interrupted run."""
        training = self._training
        training.end()  # a run that broke off, as under auto_find_batch_size
        self._bind()  # a subclass may build its optimizer without asking for the groups
        training.begin(
            args,
            state,
            kwargs["optimizer"],
            resumed=training.resumed_run(args, state),
            batches=kwargs.get("train_dataloader"),
            is_running=while_training(self),
        )
        self._begin_loss_window(training.saved_loss_window(state) if state.global_step else {})


# trainer_state.json holds its state by this name, so that either kind of Trainer can read the other's checkpoints.
TrainerEvents.__name__ = STATE_KEY
# So that isinstance(callback, FreezeCallback) finds the callback of a plan under every Trainer.
FreezeCallback.register(TrainerEvents)
