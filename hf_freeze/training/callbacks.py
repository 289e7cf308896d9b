"""`FreezeCallback`: a freeze plan for any existing Trainer."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_freeze.plan.resolved import ResolvedPlan
from hf_freeze.plan.stages import FreezePlan
from hf_freeze.plan.timeline import Timeline
from hf_freeze.training import checkpoint
from hf_freeze.training.backends import tell_wrappers
from hf_freeze.training.freezing import hold_eval, release_eval, set_trainable
from hf_freeze.training.loss_scaling import warn_if_count_is_ignored
from hf_freeze.training.proof import FreezeProof
from hf_freeze.training.setup import check_setup

logger = logging.getLogger(__name__)


class FreezeCallback(TrainerCallback, ExportableState):
    """Freeze by a plan inside any Trainer: `Trainer(..., callbacks=[FreezeCallback(plan)])`.

    `frozen_eval` keeps frozen modules in eval mode while training. `verify` proves at each save and at the end that
    frozen weights stood still, trainable ones moved and replicas are equal, and raises `FreezeViolation` otherwise.

    The plan is held against the model when the Trainer is built, so that a mistake shows at once: `SelectionError`,
    `PlanError` or `UnsupportedSetupError`, before the first step.
    """

    def __init__(self, plan: FreezePlan | Mapping[str, Any], *, frozen_eval: bool = True, verify: bool = True) -> None:
        self.plan = plan if isinstance(plan, FreezePlan) else FreezePlan.from_dict(plan)
        self.frozen_eval = frozen_eval
        self.verify = verify
        self.resolved: ResolvedPlan | None = None
        self.stage: int | None = None
        self.groups: dict[str, str] = {}
        self.loss_window: dict[str, Any] = {}
        self.managed = False
        self._model: nn.Module | None = None
        self._timeline: Timeline | None = None
        self._proof: FreezeProof | None = None
        self._rates: dict[str, float] = {}
        self._probe: RemovableHandle | None = None

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into `trainer_state.json`: how to build this callback again."""
        settings = {"plan": self.plan.to_dict(), "frozen_eval": self.frozen_eval, "verify": self.verify}
        fingerprint = self.resolved.fingerprint if self.resolved else ""
        saved = {"fingerprint": fingerprint, "groups": self.groups, "loss_window": self.loss_window}
        return {"args": settings, "attributes": {"saved": saved}}

    def prepare(self, args: TrainingArguments, model: nn.Module) -> ResolvedPlan:
        """Hold the plan against `model`, unless that is done, and check that the set-up can honour it."""
        if self.resolved is None or self._model is not model:
            self.resolved = self.plan.resolve(model)
            self._model = model
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
        model = kwargs["model"]
        resolved = self.prepare(args, model)
        if state.global_step and not self.managed:
            self._check_resumed(args, state, model)
        self._timeline = Timeline(
            self.plan.stages, max_steps=state.max_steps, steps_per_epoch=_steps_per_epoch(args, kwargs)
        )
        self._proof = FreezeProof(model, resolved, hold_buffers=self.frozen_eval) if self.verify else None
        self.stage = None
        self._enter_stage(state, **kwargs)
        self._watch_loss(args, model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enter the stage that this step belongs to."""
        self._enter_stage(state, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rates of this step, and whose gradients have arrived."""
        self._rates = _rates(kwargs["optimizer"])
        if self._proof:
            self._proof.see_step_coming(kwargs["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note what has moved."""
        if self._proof:
            self._proof.see_step_done()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prove that frozen weights stood still; under PEFT, save the thawed base weights beside the adapter."""
        if self.managed:
            return
        self.verify_now()
        if args.should_save:
            checkpoint.save_thawed(kwargs["model"], checkpoint.folder_of(args, state), self._ever_trainable())

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
        if logs is not None and "train_runtime" in logs:
            # The Trainer logs its closing metrics before it loads the best checkpoint: the last look at this run.
            self._conclude(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the model its own train mode back; under PEFT, load what the best checkpoint has beside the adapter."""
        self.end(kwargs["model"])
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            checkpoint.load_thawed(kwargs["model"], state.best_model_checkpoint, needed=self._ever_trainable())

    def log_entries(self) -> dict[str, Any]:
        """What the logs of a training step should hold: `lr/<group>`, `stage`, `trainable_params`."""
        if self.resolved is None or self.stage is None:
            return {}
        trainable = sum(self.resolved.sizes[name] for name in self.resolved.stages[self.stage])
        return {**self._rates, "stage": self.stage, "trainable_params": trainable}

    def verify_now(self) -> None:
        """Raise `FreezeViolation` when something frozen moved, or replicas differ. Does nothing outside training."""
        if self._proof:
            self._proof.verify()

    def end(self, model: nn.Module) -> None:
        """Take every hook off the model. Doing it twice changes nothing."""
        release_eval(model)
        if self._probe:
            self._probe.remove()
        self._probe = self._proof = None

    def enter_stage(self, stage: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make exactly this stage's parameters trainable, and everything that must know of it know."""
        assert self.resolved is not None
        if self.stage is not None:
            self.verify_now()
        thawed, frozen = set_trainable(model, self.resolved.names[stage])
        if thawed or frozen:
            tell_wrappers(model)
        if self.frozen_eval:
            hold_eval(model)
        if self._proof:
            self._proof.watch(optimizer)
        self.stage = stage

    def _enter_stage(self, state: TrainerState, **kwargs: Any) -> None:
        assert self._timeline is not None
        stage = self._timeline.stage_at(state.global_step, {})
        if stage != self.stage:
            self.enter_stage(stage, kwargs["model"], kwargs["optimizer"])
            if state.is_world_process_zero:
                logger.info("Step %d, stage %d of the plan:\n%s", state.global_step, stage, self.resolved)

    def _conclude(self, model: nn.Module) -> None:
        proof = self._proof
        self.end(model)
        if proof:
            proof.conclude()

    def _watch_loss(self, args: TrainingArguments, model: nn.Module) -> None:
        """Warn, once, where accumulation or the number of processes would change what the loss means."""
        if not self.managed and (args.gradient_accumulation_steps > 1 or args.world_size > 1):
            self._probe = warn_if_count_is_ignored(model)

    def _check_resumed(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        folder = checkpoint.folder_of(args, state)
        checkpoint.check_same_plan(checkpoint.callback_state(state, type(self).__name__), self.state(), folder)
        checkpoint.load_thawed(model, folder, needed=self._ever_trainable())

    def _ever_trainable(self) -> frozenset[str]:
        return self.resolved.ever_trainable if self.resolved else frozenset()


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    groups = enumerate(optimizer.param_groups)
    return {f"lr/{group.get('name', f'group_{index}')}": float(group["lr"]) for index, group in groups}


def _steps_per_epoch(args: TrainingArguments, kwargs: Mapping[str, Any]) -> int | None:
    """Count optimizer steps per epoch as the Trainer does; None for data without a length."""
    try:
        batches = len(kwargs["train_dataloader"])
    except (TypeError, KeyError):
        return None
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)
