"""`FreezeTrainer`: the Hugging Face Trainer with a freeze plan. `FreezeTrainerMixin` gives the same to any subclass."""

from collections.abc import Collection, Iterable, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

from hf_freeze.errors import FreezeError, PlanError, UnsupportedSetupError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.freeze_plan import FreezePlan, ResolvedPlan
from hf_freeze.plan.given import PlanLike, as_plan
from hf_freeze.private.require import require_private
from hf_freeze.training import checkpoint
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.arguments_class import by_name, naming_other_arguments
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.cached_features import CachedFeaturesTrainerMixin
from hf_freeze.training.callbacks import FreezeCallback
from hf_freeze.training.freezing import plan_as_it_is, set_trainable
from hf_freeze.training.groups import (
    GroupSpec,
    group_specs,
    refuse_groups_of_another_plan,
    refuse_unknown_options,
    with_parameters,
)
from hf_freeze.training.loss_window import LossWindowTrainerMixin
from hf_freeze.training.merged_groups import trains_others, with_groups
from hf_freeze.training.model_card import ModelCardTrainerMixin
from hf_freeze.training.planned_training import STATE_KEY, PlannedTraining
from hf_freeze.training.random_states import RandomStatesTrainerMixin
from hf_freeze.training.renamed_weights import RenamedWeightsTrainerMixin
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.schedule import continue_schedule
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.setup import check_arguments, refuse_deepspeeds_own_optimizer, uses_deepspeed
from hf_freeze.training.thresholds import ThresholdTrainerMixin
from hf_freeze.training.trained_only import TrainedOnlyTrainerMixin, refuse_split_checkpoints
from hf_freeze.training.trainer_events import TrainerEvents
from hf_freeze.training.weighted_training import WeightedLossTrainerMixin, refuse_unfit_weights
from hf_freeze.training.whole import has_optimizer, require_fitting, require_whole

logger = MainProcessLogger(__name__)
require_private()


