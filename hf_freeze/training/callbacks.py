"""`FreezeCallback`: a freeze plan for any existing Trainer."""

import gc
import os
from abc import ABCMeta
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.given import PlanLike, as_plan
from hf_freeze.selection.language import Selection
from hf_freeze.training import checkpoint
from hf_freeze.training.class_weights import refuse_unapplied
from hf_freeze.training.freezing import set_trainable
from hf_freeze.training.groups import refuse_groups_of_another_plan, refuse_left_out
from hf_freeze.training.loss_scaling import CountProbe
from hf_freeze.training.planned_training import PlannedTraining
from hf_freeze.training.random_states import RandomStatesCallback
from hf_freeze.training.renamed_weights import load_by_any_name
from hf_freeze.training.run_events import RunEvents
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.setup import is_whole
from hf_freeze.training.train_calls import running_trainer, train_call, while_training
from hf_freeze.training.whole import require_whole


class FreezeCallback(RunEvents, metaclass=ABCMeta):
    """Freeze by a plan inside any Trainer: `Trainer(..., callbacks=[FreezeCallback(plan)])`.

    The plan is resolved for the model when the Trainer is built, so that a mistake shows at once, before the first
    step.

    Args:
        plan: A `FreezePlan`, its mapping, a recipe's name such as "last-layers:2", or the path of a YAML or JSON file.
        freeze: Instead of `plan`, what a plan without stages freezes.
        trainable: Instead of `plan`, what a plan without stages trains.
        frozen_eval: Keep frozen modules in eval mode while training.
        verify: Prove at each transition, each save and the end that frozen weights did not change, trainable ones did
            and replicas are equal, and raise `FreezeViolation` otherwise.
        unfreeze_warmup: Ramp up the learning rate of what is unfrozen over a number of steps (1 or more) or a fraction
            of the run (below 1). It needs optimizer groups that are unfrozen as a whole, as `param_groups` builds them.
        log_grad_norms: Log `grad_norm/<group>` for every optimizer group beside `grad_norm`, the norm before clipping.

    Raises:
        PlanError: Unless exactly one of `plan`, `freeze` and `trainable` is given, or for a setting of another type.
            When the Trainer is built, for a plan under which nothing would train.
        SelectionError: When the Trainer is built, for what matches nothing in the model.
        UnsupportedSetupError: When the Trainer is built, for an optimizer, a precision or a wrapper that cannot honour
            the plan.
    """

    def __init__(
        self,
        plan: PlanLike | None = None,
        *,
        freeze: Selection | None = None,
        trainable: Selection | None = None,
        frozen_eval: bool = True,
        verify: bool = True,
        unfreeze_warmup: float = 0.0,
        log_grad_norms: bool = False,
    ) -> None:
        declared = _one_plan(plan, freeze=freeze, trainable=trainable)
        settings = FreezeSettings(
            frozen_eval=frozen_eval, verify=verify, unfreeze_warmup=unfreeze_warmup, log_grad_norms=log_grad_norms
        )
        super().__init__(PlannedTraining(declared, settings, key=type(self).__name__))
        self._random_states = RandomStatesCallback()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles keep what was declared, but neither the model nor the run.
        declared = PlannedTraining(self.plan, self.settings, key=type(self).__name__)
        return {**vars(self), "_training": declared}

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into `trainer_state.json`: how to build this callback again.

        The Trainer also asks for it when `train()` begins, before it loads an optimizer's state. A checkpoint of
        another plan is refused then: torch would only say that the number of groups differs.
        """
        if self._training.run is None:
            self._look_at_checkpoint()
        return super().state()

    def _look_at_checkpoint(self) -> None:
        """Note the checkpoint that the Trainer is about to resume from.

        Raises `PlanError` for that of another plan, `FreezeError` for one that is not whole.
        """
        call = train_call()
        if call is None or running_trainer(self) is None:
            return
        trainer, given = call["self"], call.get("resume_from_checkpoint")
        folder = Path(given) if isinstance(given, str | os.PathLike) and checkpoint.has_state(given) else None
        self._training.resumed_from = folder
        if folder is not None:
            require_whole(folder, optimizer=is_whole(trainer.args))
        # A restored callback has the plan of the checkpoint; a model_init has yet to build the model.
        restored = trainer.args.restore_callback_states_from_checkpoint
        if folder is None or restored or trainer.model_init is not None:
            return
        if difference := self._training.difference_from(folder):
            raise PlanError(difference)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze what never trains; what trains at any stage stays trainable until the optimizer holds it."""
        refuse_unapplied(args)
        bound = self._training.bind(args, kwargs["model"], optimizer=kwargs.get("optimizer"))
        set_trainable(bound.model, bound.resolved.ever_trainable)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze by the plan, once more: a `model_init` may have built the model anew."""
        refuse_unapplied(args)
        self._random_states.keep_no_longer()
        self._training.end()  # a run that broke off, as under auto_find_batch_size
        _put_first(self, last=self._random_states)
        optimizer, before = kwargs["optimizer"], self._training.bound
        bound = self._training.bind(args, kwargs["model"], optimizer=optimizer)
        if not state.global_step:
            refuse_groups_of_another_plan(optimizer, bound)
        if before is not None and before.model is not bound.model:
            refuse_left_out(optimizer, bound)
        resumed = self._training.resumed_run(args, state)
        if resumed:
            self._load_renamed(args, resumed.folder)
            self._training.load_thawed(bound.model, resumed.folder)
        is_running = while_training(self)
        batches = kwargs.get("train_dataloader")
        run = self._training.begin(args, state, optimizer, resumed=resumed, batches=batches, is_running=is_running)
        cut_up = args.gradient_accumulation_steps > 1 or args.world_size > 1
        if cut_up and state.is_world_process_zero:
            run.undo_at_end(CountProbe(bound.model, is_running).remove)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enter the stage that this step belongs to, and set its learning rates."""
        self._random_states.keep_no_longer()
        super().on_step_begin(args, state, control, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prove that frozen weights did not change; save what belongs to a checkpoint beside the Trainer's files."""
        super().on_save(args, state, control, **kwargs)
        self._training.verify()
        if args.should_save:
            folder = checkpoint.folder_of(args, state)
            self._training.save_thawed(kwargs["model"], folder)
            self._training.save_stage_best(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Release the model; load what the Trainer passed over in the best checkpoint."""
        self._random_states.keep_no_longer()
        super().on_train_end(args, state, control, **kwargs)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_renamed(args, state.best_model_checkpoint)

    def _load_renamed(self, args: TrainingArguments, folder: str | Path) -> None:
        bound = self._training.bound
        if bound is not None and is_whole(args):
            load_by_any_name(bound.model, folder, trained=bound.resolved.ever_trainable)


def _one_plan(plan: PlanLike | None, *, freeze: Selection | None, trainable: Selection | None) -> FreezePlan:
    given = {"plan": plan, "freeze": freeze, "trainable": trainable}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        found = " and ".join(f"{name}={given[name]!r}" for name in names) or "none of them"
        raise PlanError(f"FreezeCallback takes exactly one of plan, freeze= and trainable=; got {found}.")
    return FreezePlan(freeze=freeze, trainable=trainable) if plan is None else as_plan(plan)


def _put_first(callback: FreezeCallback, *, last: TrainerCallback) -> None:
    """Call `callback` before the trackers of `report_to`, which would otherwise not see what it adds to the logs.

    The Trainer puts them before the callbacks of the user, and hands callbacks neither itself nor its handler.
    """
    for handler in gc.get_objects():
        if issubclass(type(handler), CallbackHandler) and any(one is callback for one in handler.callbacks):
            _refuse_another(callback, handler.callbacks)
            # In place: the handler is going through this list, whose part after `callback` stays where it is.
            handler.callbacks.remove(callback)
            handler.callbacks.insert(0, callback)
            handler.callbacks[:] = [*(one for one in handler.callbacks if one is not last), last]


def _refuse_another(callback: FreezeCallback, callbacks: Iterable[TrainerCallback]) -> None:
    for other in callbacks:
        if isinstance(other, RunEvents) and other is not callback:
            raise PlanError(
                f"Two plans for one Trainer: {callback.plan.to_dict()} and {other.plan.to_dict()}. Keep one "
                "FreezeCallback, with the stages of both in its plan; a FreezeTrainer brings its own."
            )
