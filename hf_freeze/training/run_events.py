"""Passes on to the training under a plan those events that every kind of Trainer has."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_freeze.plan.freeze_plan import FreezePlan, ResolvedPlan
from hf_freeze.training.missed_evaluation import make_up
from hf_freeze.training.planned_training import PlannedTraining
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.train_calls import running_trainer


class RunEvents(TrainerCallback, ExportableState):
    """Reports to `PlannedTraining` what happens in a run; subclasses say how one begins in their kind of Trainer."""

    def __init__(self, training: PlannedTraining) -> None:
        self._training = training

    @property
    def plan(self) -> FreezePlan:
        """The plan that was declared."""
        return self._training.plan

    @property
    def settings(self) -> FreezeSettings:
        """How it is carried out."""
        return self._training.settings

    @property
    def resolved(self) -> ResolvedPlan | None:
        """What the plan means for the model; None before a model is known."""
        return self._training.bound.resolved if self._training.bound else None

    @property
    def stage(self) -> int | None:
        """The stage that the run is in; None outside training."""
        return self._training.stage

    def planned_now(self) -> list[frozenset[str]]:
        """Return sets of names, one of which should be what requires gradients now; none before a model is known.

        Between runs that is the set of any stage, or of all: what trains later stays trainable for the optimizer.
        """
        return self._training.planned_now()

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into `trainer_state.json`: how to build this callback again."""
        return self._training.state()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the evaluation that a checkpoint lacks; draw the order of the epoch as the interrupted run did."""
        if self._training.misses_evaluation:
            make_up()
        self._training.epoch_order.epoch_begins()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enter the stage that this step belongs to, and set its learning rates."""
        self._training.step_begins(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rates and the gradients of this step."""
        self._refuse_another_optimizer(kwargs)
        self._training.before_optimizer_step(args, state)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what has moved; from here on the scheduler's own rates apply again."""
        self._training.after_optimizer_step()
        self._refuse_another_optimizer(kwargs)

    def _refuse_another_optimizer(self, event: Mapping[str, Any]) -> None:
        self._training.require_optimizer(self._optimizer_now(event))

    def _optimizer_now(self, event: Mapping[str, Any]) -> object:
        """Return the optimizer that the Trainer has now: its events go on handing over the first one."""
        trainer = running_trainer(self)
        return event["optimizer"] if trainer is None else trainer.optimizer

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze again what the computation of the loss made trainable."""
        self._training.micro_batch_ends()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prove that frozen weights did not change, while the weights are still those of the run."""
        if args.load_best_model_at_end:
            self._training.verify()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check whether the plateau that the plan is waiting for has been reached."""
        self._training.evaluated(metrics, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save what trains beside the model."""
        self._training.save_beside(args, state, kwargs["optimizer"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the learning rate per group, the stage and the number of trainable parameters to the training logs."""
        if logs is None:
            return
        if "loss" in logs:
            missing = {name: value for name, value in self._training.log_entries(logs).items() if name not in logs}
            logs.update(missing)
            state.log_history[-1].update(missing)
        if {"train_runtime", "train_loss"} <= logs.keys():  # include_num_input_tokens_seen puts the first into any log
            # Of the events after the last step the only one that no other follows but the end. The best checkpoint is
            # loaded after it, up to transformers 5.0 before it.
            has_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
            self._training.conclude(is_verified=has_best)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Release the model; under PEFT, load what the best checkpoint has beside the adapter."""
        self._training.end()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._training.load_thawed(kwargs["model"], state.best_model_checkpoint)
