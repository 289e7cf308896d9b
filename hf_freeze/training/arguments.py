"""Freezing declared beside the other TrainingArguments: in Python, as command-line flags, in YAML or JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.given import as_plan
from hf_freeze.plan.recipes import RECIPES
from hf_freeze.plan.stages import AnyStage, Plateau, Settled, read_mapping, stage_from_dict, stage_to_dict
from hf_freeze.training.given_weights import read_gamma, read_weights

# HfArgumentParser takes a union with bool for a bool; a string is what a flag gives.
if TYPE_CHECKING:
    BoolOrPath = bool | str | PathLike[str]
else:
    BoolOrPath = str | None


@dataclass
class FreezeArguments:
    """The extras that `FreezeTrainer` reads; mix them into any TrainingArguments class.

    `class Seq2SeqFreezeArguments(FreezeArguments, Seq2SeqTrainingArguments)` with `@dataclass` is all it takes;
    `freezing(Seq2SeqTrainer)` returns such a class. As flags they are read by `HfArgumentParser`.

    Args:
        freeze: What stays frozen. Give at most one of `freeze`, `trainable` and `freeze_recipe`.
        trainable: What trains; everything else is frozen.
        group_lrs: Learning rates by selection, or options such as {"lr": 1e-4, "weight_decay": 0.1}.
        layer_lr_decay: Factor on the rate per layer below the head; 1.0 for none.
        freeze_recipe: A whole plan: the name of a recipe such as "gradual:every_epochs=0.5", or the path of a file.
        unfreeze_stages: Stages after the start, as mappings, or the path of a file with a list of them.
        unfreeze_warmup: Steps (1 or more), or the fraction of the run (below 1), over which the rate of what is
            unfrozen rises.
        frozen_eval: Keep frozen modules in eval mode.
        verify_freeze: Prove at each transition, each save and the end that the plan was kept.
        log_grad_norms: Log `grad_norm/<group>` for every optimizer group beside `grad_norm`, before clipping.
        cache_frozen: Compute what is frozen once and store it: True, or the folder for it.
        cache_frozen_dtype: Store it as "float32", "float16" or "bfloat16" instead of the model's own type.
        cache_frozen_max_gb: Store no more than this, in GB of 1e9 bytes.
        cache_frozen_always: Store it even where the estimate says that this takes longer than it saves.
        ignore_plan_change: Resume a checkpoint of another plan, with a new optimizer.
        save_trained_only: Save only the weights that trained.
        class_weights: Weight the loss by class: "balanced", one weight per class, or {"spam": 5.0} by name; classes
            that are not named have weight 1.
        pos_weight: For one logit or several labels, the weight of positives in binary cross entropy: one number, or
            one per label as a list or by name.
        focal_gamma: The exponent of the focal loss, such as 2.0; class weights are its alpha.

    Raises:
        PlanError: For a value of the wrong type or out of range; `freeze_plan()` raises it for a contradictory plan.

    >>> FreezeTrainingArguments("out", trainable=["head"], use_cpu=True, report_to=[]).freeze_plan().to_dict()
    {'trainable': ['head']}
    """

    freeze: list[str] | None = field(
        default=None, metadata={"help": "What stays frozen: a selection, e.g. --freeze backbone '!norms'."}
    )
    trainable: list[str] | None = field(
        default=None,
        metadata={"help": "What trains, everything else being frozen, e.g. --trainable head 'layers[-2:]'."},
    )
    group_lrs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Learning rates by selection: \'{"head": 1e-3, "norms": {"lr": 1e-4, "weight_decay": 0.1}}\'.'
        },
    )
    layer_lr_decay: float = field(
        default=1.0, metadata={"help": "Factor on the learning rate per layer below the head; 1.0 is none."}
    )
    freeze_recipe: str | None = field(
        default=None,
        metadata={
            "help": f"A named plan: {', '.join(RECIPES)}; with options as in 'gradual:every_epochs=0.5'; or "
            "the path of a YAML or JSON file with a plan."
        },
    )
    unfreeze_stages: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": 'Stages after the start: JSON such as \'[{"epoch": 1, "unfreeze": "layers[-1]"}]\', or the path of '
            "a YAML or JSON file with such a list."
        },
    )
    unfreeze_warmup: float = field(
        default=0.0,
        metadata={
            "help": "Ramp up the rate of what is unfrozen over this many steps (1 or more) "
            "or this fraction of the run (below 1)."
        },
    )
    frozen_eval: bool = field(
        default=True, metadata={"help": "Keep frozen modules in eval mode: dropout off, BatchNorm statistics fixed."}
    )
    verify_freeze: bool = field(
        default=True,
        metadata={
            "help": "Prove at each save and at the end that frozen weights did not change and trainable ones did."
        },
    )
    log_grad_norms: bool = field(
        default=False,
        metadata={
            "help": "Log grad_norm/<group> for every optimizer group beside grad_norm, each the norm before clipping."
        },
    )
    cache_frozen: BoolOrPath = field(
        default=False,
        metadata={
            "help": "Compute what is frozen once, and train on its stored output: true, or the folder to keep it in "
            "(true: _frozen_features in output_dir).",
            "nargs": "?",
            "const": True,
        },
    )
    cache_frozen_dtype: str | None = field(
        default=None,
        metadata={"help": "Store features as float32, float16 or bfloat16 instead of the model's own type."},
    )
    cache_frozen_max_gb: float = field(
        default=20.0, metadata={"help": "Store no features that would take more than this many GB (1e9 bytes)."}
    )
    cache_frozen_always: bool = field(
        default=False,
        metadata={"help": "Store features even where the estimate says that it costs more than it saves."},
    )
    ignore_plan_change: bool = field(
        default=False,
        metadata={
            "help": "Resume a checkpoint of another plan: take over weights, step and schedule, begin a new optimizer."
        },
    )

    save_trained_only: bool = field(
        default=False,
        metadata={
            "help": "Save only the weights that trained; 'hf-freeze merge' writes the whole model from them and the "
            "base."
        },
    )
    class_weights: dict[str, float] | str | list[float] | None = field(
        default=None,
        metadata={
            "help": (
                "Weight the loss by class: 'balanced', one weight per class '[1, 5]', or by name '{\"spam\": 5}'; "
                "classes that are not named have weight 1."
            )
        },
    )
    pos_weight: dict[str, float] | str | float | list[float] | None = field(
        default=None,
        metadata={
            "help": (
                "Train one logit, or several labels, by binary cross entropy with this weight on positives: 5, or for "
                "several labels one weight each, as a list or by name."
            )
        },
    )
    focal_gamma: float | None = field(
        default=None,
        metadata={"help": "Train by the focal loss with this exponent, such as 2; class weights are its alpha."},
    )

    def __post_init__(self) -> None:
        self.group_lrs = _read_group_lrs(self.group_lrs)
        self.freeze_recipe = _plain_plan(self.freeze_recipe)
        self.cache_frozen = _read_bool_or_path(self.cache_frozen)
        for name in (
            "frozen_eval",
            "verify_freeze",
            "log_grad_norms",
            "cache_frozen_always",
            "ignore_plan_change",
            "save_trained_only",
        ):
            if not isinstance(getattr(self, name), bool):
                raise PlanError(f"{name}={getattr(self, name)!r}: give True or False.")
        if self.cache_frozen_dtype not in (None, "float32", "float16", "bfloat16"):
            raise PlanError(f"cache_frozen_dtype={self.cache_frozen_dtype!r} is not one of float32, float16, bfloat16.")
        limit = self.cache_frozen_max_gb
        if not isinstance(limit, int | float) or isinstance(limit, bool) or not limit > 0:
            raise PlanError(f"cache_frozen_max_gb={limit!r} is not a number of GB above 0, such as 20.")
        self.unfreeze_stages = _plain_stages(self.unfreeze_stages)
        self.class_weights = read_weights(self.class_weights, "class_weights")
        self.pos_weight = read_weights(self.pos_weight, "pos_weight")
        self.focal_gamma = read_gamma(self.focal_gamma)
        parents = super()
        if hasattr(parents, "__post_init__"):
            parents.__post_init__()

    @property
    def rates_by_selection(self) -> dict[str, Any]:
        """`group_lrs` as a mapping; {} when there are none."""
        return self.group_lrs if isinstance(self.group_lrs, dict) else {}

    def freeze_plan(self) -> FreezePlan | None:
        """Return the declared plan, or None when nothing was declared.

        Raises:
            PlanError: For several declarations that exclude each other, a recipe or stages that cannot be read.
            SelectionError: For a selection that cannot be read.
        """
        stages = [stage_from_dict(stage) for stage in self._stages()]
        given = {"freeze": self.freeze, "trainable": self.trainable}
        declared = {name: value for name, value in given.items() if value is not None}
        if self.freeze_recipe is not None:
            if declared or stages:
                other = [*declared, *(["unfreeze_stages"] if stages else [])]
                raise PlanError(
                    f"freeze_recipe={self.freeze_recipe!r} is a whole plan; drop {' and '.join(other)}. For a plan "
                    "that has both, give freeze_recipe the path of a plan file."
                )
            return as_plan(self.freeze_recipe, argument="freeze_recipe")
        if not declared and not stages:
            return None
        return FreezePlan(freeze=self.freeze, trainable=self.trainable, stages=stages)

    def _stages(self) -> Sequence[Any]:
        stages = _plain_stages(self.unfreeze_stages)  # once more: a hyperparameter search sets them anew
        if isinstance(stages, str):
            stages = read_mapping(stages)
        if stages is not None and (isinstance(stages, str) or not isinstance(stages, Sequence)):
            raise PlanError(f"unfreeze_stages={self.unfreeze_stages!r} is not a list of stages, but {stages!r}.")
        return stages or ()


@dataclass
class FreezeTrainingArguments(FreezeArguments, TrainingArguments):
    """TrainingArguments with the extras that `FreezeTrainer` reads; see `FreezeArguments`."""


def _read_group_lrs(value: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    if isinstance(value, str):
        value = _read_json(value, "group_lrs")
    if value is not None and not isinstance(value, Mapping):
        raise PlanError(
            f"group_lrs={value!r} is not a mapping of selections to learning rates, such as {{'head': 1e-3}}."
        )
    return None if value is None else dict(value)


def _plain_plan(given: Any) -> Any:
    """Turn a plan or a path into a value that arguments are saved as."""
    if isinstance(given, FreezePlan):
        return given.to_dict()
    return fspath(given) if isinstance(given, PathLike) else given


def _plain_stages(stages: Any) -> Any:
    """Turn stages into the plain values that arguments are saved as; anything but a list stays as it is."""
    if isinstance(stages, str):
        return _read_json(stages, "unfreeze_stages") if stages.lstrip().startswith("[") else stages
    return [_plain_stage(stage) for stage in stages] if isinstance(stages, Sequence) else stages


def _plain_stage(stage: Any) -> Any:
    if isinstance(stage, AnyStage):
        return stage_to_dict(stage)
    if isinstance(stage, Mapping):
        return {name: asdict(value) if isinstance(value, Plateau | Settled) else value for name, value in stage.items()}
    return stage


def _read_bool_or_path(value: BoolOrPath) -> bool | str:
    if value is None or isinstance(value, bool):
        return bool(value)
    if not isinstance(value, str | PathLike):
        raise PlanError(f"cache_frozen={value!r}: give True, False, or the folder to keep features in.")
    text = fspath(value)
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}.get(
        text.lower(), text
    )


def _read_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PlanError(f"{name}={text!r} is not JSON: {error}.") from error
