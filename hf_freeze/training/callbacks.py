"""`FreezeCallback`: a freeze plan for any existing Trainer."""

import gc
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from hf_freeze.errors import PlanError
from hf_freeze.plan.given import PlanLike, as_plan
from hf_freeze.plan.resolved import ResolvedPlan, resolve, sizes_of
from hf_freeze.plan.stages import FreezePlan
from hf_freeze.selection.language import Selection
from hf_freeze.training import checkpoint
from hf_freeze.training.beside_model import average_gradients, load_beside, save_beside, share_beside
from hf_freeze.training.freezing import set_trainable
from hf_freeze.training.groups import refuse_groups_of_another_plan, refuse_left_out
from hf_freeze.training.loss_scaling import CountProbe
from hf_freeze.training.missed_evaluation import is_missed, make_up
from hf_freeze.training.random_states import RandomStatesCallback
from hf_freeze.training.run import FreezeRun, FreezeSettings, RunState
from hf_freeze.training.saved_state import require_known_stages, require_readable
from hf_freeze.training.setup import check_setup, is_whole, require_module, warn_of_coarse_weights
from hf_freeze.training.snapshot import load_snapshot, save_snapshot
from hf_freeze.training.train_calls import train_call, while_training
from hf_freeze.training.whole import lost_random_states

logger = logging.getLogger(__name__)


