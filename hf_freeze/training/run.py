"""One `train()` call under a plan: which stage it is in, and everything that follows when the stage changes."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import finalize, ref

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.plan.plateau import PlateauWatch, metric_value, require_metric
from hf_freeze.plan.tables import describe_parts
from hf_freeze.plan.timeline import Timeline, stage_of
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.peft_support import adapter_names
from hf_freeze.training.backends import (
    find_wrappers,
    inner_optimizer,
    is_sharded,
    rebuild_ddp_reducers,
    uses_master_weights,
)
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.forgetting import forget, forget_between, refuse_forgetting, refuse_optimizers_that_keep_state
from hf_freeze.training.freezing import hold_eval, hold_requires_grad, release_eval, set_trainable
from hf_freeze.training.proof import FreezeProof
from hf_freeze.training.recomputation import stop_backward_at_lowest_trainable
from hf_freeze.training.rows_in_optimizer import step_rows_alone
from hf_freeze.training.run_state import RunState
from hf_freeze.training.schedule import RateGate, warmup_steps
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.settling import SettlingMonitor, refuse_settling
from hf_freeze.training.snapshot import refuse_rewind, restore_snapshot, take_snapshot

logger = MainProcessLogger(__name__)


class FreezeRun:
    """Carries a plan through one run over one model and one optimizer.

    In a custom training loop: `begin` first, `step_begins` before each step, `before_optimizer_step` and
    `after_optimizer_step` around the optimizer's, then the scheduler's step, `conclude` at the end. `end` takes
    everything off the model after an exception; the model's next `train()` or `eval()` does so too once `is_running()`
    is False or the run is gone.

    Under DeepSpeed: call `deepspeed.initialize` with the groups of `param_groups`, while all that ever trains requires
    a gradient, and give `engine.module` and `engine.optimizer` here. Where the engine steps copies of the weights, as
    under ZeRO 1 to 3, what is frozen in a stage has a learning rate and a weight decay of 0 instead of no gradient. Its
    weights stay the same nevertheless, but its gradients are computed, sent, and counted in the norm for clipping, and
    its moments follow them: what is unfrozen starts with warm moments. A weight of -0.0 becomes 0.0, and a gradient
    that is not finite reaches frozen weights too, unless the engine skips the step.

    Args:
        resolved: The plan for this model, as `FreezePlan.resolve` returns it.
        model: The model, with or without its wrappers.
        optimizer: What steps it; holds everything that ever trains, as the groups of `param_groups` do.
        settings: How the plan is carried out.
        max_steps: Optimizer steps in the whole run.
        steps_per_epoch: Optimizer steps in an epoch; None where the data has no length.
        is_running: Whether the loop still runs, for a loop that an exception may end without `end`.

    Raises:
        PlanError: For stages out of order, or whose times are unknown; for groups that `unfreeze_warmup` or DeepSpeed
            cannot unfreeze as a whole.
        UnsupportedSetupError: For `restore_best` where no process has the weights whole.
    """

    def __init__(
        self,
        resolved: ResolvedPlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        settings: FreezeSettings,
        max_steps: int,
        steps_per_epoch: int | None,
        is_running: Callable[[], bool] = lambda: True,
    ) -> None:
        self.resolved = resolved
        self.state = RunState(fired={})
        self.best: dict[str, torch.Tensor] = {}
        self._bound = bound = BoundPlan(resolved, unwrap(model))
        self._optimizer = optimizer
        self._freezes_by_lr = uses_master_weights(optimizer)
        self._settings = settings
        self._max_steps = max_steps
        self._period = 0
        if resolved.rotation is not None:
            resolved.rotation.check_length(max_steps)
        self._timeline = Timeline(resolved.timed, max_steps=max_steps, steps_per_epoch=steps_per_epoch)
        warmup = warmup_steps(settings.unfreeze_warmup, max_steps)
        self._gate = RateGate(optimizer, bound, warmup=warmup)
        self._proof = FreezeProof(bound, hold_buffers=settings.frozen_eval) if settings.verify else None
        self._settling = SettlingMonitor(bound, optimizer, max_steps=max_steps)
        self._wrappers = find_wrappers(bound.model)
        if self._freezes_by_lr or any(map(is_sharded, bound.model.parameters())):
            refuse_rewind(resolved, "This set-up")
            refuse_settling(resolved, "This set-up")
        if self._freezes_by_lr:
            refuse_forgetting(resolved, "DeepSpeed")
        self._added = adapter_names(bound.model)
        self._adapters: list[tuple[nn.Parameter, bool]] = []
        self._logged: dict[str, Any] = {}
        self._is_running = is_running
        self._is_over = partial(_is_over, ref(self))
        self._on_the_model = ExitStack()
        finalize(self, self._on_the_model.close).atexit = False  # also when the run is forgotten without an `end`

    def begin(
        self, state: RunState | None = None, best: dict[str, torch.Tensor] | None = None, *, step: int = 0
    ) -> None:
        """Put the model into the first stage, or into the one that an interrupted run was in.

        Args:
            state: What the interrupted run's `state` was; None for a run from the start.
            best: The best weights of its stage, where `has_best(state)` says that it kept them.
            step: After how many optimizer steps it was interrupted.
        """
        self.undo_at_end(step_rows_alone(self._optimizer, self._bound))
        if self.resolved.rotation is not None:
            self._period = self.resolved.rotation.period(max(step - 1, 0))
        if state is None and self.resolved.forgets:
            refuse_optimizers_that_keep_state(self._optimizer, self._bound)
            # An earlier run with this optimizer may have left some: train() is called twice, or again after it failed.
            forget(self._optimizer, self._bound, self._bound.parameters.keys() - self.resolved.trains(0))
        self.state = state or self.state
        self.best = best or {}
        self.undo_at_end(stop_backward_at_lowest_trainable(self._bound.model))
        self.undo_at_end(partial(release_eval, self._bound.model, self._is_over))
        self._apply(self.state.stage)

    def step_begins(self, step: int) -> None:
        """Enter the stage of the optimizer step that comes after `step` steps, and set its learning rates."""
        self._bound.refuse_resized()
        self._refuse_missing_metrics()
        self.hold_adapters()
        if self._settling.is_needed:
            self._look_for_settled(step)
        self.state.begins = self._timeline.begins(fired=self._fired)
        stage = stage_of(self.state.begins, step)
        if stage != self.state.stage:
            self._enter(stage, step)
        self._rotate(step)
        self._gate.apply(self.state.begins, step)

    def has_best(self, state: RunState) -> bool:
        """Tell whether an interrupted run of this state kept the best weights of its stage."""
        watch = state.watch
        if watch is None or watch.stage != state.stage + 1 or watch.best_step is None:
            return False
        plateau = self.resolved.timed[watch.stage - 1].plateau
        return plateau is not None and plateau.restore_best

    def shifted(self, state: RunState, step: int) -> str | None:
        """Say which stages have another time in this run than in the interrupted one; None when all have the same.

        The times of stages are read anew: `fraction` follows the length of the run, `epoch` the steps of an epoch.
        """
        return self._timeline.shifted(state.begins, stage=state.stage, step=step, fired=state.fired or {})

    def steps_ahead(self, step: int) -> dict[int, int]:
        """Return, from the stage of the present step on, how many steps each has left, as far as that is known."""
        begins = [*self._timeline.begins(fired=self._fired)]
        ends = [*begins[1:], self._max_steps]
        spans = enumerate(zip(begins, ends, strict=True))
        return {
            stage: min(end, self._max_steps) - max(begin, step)
            for stage, (begin, end) in spans
            if stage >= self.state.stage and begin < self._max_steps
        }

    def hold_adapters(self) -> None:
        """Freeze what PEFT made trainable: it does so with a whole adapter that was switched off for a while.

        Call it before a forward pass and before the optimizer steps.
        """
        hold_requires_grad(self._adapters)

    def before_optimizer_step(self) -> dict[str, float]:
        """Return what to log about the next step of the optimizer: the rate of every group that trains."""
        self._bound.refuse_resized()
        self.hold_adapters()
        if self._proof:
            self._proof.before_step(self._optimizer)
        self._settling.before_optimizer_step(self.state.settling, stage=self.state.stage)
        return {f"lr/{name}": rate for name, rate in self._gate.rates().items()}

    def after_optimizer_step(self) -> None:
        """Give the scheduler its rates back, and note what moved."""
        self._gate.restore()
        if self._proof:
            self._proof.after_step()

    # The earlier names of these two.
    optimizer_steps, optimizer_stepped = before_optimizer_step, after_optimizer_step

    @property
    def may_require_grad(self) -> list[frozenset[str]]:
        """The names of this stage; where frozen weights are held by a rate of 0, also those of all stages."""
        ever = [self.resolved.ever_trainable] if self._freezes_by_lr else []
        return [self.resolved.model_map.every_alias(self.trains), *ever]

    @property
    def trained(self) -> frozenset[str]:
        """The canonical names of what trained up to now."""
        return self.resolved.trained_up_to(self.state.stage, self._period)

    @property
    def trains(self) -> frozenset[str]:
        """The canonical names of what trains now."""
        return self.resolved.trains(self.state.stage, self._period)

    def evaluated(self, metrics: Mapping[str, Any], step: int) -> None:
        """After an evaluation, check whether the plateau that the plan is waiting for has been reached.

        It is an evaluation of the stage that made the last step, even where the next stage begins here.
        """
        self._logged |= metrics
        awaited = self._timeline.awaited(max(step - 1, 0), fired=self._fired)
        if awaited is None:
            return
        plateau = self.resolved.timed[awaited - 1].plateau
        assert plateau is not None
        value = metric_value(plateau, metrics)
        if value is None:
            return
        watch = self.state.watch
        watch = watch if watch is not None and watch.stage == awaited else PlateauWatch(stage=awaited)
        watch = _from_main_process(watch.see(value, step=step, plateau=plateau))
        self.state.watch = watch
        if plateau.restore_best and watch.best_step == step:
            self.best = take_snapshot(self._bound, self.state.stage)
        if watch.is_over(plateau):
            self._fired[awaited] = step

    def _look_for_settled(self, step: int) -> None:
        watches = self.state.settling
        self._settling.observe(watches, step, stage=self._timeline.stage_at(step, fired=self._fired))
        while awaited := self._timeline.awaits_settling(step, fired=self._fired):
            if not self._settling.has_settled(watches, awaited):
                return
            self._fired[awaited] = step
            logger.info("Step %d: %s.", step, self._settling.reason(watches, awaited))

    @property
    def frozen_digests(self) -> Mapping[str, int]:
        """Name -> digest of what is frozen, as it was when the stage began; {} without a proof."""
        return self._proof.frozen if self._proof else {}

    def verify(self) -> None:
        """Raise `FreezeViolation` when something frozen moved, or replicas differ."""
        self.hold_adapters()
        if self._proof:
            self._proof.verify()

    def conclude(self, *, is_verified: bool = False) -> None:
        """Release the model, and raise `FreezeViolation` when the run did not do what the plan says.

        Give `is_verified` where `verify` was called after the last step and other weights may have been loaded since.
        """
        proof = self._proof
        self.hold_adapters()
        self.end()
        never = Counter(stage.when for stage in self.resolved.timed[self.state.stage :])
        for told in self._timeline.late:  # at the start
            del never[told]
        if never:
            logger.warning(
                "The run ended in stage %d of %d; these stages never began: %s.",
                self.state.stage,
                len(self.resolved.timed),
                ", ".join(f"{when} ({times} stages)" if times > 1 else when for when, times in never.items()),
            )
        if proof:
            proof.conclude(is_verified=is_verified)

    def require_optimizer(self, optimizer: object) -> None:
        """Raise `UnsupportedSetupError` for another optimizer than the one that the run began with."""
        now, before = inner_optimizer(optimizer), inner_optimizer(self._optimizer)
        if now is not before:
            raise UnsupportedSetupError(
                f"The optimizer was replaced while training: by {_described(now)}, before it was "
                f"{_described(before)}. The new one would step without the plan's groups, rates and proof. Give it to "
                "the Trainer before training, as optimizer_cls_and_kwargs=, or as optimizers= over the groups of "
                "hf_freeze.param_groups(model, args, plan=plan)."
            )

    def undo_at_end(self, undo: Callable[[], object]) -> None:
        """Call `undo` when the run releases the model."""
        self._on_the_model.callback(undo)

    def is_over(self) -> bool:
        """Tell whether the run broke off; if so, release the model."""
        return self._is_over()

    def end(self) -> None:
        """Release the model and the optimizer. Doing it twice changes nothing."""
        self._on_the_model.close()
        self._gate.restore()
        self._proof = None
        self._adapters = []

    @property
    def _fired(self) -> dict[int, int]:
        self.state.fired = {} if self.state.fired is None else self.state.fired
        return self.state.fired

    def _enter(self, stage: int, step: int) -> None:
        self.verify()
        restore_snapshot(self._bound, self.best)
        self.best = {}
        before = self.state.stage
        self._apply(stage)
        logger.info(
            "Step %d: stage %d of %d (%s) begins. Trains: %s.",
            step,
            stage,
            len(self.resolved.timed),
            self.resolved.timed[stage - 1].when if stage else "start",
            describe_parts(self.resolved.stages[stage], self.resolved.model_map),
        )
        forget_between(self._optimizer, self._bound, before=before, stage=stage)

    def _rotate(self, step: int) -> None:
        """Go on to the period of the step that comes after `step` steps, where the plan is a rotation."""
        rotation = self.resolved.rotation
        if rotation is None or (period := rotation.period(step)) == self._period:
            return
        before, self._period = self.trains, period
        now = self.trains
        if now == before:
            return
        self.verify()
        self._apply(self.state.stage)
        forget(self._optimizer, self._bound, before - now)
        change = rotation.describe_change(before, now)
        logger.info("Step %d: period %d of the rotation begins. %s", step, period, change)

    def _apply(self, stage: int) -> None:
        trainable = self.resolved.model_map.every_alias(self.resolved.trains(stage, self._period))
        with_gradient = self.resolved.ever_trainable if self._freezes_by_lr else trainable
        thawed, frozen = set_trainable(self._bound.model, with_gradient)
        if thawed or frozen:
            rebuild_ddp_reducers(self._wrappers)
        named = self._bound.parameters.items() if self._added else ()
        self._adapters = [(tensor, name in with_gradient) for name, tensor in named if name in self._added]
        if self._settings.frozen_eval:
            hold_eval(self._bound.model, trainable, is_over=self._is_over)
        if self._proof:
            self._proof.watch(self._optimizer, trainable)
        self.state.stage = stage

    def _refuse_missing_metrics(self) -> None:
        """Check that the evaluations since the last step, of all sets, had the metrics of the plan's plateaus."""
        # A callback may evaluate a set of its own, under another prefix than the Trainer's.
        if any(name.startswith("eval_") for name in self._logged):
            for plateau in filter(None, (stage.plateau for stage in self.resolved.timed)):
                require_metric(plateau, self._logged)
        self._logged = {}


def _described(optimizer: Any) -> str:
    return f"{type(optimizer).__name__} with {len(getattr(optimizer, 'param_groups', ()))} groups"


def _is_over(run: "ref[FreezeRun]") -> bool:
    """Tell whether the run is gone; end it where an exception has left it behind."""
    found = run()
    if found is None:
        return True
    if found._is_running():
        return False
    found.end()
    return True


def _from_main_process(watch: PlateauWatch) -> PlateauWatch:
    """Return the watch of the main process on every process."""
    shared: list[PlateauWatch] = [watch]
    broadcast_object_list(shared)
    return shared[0]
