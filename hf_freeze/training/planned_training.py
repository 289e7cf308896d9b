"""The training of one Trainer under a plan: what was declared, what it means for the model, and the current run.

`FreezeCallback` and `FreezeTrainer` report to it what happens, each in its own way. What it keeps in a checkpoint,
beside the Trainer's own files:

| file | what | written by | read by |
|---|---|---|---|
| `trainer_state.json` | plan, settings, groups, stage, plateaus, loss | `state` | `difference_from`, `resumed_run` |
| `stage_best.safetensors` | the best weights of a stage that a plateau ends | `save_stage_best` | `begin` |
| `trained.safetensors` | under PEFT, the base weights that train | `save_thawed` | `load_thawed` |
| `beside_model.safetensors` | what trains beside the model, as a loss does | `save_beside` | `begin` |
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerState, TrainingArguments

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.selection.language import Selection
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training import checkpoint, thawed_base
from hf_freeze.training.beside_model import average_gradients, clear_gradients, load_beside, save_beside, share_beside
from hf_freeze.training.bound_plan import BoundPlan, bind
from hf_freeze.training.epoch_order import EpochOrder, resumed_order
from hf_freeze.training.grad_norms import before_clipping, is_logged, norms_by_group, parameters_by_group
from hf_freeze.training.groups import warn_of_unused_rates
from hf_freeze.training.missed_evaluation import is_missed
from hf_freeze.training.resumed_run import ResumedRun
from hf_freeze.training.row_parameters import rows_in
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.run_state import RunState
from hf_freeze.training.saved_state import require_readable
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.settling import warn_of_warmup
from hf_freeze.training.setup import check_setup, is_whole, require_module, warn_of_coarse_weights
from hf_freeze.training.snapshot import save_snapshot
from hf_freeze.training.whole import lost_random_states

logger = logging.getLogger(__name__)

STATE_KEY = "FreezeCallback"
"""The name under which `trainer_state.json` holds the state of a training."""


class PlannedTraining:
    """Owns everything about one Trainer's training under a plan.

    Declare a plan, `bind` it to the model whenever that may be another one, `begin` a run, say what happens in it, and
    `end` it.

    Args:
        plan: What was declared.
        settings: How to carry it out.
        key: The name under which `trainer_state.json` holds the state.
    """

    def __init__(self, plan: FreezePlan, settings: FreezeSettings | None = None, *, key: str = STATE_KEY) -> None:
        self.plan = plan
        self.settings = settings or FreezeSettings()
        self.ignores_plan_change = False
        self.others_train = False
        """Whether something beside the model has parameters that train, such as a loss."""
        self.bound: BoundPlan | None = None
        self._trained_before: frozenset[str] = frozenset()  # in runs over this model that have ended
        self.resumed_from: str | Path | None = None
        """The checkpoint that the Trainer is about to resume from, where that is known."""
        self.steps_per_epoch: int | None = None
        """Optimizer steps per epoch, where the data has a length."""
        self._key = key
        self._groups: dict[str, str] = {}
        self._loss_window: dict[str, Any] = {}
        self._run: FreezeRun | None = None
        self.epoch_order = EpochOrder()
        self._beside: list[torch.Tensor] = []  # what the optimizer holds that is not the model's
        self._rates: dict[str, float] = {}
        self._rates_of: tuple[Selection, ...] = ()
        self._measured: dict[str, list[torch.Tensor]] = {}  # of which the norm of the gradient is logged, by group
        self._grad_norms: dict[str, float] = {}
        self.misses_evaluation = False
        """Whether the checkpoint that the run goes on from lacks the evaluation of its epoch."""
        self._counts_evaluations = True

    def __getstate__(self) -> dict[str, Any]:
        # The run of a Trainer is not that of its copies.
        return {**vars(self), "_run": None, "_beside": [], "_measured": {}, "epoch_order": EpochOrder()}

    def declare(
        self, plan: FreezePlan, settings: FreezeSettings, *, ignores_plan_change: bool, rates: Iterable[Selection] = ()
    ) -> None:
        """Use this plan and these settings from the next `bind` on; `rates` are selections with rates of their own."""
        self.plan, self.settings, self.ignores_plan_change = plan, settings, ignores_plan_change
        self._rates_of = (*rates,)

    # The model

    def bind(self, args: TrainingArguments, model: nn.Module, *, optimizer: object = None) -> BoundPlan:
        """Resolve the plan for `model`, unless that is done, and check that the set-up can honour it.

        For the moments when the model may be another one than before, or its embeddings may have been resized. Rows
        that the groups of an `optimizer` hold by themselves have rates of their own.

        Raises:
            SelectionError, PlanError, UnsupportedSetupError: Where plan, model and arguments do not go together.
        """
        require_module(model)
        if optimizer is not None:
            self._rates_of = (*rows_in(optimizer, unwrap(model)),)
        if self.bound is None or not self.bound.fits(self.plan, model, rates=self._rates_of):
            self.bound = bind(self.plan, model, others_train=self.others_train, rates=self._rates_of)
            self._trained_before = frozenset()
            warn_of_coarse_weights(self.bound)
        check_setup(args, self.bound, log_grad_norms=self.settings.log_grad_norms)
        return self.bound

    def unbind(self, *, others_train: bool) -> None:
        """Resolve the plan again at the next `bind`: other parameters train now, in the model or beside it."""
        self.bound, self.others_train = None, others_train

    @property
    def required_bound(self) -> BoundPlan:
        """The plan bound to its model; there is one from the constructor of a Trainer on."""
        assert self.bound is not None
        return self.bound

    def note_groups(self, groups: Mapping[str, str]) -> None:
        """Remember the optimizer's groups, a digest of the members for each name: a checkpoint fits no others."""
        self._groups = dict(groups)

    # The run

    def begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        optimizer: torch.optim.Optimizer,
        *,
        resumed: ResumedRun | None,
        batches: object = None,
        is_running: Callable[[], bool] = lambda: True,
    ) -> FreezeRun:
        """Start a run over the bound model, or go on with the one that was interrupted.

        Args:
            args: Those of the Trainer.
            state: That of the Trainer.
            optimizer: The optimizer that steps the model.
            resumed: What `resumed_run` returned.
            batches: The loader of the training set; its length gives the steps of an epoch.
            is_running: Whether the run still goes on: no event says that an exception ended it.
        """
        bound = self.required_bound
        self.steps_per_epoch = _steps_per_epoch(args, batches)
        self._run = run = FreezeRun(
            bound.resolved,
            bound.model,
            optimizer,
            settings=self.settings,
            max_steps=state.max_steps,
            steps_per_epoch=self.steps_per_epoch,
            is_running=is_running,
        )
        if state.is_world_process_zero:
            logger.info("Freeze plan:\n%s", bound.resolved)
            warn_of_unused_rates(optimizer, self.plan)
            warn_of_warmup(args, bound.resolved, max_steps=state.max_steps)
        if resumed is None:
            run.begin()
            self.epoch_order = EpochOrder(batches, steps_per_epoch=self.steps_per_epoch)
        else:
            resumed.go_on(run, bound, state, optimizer)
            self.epoch_order = resumed_order(args, state, batches, resumed.saved, self.steps_per_epoch)
        self.misses_evaluation = is_missed(args, state, self.steps_per_epoch)
        # An interrupted run has seen those of its last step: what `eval_on_start` adds would count twice.
        self._counts_evaluations = self.misses_evaluation or not state.global_step
        if resumed is not None and is_whole(args):
            load_beside(optimizer, bound.model, Path(resumed.folder))
        self._beside = share_beside(optimizer, bound.model) if is_whole(args) else []
        self._measured = parameters_by_group(optimizer, bound) if self.settings.log_grad_norms else {}
        return run

    def end(self) -> None:
        """Take every hook off the model. Doing it twice changes nothing."""
        if self._run:
            self._trained_before |= self._run.trained
            self._run.end()
        self._run = None

    def step_begins(self, step: int) -> FreezeRun:
        """Enter the stage of the step that comes after `step` steps, set its learning rates, and return the run.

        The one event of a step that asks whether the run goes on: the others follow it.

        Raises:
            PlanError: Where no run was begun, so that the plan would be ignored.
        """
        self._counts_evaluations = True
        run = self.run
        if run is None:
            raise PlanError(
                f"A step begins, but no run was begun under the plan {self.plan.to_dict()}. Likely causes: a "
                "FreezeCallback added while the Trainer trains, one callback given to two Trainers of which one trains "
                "inside the other, or a subclass whose on_train_begin does not call super().on_train_begin()."
            )
        clear_gradients(self._beside)
        self.epoch_order.step_begins(step)
        run.step_begins(step)
        return run

    def micro_batch_ends(self) -> None:
        """Freeze again what the computation of a loss made trainable."""
        if self._run:
            self._run.hold_adapters()

    def require_optimizer(self, optimizer: object) -> None:
        """Raise `UnsupportedSetupError` for another optimizer than the run began with."""
        if self._run:
            self._run.require_optimizer(optimizer)

    def before_optimizer_step(self, args: TrainingArguments, state: TrainerState) -> None:
        """Note the learning rates and the gradients of this step."""
        if self._run:
            average_gradients(self._beside)
            self._rates = self._run.before_optimizer_step()
            self._grad_norms = {}
            if self.settings.log_grad_norms and is_logged(args, state, steps_per_epoch=self.steps_per_epoch):
                self._grad_norms = norms_by_group(self._measured)

    def after_optimizer_step(self) -> None:
        """Note what has moved; from here on the scheduler's own rates apply again."""
        if self._run:
            self._run.after_optimizer_step()

    def evaluated(self, metrics: Mapping[str, Any] | None, step: int) -> None:
        """Check whether the plateau that the plan is waiting for has been reached."""
        self.misses_evaluation = False
        if (run := self.run) and metrics is not None and self._counts_evaluations:
            run.evaluated(metrics, step)

    def verify(self) -> None:
        """Raise `FreezeViolation` when something frozen moved, or replicas differ. Does nothing outside training."""
        if run := self.run:
            run.verify()

    def conclude(self, *, is_verified: bool = False) -> None:
        """Raise `FreezeViolation` when the run that ends did not do what the plan says."""
        if run := self.run:
            run.conclude(is_verified=is_verified)

    @property
    def run(self) -> FreezeRun | None:
        """The current run; an exception ends one without an event."""
        if self._run and self._run.is_over():
            self.end()
        return self._run

    @property
    def trained(self) -> frozenset[str]:
        """The canonical names of what trained of the model so far."""
        run = self.run
        return self._trained_before | run.trained if run else self._trained_before

    @property
    def stage(self) -> int | None:
        """The stage that the run is in; None outside training."""
        run = self.run
        return run.state.stage if run else None

    def steps_ahead(self, state: TrainerState) -> dict[int, int]:
        """Return, from the present stage on, how many steps each has left, as far as that is known."""
        run = self.run
        return run.steps_ahead(state.global_step) if run else {}

    def log_entries(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the logs of a training step should hold beside these entries.

        That is `lr/<group>`, `stage`, `trainable_params`, and `grad_norm/<group>` where it is asked for.
        """
        run = self.run
        if run is None:
            return {}
        resolved, stage = run.resolved, run.state.stage
        norms = before_clipping(self._grad_norms, logs.get("grad_norm"))
        return {
            **self._rates,
            **{f"grad_norm/{name}": norm for name, norm in norms.items()},
            "stage": stage,
            "trainable_params": resolved.size_of(run.trains),
        }

    def planned_now(self) -> list[frozenset[str]]:
        """Return sets of names, one of which should be what requires gradients now; none before a model is known.

        Between runs that is the set of any stage, or of all: what trains later stays trainable for the optimizer.
        """
        if self.bound is None:
            return []
        resolved = self.bound.resolved
        return [*resolved.names, resolved.ever_trainable] if self._run is None else self._run.may_require_grad

    # The checkpoint

    def state(self) -> dict[str, Any]:
        """Return what `trainer_state.json` keeps: what was declared, and where the run is."""
        run = self.run
        saved = {
            "fingerprint": self.bound.resolved.fingerprint if self.bound else "",
            "groups": self._groups,
            "loss_window": self._loss_window,
            "epoch_order": self.epoch_order.state(),
            "run": (run.state if run else RunState()).to_dict(),
        }
        return {"args": {"plan": self.plan.to_dict(), **vars(self.settings)}, "attributes": {"saved": saved}}

    def note_loss_window(self, window: Mapping[str, Any]) -> None:
        """Remember the training loss since it was last logged, for the next checkpoint."""
        self._loss_window = dict(window)

    def save_stage_best(self, folder: str | Path) -> None:
        """Save the best weights of a stage that a plateau ends, for a run that resumes from `folder`."""
        if run := self.run:
            save_snapshot(run.best, folder)

    def save_thawed(self, model: nn.Module, folder: str | Path) -> None:
        """Under PEFT, save the base weights that train, which it leaves out."""
        if self.bound:
            thawed_base.save_thawed(model, folder, self.bound.resolved.ever_trainable)

    def load_thawed(self, model: nn.Module, folder: str | Path) -> None:
        """Under PEFT, load the base weights that trained; `FreezeError` where the checkpoint lacks them."""
        if self.bound:
            thawed_base.load_thawed(model, folder, needed=self.bound.resolved.ever_trainable)

    def save_beside(self, args: TrainingArguments, state: TrainerState, optimizer: torch.optim.Optimizer) -> None:
        """Save what the optimizer trains beside the model."""
        if self.bound and args.should_save and is_whole(args):
            save_beside(optimizer, self.bound.model, checkpoint.folder_of(args, state))

    def difference_from(self, folder: str | Path) -> str | None:
        """Say how the plan or the groups of a checkpoint differ from this run's; None if they do not.

        Raises:
            FreezeError: For a state that cannot be used.
        """
        return self._difference(checkpoint.read_callback_state(folder, self._key), folder)

    def resumed_run(self, args: TrainingArguments, state: TrainerState) -> ResumedRun | None:
        """Read what the run left that the Trainer resumes; None at the start of one.

        Raises:
            PlanError: For the checkpoint of another plan, unless that is to be ignored.
            FreezeError: For a state that cannot be used.
        """
        if not state.global_step:
            return None
        folder = self.resumed_from or checkpoint.folder_of(args, state)
        saved = checkpoint.callback_state(state, self._key)
        difference = self._difference(saved, folder)
        if difference and not self.ignores_plan_change:
            raise PlanError(difference)
        if lost := lost_random_states(folder, args):
            logger.warning(
                "%r is missing: this run draws other random numbers (dropout, augmentation) than the interrupted run "
                "would have drawn, so its weights will differ.",
                str(lost),
            )
        return ResumedRun(folder=folder, saved=checkpoint.saved_part(saved), plan_difference=difference)

    def names_with_state(self, state: TrainerState) -> frozenset[str]:
        """Return the names of what the checkpoint that `state` was read from has optimizer state of."""
        saved = checkpoint.saved_part(checkpoint.callback_state(state, self._key))
        resolved = self.required_bound.resolved
        period = resolved.rotation.period(max(state.global_step - 1, 0)) if resolved.rotation else 0
        return resolved.model_map.every_alias(resolved.with_optimizer_state(saved["run"]["stage"], period))

    def saved_loss_window(self, state: TrainerState) -> Mapping[str, Any]:
        """Return the training loss that the interrupted run had not logged yet; {} where `state` has none."""
        saved = checkpoint.saved_part(checkpoint.callback_state(state, self._key))
        window: Mapping[str, Any] = saved.get("loss_window", {})
        return window

    def _difference(self, saved: Mapping[str, Any] | None, folder: str | Path) -> str | None:
        require_readable(saved, folder)
        return checkpoint.plan_difference(saved, self.state(), folder)


def _steps_per_epoch(args: TrainingArguments, batches: Any) -> int | None:
    """Count optimizer steps per epoch as the Trainer does; None for data without a length."""
    try:
        length = len(batches)
    except TypeError:
        return None
    return max(math.ceil(length / args.gradient_accumulation_steps), 1)