class FreezeCallback(TrainerCallback, ExportableState):
    """Freeze by a plan inside any Trainer: `Trainer(..., callbacks=[FreezeCallback(plan)])`.

    `plan` is a `FreezePlan`, its mapping, a recipe's name such as "last-layers:2", or the path of a YAML or JSON file;
    `freeze=` or `trainable=` instead of it is a whole plan without stages.

    `frozen_eval` keeps frozen modules in eval mode while training. `verify` proves at each transition, each save and
    the end that frozen weights stood still, trainable ones moved and replicas are equal, and raises `FreezeViolation`
    otherwise. `unfreeze_warmup` ramps the learning rate of what thaws, over a number of steps (1 or more) or a fraction
    of the run (below 1); it needs optimizer groups that thaw as a whole, as `param_groups` builds them.

    The plan is held against the model when the Trainer is built, so that a mistake shows at once: `SelectionError`,
    `PlanError` or `UnsupportedSetupError`, before the first step.
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
    ) -> None:
        self.resolved: ResolvedPlan | None = None
        self.declare(
            _one_plan(plan, freeze=freeze, trainable=trainable),
            FreezeSettings(frozen_eval=frozen_eval, verify=verify, unfreeze_warmup=unfreeze_warmup),
        )
        self.groups: dict[str, str] = {}
        self.loss_window: dict[str, Any] = {}
        self.resumed_from: str | Path | None = None
        self.managed = False  # by a FreezeTrainer, which does more than a callback can
        self.ignore_plan_change = False
        self.others_train = False  # beside the model, such as the parameters of a loss
        self._model: nn.Module | None = None
        self._run: FreezeRun | None = None
        self._steps_per_epoch: int | None = None
        self._rates: dict[str, float] = {}
        self._beside: list[torch.Tensor] = []  # what the optimizer holds that is not the model's
        self._random_states = RandomStatesCallback()
        self._missed_evaluation = False
        self._counts_evaluations = True

    def declare(self, plan: FreezePlan, settings: FreezeSettings) -> None:
        """Go by this plan and these settings from the next run on."""
        if self.resolved and self.resolved.plan != plan:
            self.resolved = None
        self.plan, self.settings = plan, settings

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into `trainer_state.json`: how to build this callback again.

        It is asked for too when `train()` begins, before the Trainer loads an optimizer's state: where that is of other
        groups, torch says only that their number differs.
        """
        if not self.managed and self._live_run is None:
            self._look_at_checkpoint()
        return self._state()

    def _look_at_checkpoint(self) -> None:
        """Note the checkpoint that the Trainer is about to resume from; raise `PlanError` for that of another plan."""
        call = train_call()
        if call is None or self not in call["self"].callback_handler.callbacks:
            return
        folder = call.get("resume_from_checkpoint")
        self.resumed_from = folder if isinstance(folder, str) and checkpoint.has_state(folder) else None
        trainer = call["self"]
        # A restored callback has the plan of the checkpoint; a model_init has yet to build the model.
        restored = trainer.args.restore_callback_states_from_checkpoint
        if self.resumed_from is None or restored or trainer.model_init is not None:
            return
        saved = checkpoint.read_callback_state(self.resumed_from, type(self).__name__)
        require_readable(saved, self.resumed_from)
        if difference := checkpoint.plan_difference(saved, self._state(), self.resumed_from):
            raise PlanError(difference)

    def _state(self) -> dict[str, Any]:
        saved = {
            "fingerprint": self.resolved.fingerprint if self.resolved else "",
            "groups": self.groups,
            "loss_window": self.loss_window,
            "run": (self._live_run.state if self._live_run else RunState()).to_dict(),
        }
        return {"args": {"plan": self.plan.to_dict(), **vars(self.settings)}, "attributes": {"saved": saved}}

    def prepare(self, args: TrainingArguments, model: nn.Module) -> ResolvedPlan:
        """Hold the plan against `model`, unless that is done, and check that the set-up can honour it."""
        require_module(model)
        # A model whose embeddings were resized is held against the plan anew.
        if self.resolved is None or self._model is not model or self.resolved.sizes != sizes_of(model):
            self.resolved = resolve(self.plan, model, others_train=self.others_train)
            self._model = model
            warn_of_coarse_weights(model, self.resolved)
        check_setup(args, model, self.resolved)
        return self.resolved

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze what never trains; what trains at any stage stays trainable until the optimizer holds it."""
        model = kwargs["model"]
        set_trainable(model, self.prepare(args, model).ever_trainable)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze by the plan, once more: a `model_init` may have built the model anew."""
        self.end()  # a run that broke off, as under auto_find_batch_size
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if not self.managed:
            _put_first(self, last=self._random_states)
        built_anew = self._model is not None and self._model is not model
        resolved = self.prepare(args, model)
        if not self.managed and not state.global_step:
            refuse_groups_of_another_plan(optimizer, model, resolved)
        if not self.managed and built_anew:
            refuse_left_out(optimizer, model, resolved)
        is_running = while_training(self)
        self._steps_per_epoch = _steps_per_epoch(args, kwargs)
        self._run = FreezeRun(
            resolved,
            model,
            optimizer,
            settings=self.settings,
            max_steps=state.max_steps,
            steps_per_epoch=self._steps_per_epoch,
            is_running=is_running,
        )
        if state.is_world_process_zero:
            logger.info("Freeze plan:\n%s", resolved)
        self._begin(self._run, args, state, model)
        self._missed_evaluation = is_missed(args, state, self._steps_per_epoch)
        # An interrupted run has seen those of its last step: what `eval_on_start` adds would count twice.
        self._counts_evaluations = self._missed_evaluation or not state.global_step
        if state.global_step and is_whole(args):
            load_beside(optimizer, model, Path(self.resumed_from or checkpoint.folder_of(args, state)))
        self._beside = share_beside(optimizer, model) if is_whole(args) else []
        cut_up = args.gradient_accumulation_steps > 1 or args.world_size > 1
        if cut_up and not self.managed and state.is_world_process_zero:
            self._run.undo_at_end(CountProbe(model, is_running).remove)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the evaluation that a checkpoint lacks."""
        if self._missed_evaluation:
            make_up()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enter the stage that this step belongs to, and set its learning rates."""
        self._random_states.forget()
        self._counts_evaluations = True
        if self._live_run:
            self._live_run.step_begins(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rates of this step, and whose gradients have arrived."""
        if self._live_run:
            average_gradients(self._beside)
            self._rates = self._live_run.optimizer_steps()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note what has moved; from here on the scheduler's own rates apply again."""
        if self._live_run:
            self._live_run.optimizer_stepped()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge whether a plateau is there that the plan waits for."""
        self._missed_evaluation = False
        if self._live_run and metrics is not None and self._counts_evaluations:
            self._live_run.evaluated(metrics, state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prove that frozen weights stood still; save what belongs to a checkpoint beside the Trainer's own files."""
        if args.should_save and is_whole(args):
            save_beside(kwargs["optimizer"], kwargs["model"], checkpoint.folder_of(args, state))
        if not self.managed:
            self.verify_now()
            if args.should_save:
                checkpoint.save_thawed(kwargs["model"], checkpoint.folder_of(args, state), self._ever_trainable())
                self.save_stage_best(checkpoint.folder_of(args, state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the learning rate per group, the stage and the number of trainable parameters to the training logs."""
        if logs is not None and "loss" in logs:
            missing = {name: value for name, value in self.log_entries().items() if name not in logs}
            logs.update(missing)
            state.log_history[-1].update(missing)
        if self._live_run and logs is not None and "train_runtime" in logs:
            # The Trainer logs its closing metrics before it loads the best checkpoint: the last look at this run.
            self._live_run.conclude()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the model; under PEFT, load what the best checkpoint has beside the adapter."""
        self.end()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            checkpoint.load_thawed(kwargs["model"], state.best_model_checkpoint, needed=self._ever_trainable())

    def log_entries(self) -> dict[str, Any]:
        """What the logs of a training step should hold: `lr/<group>`, `stage`, `trainable_params`."""
        if self._live_run is None:
            return {}
        stage = self._live_run.state.stage
        trainable = sum(self._live_run.resolved.sizes[name] for name in self._live_run.resolved.stages[stage])
        return {**self._rates, "stage": stage, "trainable_params": trainable}

    @property
    def stage(self) -> int | None:
        """The stage that the run is in; None outside training."""
        return self._live_run.state.stage if self._live_run else None

    def planned_now(self) -> list[frozenset[str]]:
        """Return sets of names, one of which should be what requires gradients now; none before a model is known.

        Between runs that is the set of any stage, or of all: what trains later stays trainable for the optimizer.
        """
        if self.resolved is None:
            return []
        return [*self.resolved.names, self.resolved.ever_trainable] if self._run is None else self._run.may_require_grad

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps per epoch, where the data has a length."""
        return self._steps_per_epoch

    def steps_ahead(self, state: TrainerState) -> dict[int, int]:
        """Return, from the present stage on, how many steps each has left, as far as that is known."""
        return self._live_run.steps_ahead(state.global_step) if self._live_run else {}

    @property
    def _live_run(self) -> FreezeRun | None:
        """The run that goes on; a callback is not told when an exception ends one."""
        if self._run and self._run.is_over():
            self.end()
        return self._run

    def verify_now(self) -> None:
        """Raise `FreezeViolation` when something frozen moved, or replicas differ. Does nothing outside training."""
        if self._live_run:
            self._live_run.verify()

    def save_stage_best(self, folder: str | Path) -> None:
        """Save the best weights of a stage that a plateau shall end, for a run that resumes from `folder`."""
        if self._live_run:
            save_snapshot(self._live_run.best, folder)

    def end(self) -> None:
        """Take every hook off the model. Doing it twice changes nothing."""
        self._random_states.forget()
        if self._run:
            self._run.end()
        self._run = None

    def _begin(self, run: FreezeRun, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if not state.global_step:
            run.begin()
            return
        saved = checkpoint.callback_state(state, type(self).__name__)
        folder = self.resumed_from or checkpoint.folder_of(args, state)
        require_readable(saved, folder)
        difference = checkpoint.plan_difference(saved, self._state(), folder)
        if difference and not self.ignore_plan_change:
            raise PlanError(difference)
        if lost := lost_random_states(folder, args):
            logger.warning(
                "%r is missing: the random numbers of this run (dropout, augmentation) are not those that the "
                "interrupted run would have drawn, and its weights will differ from that one's.",
                str(lost),
            )
        if not self.managed:
            checkpoint.load_thawed(model, folder, needed=self._ever_trainable())
        if difference:
            run.begin()
        else:
            self._continue(run, model, checkpoint.saved_part(saved), state, folder)

    @staticmethod
    def _continue(
        run: FreezeRun, model: nn.Module, saved: Mapping[str, Any], state: TrainerState, folder: str | Path
    ) -> None:
        require_known_stages(saved, stages=len(run.resolved.timed), folder=folder)
        before = RunState.from_dict(saved["run"])
        best = load_snapshot(folder, model, run.resolved.names[before.stage]) if run.has_best(before) else {}
        if (shifted := run.shifted(before, state.global_step)) and state.is_world_process_zero:
            logger.warning(shifted)
        run.begin(before, best)

    def _ever_trainable(self) -> frozenset[str]:
        return self.resolved.ever_trainable if self.resolved else frozenset()


def _one_plan(plan: PlanLike | None, *, freeze: Selection | None, trainable: Selection | None) -> FreezePlan:
    given = {"plan": plan, "freeze": freeze, "trainable": trainable}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        found = " and ".join(f"{name}={given[name]!r}" for name in names) or "none of them"
        raise PlanError(f"FreezeCallback takes exactly one of plan, freeze= and trainable=; got {found}.")
    return FreezePlan(freeze=freeze, trainable=trainable) if plan is None else as_plan(plan)


def _put_first(callback: FreezeCallback, *, last: TrainerCallback) -> None:
    """Let `callback` be called before the trackers of `report_to`, which would not see what it adds to the logs.

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
        if isinstance(other, FreezeCallback) and other is not callback:
            raise PlanError(
                f"Two plans for one Trainer: {callback.plan.to_dict()} and {other.plan.to_dict()}. Keep one "
                "FreezeCallback, with the stages of both in its plan; a FreezeTrainer brings its own."
            )


def _steps_per_epoch(args: TrainingArguments, kwargs: Mapping[str, Any]) -> int | None:
    """Count optimizer steps per epoch as the Trainer does; None for data without a length."""
    try:
        batches = len(kwargs["train_dataloader"])
    except (TypeError, KeyError):
        return None
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)