class FreezeTrainerMixin(
    LossWindowTrainerMixin,
    RandomStatesTrainerMixin,
    CachedFeaturesTrainerMixin,
    WeightedLossTrainerMixin,
    ThresholdTrainerMixin,
    ModelCardTrainerMixin,
    RenamedWeightsTrainerMixin,
    TrainedOnlyTrainerMixin,
):
    """Adds a freeze plan to a Trainer class: `class MyTrainer(FreezeTrainerMixin, Seq2SeqTrainer): ...`.

    The plan is `freeze_plan=`, or what `FreezeTrainingArguments` declare; with neither, what requires gradients trains.
    Learning rates per group come from the arguments as well. On top of the Trainer it

    - freezes as `FreezeCallback` does, and proves it (`frozen_eval`, `verify_freeze`);
    - builds named optimizer groups, and logs `lr/<group>`, `stage` and `trainable_params`;
    - makes the loss mean the same whatever the gradient accumulation and the number of processes, weighted too
      (`class_weights`, `pos_weight`, `focal_gamma`, with `unweighted_loss` logged beside it);
    - refuses to resume under another plan, and resumes bit-exactly under the same (a collator or a data set that draws
      random numbers draws others after a resume within an epoch, as in any Trainer; at the end of one, the same);
    - says in the model card what trained, by which plan, and how to apply the threshold;
    - tunes the threshold of `BinaryClassificationMetrics` in training's own evaluations only, and saves it;
    - under PEFT, saves and loads the base weights that trained; with `save_trained_only`, of any model nothing else.

    Args:
        freeze_plan: What trains and when. Every other argument is the Trainer's, by position or by name.

    Raises:
        SelectionError, PlanError, UnsupportedSetupError: Before anything is written to `output_dir`. A model that the
            Trainer loads or wraps itself (a path, `model_init`, `peft_config`) is looked at once it is there.
    """

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    _specs: tuple[BoundPlan | None, str, list[GroupSpec]] = (None, "", [])  # of which plan at which rates

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Trainer in cls.__mro__[: cls.__mro__.index(FreezeTrainerMixin)]:
            bases = ", ".join(base.__name__ for base in cls.__bases__)
            raise UnsupportedSetupError(
                f"class {cls.__name__}({bases}): FreezeTrainerMixin comes after the Trainer, whose methods hide those "
                "of the mixin, so that nothing would be frozen. Put FreezeTrainerMixin first."
            )

    def __init__(self, *positional: Any, freeze_plan: PlanLike | None = None, **kwargs: Any) -> None:
        require_private()
        _require_trainer(self)
        given = by_name(type(self), FreezeTrainerMixin, positional, kwargs)
        self._given_plan = None if freeze_plan is None else as_plan(freeze_plan, argument="freeze_plan")
        self._starts_optimizer_anew = False
        _refuse_second_callback(given.get("callbacks") or ())
        self._look_at(given)
        with naming_other_arguments(type(self), given.get("args")):
            super().__init__(*positional, **kwargs)
        refuse_deepspeeds_own_optimizer(self.args)  # one that only `accelerate launch` knew of
        if isinstance(self.args, FreezeArguments):
            self._settings = self.args  # the Trainer may have copied them, or have them by another name than `args`
        self._declare_weights()
        as_given, others_train = self._plan_as_it_is, self._freezing.others_train
        self._declare_for(self.model)
        if as_given != self._plan_as_it_is or others_train:  # the Trainer froze some, or knows what trains beside it
            self._freezing.unbind(others_train=others_train and self._trains_others())
        bound = self._hold_against(self.args, self.model)
        self.add_callback(TrainerEvents(self._freezing, self))
        set_trainable(self.model, bound.resolved.names[0])

    def _look_at(self, given: Mapping[str, Any]) -> None:
        """Refuse what is wrong in the arguments of the constructor, as far as they tell, before anything is written."""
        model: Any = given.get("model")
        args: Any = given.get("args")
        self._settings = args if isinstance(args, FreezeArguments) else FreezeArguments()
        # With a path, a model_init or a peft_config, the Trainer builds the model that trains.
        is_final = isinstance(model, nn.Module) and given.get("peft_config") is None
        self._plan_as_it_is = plan_as_it_is(model) if is_final else FreezePlan(trainable="all")
        self._freezing = PlannedTraining(self._declared_plan())
        self._read_arguments()
        if args is None:
            return
        check_arguments(args)
        refuse_deepspeeds_own_optimizer(args)
        if given.get("peft_config") is None and given.get("model_init") is None:  # else it may be one of PEFT
            refuse_split_checkpoints(self._settings, args, model)
        if is_final:
            refuse_unfit_weights(self._settings, args, model, given.get("compute_loss_func"))
            self._freezing.others_train = _may_bring_parameters(given)
            self._hold_against(args, model)

    def _declare_for(self, model: nn.Module) -> None:
        """Read the arguments, and what requires a gradient in `model` now, which is the plan where none is declared."""
        self._plan_as_it_is = plan_as_it_is(model)
        self._read_arguments()

    def _read_arguments(self) -> None:
        """Take the plan and its settings from the arguments, which a hyperparameter search changes between runs."""
        given = self._settings
        settings = FreezeSettings(
            frozen_eval=given.frozen_eval,
            verify=given.verify_freeze,
            unfreeze_warmup=given.unfreeze_warmup,
            log_grad_norms=given.log_grad_norms,
        )
        plan, rates = self._declared_plan(), given.rates_by_selection
        self._freezing.declare(plan, settings, ignores_plan_change=given.ignore_plan_change, rates=rates)

    def _declared_plan(self) -> FreezePlan:
        given, declared = self._given_plan, self._settings.freeze_plan()
        if given is not None and declared is not None:
            raise PlanError(
                f"Two plans: freeze_plan={given.to_dict()} and, in the arguments, {declared.to_dict()}. Keep one."
            )
        return given or declared or self._plan_as_it_is

    @property
    def resolved_plan(self) -> ResolvedPlan:
        """What trains in each stage of this model."""
        return self._freezing.required_bound.resolved

    @property
    def freeze_stage(self) -> int | None:
        """The stage that training is in; None outside of `train()`."""
        return self._freezing.stage

    @property
    def trained_parameters(self) -> frozenset[str]:
        """The names of the parameters that have trained so far."""
        return self._freezing.trained

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Build the model, and hold the plan and the groups against it at once."""
        model: nn.Module = super().call_model_init(trial)
        self._declare_for(model)
        self._hold_against(self.args, model)
        return model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over named groups that hold every ever trainable parameter.

        Raises `UnsupportedSetupError` for an optimizer without groups, `PlanError` for an option that it has not.
        """
        target: Any = self.model if model is None else model
        self._read_arguments()
        bound, specs = self._bind()
        # Whatever is prepared next (DDP's reducer, FSDP's upcast, DeepSpeed's partition) sees all that ever trains.
        set_trainable(self.model, bound.resolved.ever_trainable)
        if self.optimizer is not None:
            refuse_groups_of_another_plan(self.optimizer, bound)
            return super().create_optimizer(*_given(model))
        before = self.optimizer_cls_and_kwargs
        cls, kwargs = before or self.get_optimizer_cls_and_kwargs(self.args, target)
        own_rate = [spec.name for spec in specs if spec.has_own_rate]
        groups = with_groups(cls, kwargs, with_parameters(specs, target), model=target, own_rate=own_rate)
        self.optimizer_cls_and_kwargs = cls, groups
        try:
            optimizer = super().create_optimizer(*_given(model))
        finally:
            self.optimizer_cls_and_kwargs = before
        refuse_unknown_options(self._settings.rates_by_selection, optimizer.defaults, type(optimizer).__name__)
        return optimizer

    def _trains_others(self) -> bool:
        cls, kwargs = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
        return trains_others(cls, kwargs, self.model)

    def _hold_against(self, args: TrainingArguments, model: nn.Module) -> BoundPlan:
        """Hold the plan and its rates against the model.

        What decays is not asked: a subclass may answer by what its constructor has yet to set.
        """
        bound = self._freezing.bind(args, model)
        self._group_specs(bound, args, decayed=())
        return bound

    def _bind(self) -> tuple[BoundPlan, list[GroupSpec]]:
        """Hold the plan and the groups against the model that trains next, unless that is done."""
        args, given = self.args, self._settings
        bound = self._freezing.bind(args, self.model)
        rates = repr((args.learning_rate, args.weight_decay, given.rates_by_selection, given.layer_lr_decay))
        known, of_rates, specs = self._specs
        if bound is not known or rates != of_rates:
            specs = self._group_specs(bound, args, decayed=self.get_decay_parameter_names(bound.model))
            self._specs = bound, rates, specs
        self._freezing.note_groups({spec.name: spec.digest for spec in specs})
        return bound, specs

    def _run_begins(self, run: FreezeRun, state: TrainerState) -> None:
        if self.model_init is not None:  # a search has set the arguments of its trial by now, and built the model
            self._begin_with_weights()
        self._begin_loss_window(self._freezing.saved_loss_window(state) if state.global_step else {})
        self._track_run(run)

    def _group_specs(self, bound: BoundPlan, args: TrainingArguments, *, decayed: Collection[str]) -> list[GroupSpec]:
        given = self._settings
        return group_specs(
            bound.resolved,
            args,
            decayed=decayed,
            group_lrs=given.rates_by_selection,
            layer_lr_decay=given.layer_lr_decay,
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *positional: Any, **kwargs: Any) -> TrainOutput:
        """Train by the plan. A checkpoint that was written under another plan is refused with the difference."""
        if isinstance(self.train_dataset, Sized) and len(self.train_dataset) == 0:
            raise FreezeError("train_dataset has no rows. Was everything filtered out?")
        if not any(isinstance(callback, TrainerEvents) for callback in self.callback_handler.callbacks):
            raise PlanError(
                f"{type(self).__name__} has lost its FreezeCallback, which begins the stages of its plan: something "
                "removed it. Leave it there; to train without a plan, use a Trainer of transformers."
            )
        if self.model_init is None:
            self._declare_for(self.model)
        if resume_from_checkpoint:
            self._check_same_plan(resume_from_checkpoint)
        else:
            self._freezing.resumed_from = None
            self._starts_optimizer_anew = False
        try:
            if positional or resume_from_checkpoint is not None:  # a Trainer's own `train` may take nothing
                positional = (resume_from_checkpoint, *positional)
            output: TrainOutput = super().train(*positional, **kwargs)
            return output
        finally:
            self._leave_stage()
            self._freezing.end()

    def _check_same_plan(self, resume_from_checkpoint: str | bool) -> None:
        folder = resume_from_checkpoint
        if isinstance(folder, bool):
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if folder is None:
            return  # the Trainer says that there is none
        in_parts = self.is_fsdp_enabled or self.is_deepspeed_enabled
        require_whole(folder, optimizer=not self._settings.ignore_plan_change and not in_parts)
        if not in_parts and self.model_init is None:
            require_fitting(folder, self.model, trained=self._freezing.required_bound.resolved.ever_trainable)
        self._read_arguments()
        self._bind()
        self._freezing.resumed_from = folder
        difference = self._freezing.difference_from(folder)
        if difference and not self._settings.ignore_plan_change:
            raise PlanError(difference)
        if difference and uses_deepspeed(self.args):
            raise UnsupportedSetupError(
                "ignore_plan_change=True begins a new optimizer, and DeepSpeed loads the old one together with the "
                f"weights. Start anew from the weights of {str(folder)!r}. {difference}"
            )
        if difference:
            logger.warning("ignore_plan_change=True: the optimizer starts anew. %s", difference)
        self._starts_optimizer_anew = difference is not None or not (in_parts or has_optimizer(folder))

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is None:
            super()._load_optimizer_and_scheduler(folder)
            return
        saved = checkpoint.read_state(folder)  # transformers 5.0 reads it into self.state only afterwards
        if self._starts_optimizer_anew:
            continue_schedule(self.lr_scheduler, saved.global_step)
        else:
            if self.is_fsdp_enabled:
                # It asks the checkpoint for the moments of all that requires a gradient now.
                set_trainable(self.model, self._freezing.names_with_state(saved))
            try:
                super()._load_optimizer_and_scheduler(folder)
            except ValueError as error:
                raise FreezeError(
                    f"The optimizer's state in {folder!r} is not of this run's optimizer ({error}). Did something "
                    "replace the optimizer while that run trained? To begin a new one, delete optimizer.pt there and "
                    "set ignore_plan_change=True."
                ) from error

    def _load_callback_state(self) -> None:
        saved: Any = self.state.stateful_callbacks
        # This trainer goes on with its own: restore_callback_states_from_checkpoint would build it anew.
        ours = {name: saved.pop(name) for name in (STATE_KEY,) if name in saved}
        super()._load_callback_state()
        saved.update(ours)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                # The next save looks every such callback up, those that the interrupted run had not among them.
                saved.setdefault(type(callback).__name__, callback.state())

    def log(self, logs: dict[str, float], *positional: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with `lr/<group>`, `stage` and `trainable_params` beside the training loss."""
        if "loss" in logs:
            logs.update(self._freezing.log_entries(logs))
        super().log(logs, *positional, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._freezing.verify()
        self._freezing.note_loss_window(self._loss_window())
        if self.args.should_save:
            run_folder = self._get_output_dir(kwargs.get("trial", args[1] if len(args) > 1 else None))
            folder = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            # Over an older checkpoint: with its state, what a killed save leaves would pass for a whole one.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self._freezing.save_stage_best(folder)
        super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The file that makes a checkpoint whole comes next: it must not be there before each process has saved its own.
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save as the Trainer does, under PEFT with the base weights that train."""
        super().save_model(output_dir, *args, **kwargs)
        if self.args.should_save:
            self._freezing.save_thawed(self.model, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *given: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *given)
        self._freezing.load_thawed(self.model, resume_from_checkpoint)


class FreezeTrainer(FreezeTrainerMixin, Trainer):
    """The Hugging Face Trainer with a freeze plan; every argument beside `freeze_plan` is the Trainer's."""


def _require_trainer(self: object) -> None:
    if not isinstance(self, Trainer):
        name = type(self).__name__
        raise UnsupportedSetupError(
            f"{name} is not a transformers.Trainer, and FreezeTrainerMixin adds a freeze plan to one: "
            f"class {name}(FreezeTrainerMixin, Trainer)."
        )


def _may_bring_parameters(given: Mapping[str, Any]) -> bool:
    """Tell whether the Trainer is given a loss, which may have parameters of its own to train."""
    return given.get("loss") is not None


def _refuse_second_callback(callbacks: Iterable[Any]) -> None:
    if any(isinstance(callback, FreezeCallback) for callback in callbacks):
        raise PlanError("FreezeTrainer brings its own FreezeCallback; give it the plan as freeze_plan= instead.")


def _given(model: nn.Module | None) -> tuple[nn.Module, ...]:
    return () if model is None else (model,)
