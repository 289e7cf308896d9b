"""The callback that a FreezeTrainer brings along."""

from collections.abc import Mapping
from typing import Any, Protocol

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_freeze.training.callbacks import FreezeCallback
from hf_freeze.training.planned_training import STATE_KEY, PlannedTraining
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.run_events import RunEvents
from hf_freeze.training.train_calls import while_training


class FollowsRun(Protocol):
    """What a FreezeTrainer does at the moments of a run under its plan."""

    optimizer: Any

    def _bind(self) -> object:
        """Resolve the plan for the model that trains next."""

    def _run_begins(self, run: FreezeRun, state: TrainerState) -> None:
        """Follow a run that has just begun, perhaps from a checkpoint."""

    def _trains_from_here(self, run: FreezeRun) -> None:
        """Prepare for a step that trains other parameters than the step before it, if there was one."""

    def _stage_begins(self, state: TrainerState) -> None:
        """Prepare for the first step of a stage, or of a run that goes on within one."""


class TrainerEvents(RunEvents):
    """The events of a FreezeTrainer, which itself makes the groups, looks at checkpoints and saves."""

    def __init__(self, training: PlannedTraining, trainer: FollowsRun) -> None:
        super().__init__(training)
        self._trainer = trainer
        self._stage: int | None = None
        self._trains: frozenset[str] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze by the plan, and let the Trainer follow the run."""
        training = self._training
        training.end()  # a run that broke off, as under auto_find_batch_size
        self._trainer._bind()  # a subclass may build its optimizer without asking for the groups
        run = training.begin(
            args,
            state,
            kwargs["optimizer"],
            resumed=training.resumed_run(args, state),
            batches=kwargs.get("train_dataloader"),
            is_running=while_training(self),
        )
        self._stage = self._trains = None
        self._trainer._run_begins(run, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enter the stage that this step belongs to; let the Trainer prepare for it where it is the first."""
        run = self._training.step_begins(state.global_step)
        before = self._stage, self._trains
        self._stage, self._trains = run.state.stage, run.trains
        if self._trains != before[1]:
            self._trainer._trains_from_here(run)
        if self._stage != before[0]:
            self._trainer._stage_begins(state)

    def _optimizer_now(self, event: Mapping[str, Any]) -> object:
        return self._trainer.optimizer


# trainer_state.json holds its state by this name, so that either kind of Trainer can read the other's checkpoints.
TrainerEvents.__name__ = STATE_KEY
# So that isinstance(callback, FreezeCallback) finds the callback of a plan under every Trainer.
FreezeCallback.register(TrainerEvents)
