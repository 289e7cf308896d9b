"""The ways to fine-tune that are compared: each a plan, an adapter or both, with learning rates of its own.

All of them are read and resolved for the model before any of them is trained.
"""

import copy
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from hf_freeze.errors import FreezeError, PlanError
from hf_freeze.plan import recipes
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.given import PlanLike, as_plan
from hf_freeze.plan.stages import TopDown
from hf_freeze.reporting.comparison.task import Task
from hf_freeze.reporting.preview.rates import rate_schedule, steps_per_epoch
from hf_freeze.selection.language import evaluate
from hf_freeze.selection.model_map import map_model
from hf_freeze.selection.vocabulary import paths_in_front
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.groups import param_groups

_STAGES = 4
_LAST_THAW = 0.6  # of the run


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to fine-tune, for `compare`: a plan, a PEFT configuration or both, and learning rates of its own.

    What is None is taken from the arguments that all contenders share.

    Args:
        plan: A plan in any form: a `FreezePlan`, its mapping, a recipe such as "last-layers:2", the path of a file.
        adapter: A PEFT configuration such as `LoraConfig`. Without a plan, PEFT says what trains.
        learning_rate: The base rate.
        layer_lr_decay: Factor on the rate per layer below the head.
        group_lrs: Rates, or options such as {"lr": 1e-3, "weight_decay": 0.1}, by selection.
        unfreeze_warmup: Steps (1 or more), or the fraction of the run (below 1), over which a rate rises once its group
            is unfrozen.

    Raises:
        PlanError: With neither a plan nor an adapter, or for a plan that cannot be read.

    >>> Contender(plan="full", layer_lr_decay=0.8).freeze_plan.to_dict()
    {'trainable': 'all'}
    """

    plan: PlanLike | None = None
    adapter: PeftConfig | None = None
    learning_rate: float | None = None
    layer_lr_decay: float | None = None
    group_lrs: Mapping[str, Any] | None = None
    unfreeze_warmup: float | None = None

    def __post_init__(self) -> None:
        if self.plan is not None:
            object.__setattr__(self, "plan", as_plan(self.plan))
        if self.plan is None and self.adapter is None:
            raise PlanError("A contender needs a plan, an adapter, or both; this one has neither.")

    @property
    def freeze_plan(self) -> FreezePlan | None:
        """The plan; None where an adapter alone says what trains."""
        return self.plan if isinstance(self.plan, FreezePlan) else None

    @property
    def rates(self) -> dict[str, Any]:
        """The rates that it has of its own, by the name of the argument."""
        names = ("learning_rate", "layer_lr_decay", "group_lrs", "unfreeze_warmup")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def settings(self) -> dict[str, Any]:
        """Return all of it as JSON-able values."""
        plan = self.freeze_plan
        adapter = None if self.adapter is None else self.adapter.to_dict()
        return {"plan": None if plan is None else plan.to_dict(), "adapter": adapter, **self.rates}

    def model(self, model_init: Any, seed: int) -> nn.Module:
        """Build the model, its new weights by `seed`."""
        set_seed(seed)
        model: nn.Module = model_init()
        # PEFT writes what it finds out into the configuration.
        return model if self.adapter is None else get_peft_model(model, copy.deepcopy(self.adapter))

    def is_linear_probe(self, model: nn.Module) -> bool:
        """Tell whether nothing but the head ever trains, so that the rest can be computed once."""
        plan = self.freeze_plan
        model_map = map_model(model)
        if plan is None or plan.stages or not model_map.roles["head"]:
            return False
        return plan.resolve(model).ever_trainable <= model_map.every_alias(evaluate("head", model_map).names)


ContenderLike: TypeAlias = PlanLike | PeftConfig | Contender


def read_contenders(plans: Mapping[str, ContenderLike]) -> dict[str, Contender]:
    """Read what is to be compared. Raises `PlanError` for anything but a mapping of plans, or an empty one."""
    if not isinstance(plans, Mapping):
        raise PlanError(
            f"plans={plans!r} is a {type(plans).__name__}; compare needs a mapping of names to plans, such as "
            "{'probe': 'linear-probe', 'all': 'full'}."
        )
    if not plans:
        raise PlanError("plans={}: there is nothing to compare.")
    return {name: _read(name, plan) for name, plan in plans.items()}


def _read(name: str, plan: Any) -> Contender:
    if isinstance(plan, Contender):
        return plan
    if isinstance(plan, FreezePlan | Mapping | str | os.PathLike):
        return Contender(plan=plan)
    if isinstance(plan, PeftConfig):
        return Contender(adapter=plan)
    raise PlanError(
        f"plans[{name!r}]={plan!r} is not a plan. Give a FreezePlan, its mapping, the name of a recipe, a YAML or JSON "
        "file, a PEFT configuration such as LoraConfig, or a Contender, which has learning rates of its own."
    )


def default_contenders(model: nn.Module, args: FreezeArguments, *, train_rows: int) -> dict[str, Contender]:
    """Return the ways that have a name, for this model, around the learning rate of the arguments.

    That rate is taken to suit full fine-tuning. What is new (a head, adapters) learns at a higher one: the head at 10
    times, at 100 times where nothing else trains, LoRA at 3 times. Where a model has several stacks of layers, the last
    layers are those of the decoder, or of the stack that comes last. A model or a run that is too small for some of the
    ways has them here all the same; `compare` leaves them out.
    """
    rate = args.learning_rate  # type: ignore[attr-defined]  # of the TrainingArguments that it is mixed into
    head = {"head": recipes.HEAD_FACTOR * rate}
    return {
        "linear-probe": Contender(plan=recipes.linear_probe(), learning_rate=100 * rate),
        "last-layers": Contender(plan=_last_layers(model), learning_rate=3 * rate, group_lrs=head),
        "gradual": Contender(plan=_gradual(model, args, train_rows), group_lrs=head),
        "lp-ft": Contender(plan=recipes.lp_ft()),
        "layer-decay": Contender(plan=recipes.full(), learning_rate=2 * rate, layer_lr_decay=0.8, group_lrs=head),
        **_lora(model, 3 * rate, head),
        "full": Contender(plan=recipes.full(), group_lrs=head),
    }


def _lora(model: nn.Module, rate: float, head: dict[str, float]) -> dict[str, Contender]:
    """Return LoRA on every linear module of the layers, with the head trained whole; nothing without such modules."""
    parts = map_model(model).parts
    linear = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and parts.get(f"{path}.weight") == "layers"
    }
    if not linear:
        return {}
    transposed = any(isinstance(module, Conv1D) for module in linear.values())
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(linear), fan_in_fan_out=transposed)
    # The plan trains the head: PEFT's modules_to_save goes by the ends of names, and takes "dropout" for "out".
    plan = FreezePlan(trainable=["adapters", "head"])
    return {"lora": Contender(plan=plan, adapter=config, learning_rate=rate, group_lrs=head)}


def _last_layers(model: nn.Module) -> FreezePlan:
    """Return the last two layers and what lies above them; those next to the head where there are several stacks."""
    stacks = map_model(model).stacks
    if len(stacks) < 2:
        return recipes.last_layers(2)
    paths = paths_in_front(stacks)
    decoders = [path for path in paths if "decoder" in path]
    return FreezePlan(trainable=["head", "rest", f"{(decoders or paths)[-1]}.layers[-2:]"])


def _gradual(model: nn.Module, args: Any, train_rows: int) -> FreezePlan:
    """Unfreeze from the top down, the last of it at 60 % of the run: in four stages, in fewer where steps are few."""
    per_epoch = steps_per_epoch(args, train_rows)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    layers = max((len(stack.layers) for stack in map_model(model).stacks), default=1)
    # One stage more than these, for what lies below the layers; each begins a step after the one before, at least.
    of_layers = max(min(_STAGES, math.floor(_LAST_THAW * steps) - 1), 1)
    per_stage = math.ceil(layers / of_layers)
    stages = math.ceil(layers / per_stage) + 1
    every = _LAST_THAW * steps / per_epoch / stages
    return FreezePlan(trainable="head", stages=[TopDown(every_epochs=every, layers_per_stage=per_stage)])


logger = logging.getLogger(__name__)


def fitting_contenders(plans: Mapping[str, ContenderLike] | None, task: Task, model: nn.Module) -> dict[str, Contender]:
    """Read the plans; without any, take those of the default set that fit this model and a run of this length.

    Raises `PlanError` or `SelectionError` for a given plan that does not fit. Of the default set such a one is left
    out, and so is one with a stage that would never begin; a warning says so.
    """
    if plans is not None:
        given = read_contenders(plans)
        for name, contender in given.items():
            _fit(name, contender, task, model)
        return given
    known = default_contenders(model, task.args, train_rows=len(task.train_dataset))
    return {name: contender for name, contender in known.items() if _fits(name, contender, task, model)}


def _fits(name: str, contender: Contender, task: Task, model: nn.Module) -> bool:
    try:
        never = _fit(name, contender, task, model)
    except FreezeError as error:
        logger.warning("%s is left out of the comparison: %s", name, error)
        return False
    if never:
        logger.warning("%s is left out of the comparison: the run ends before its last stage begins.", name)
    return not never


def _fit(name: str, contender: Contender, task: Task, model: nn.Module) -> bool:
    """Return whether a stage would never begin."""
    own = model if contender.adapter is None else _adapted(name, contender, task)
    rates: dict[str, Any] = {"layer_lr_decay": task.args.layer_lr_decay, "group_lrs": task.args.rates_by_selection}
    rates |= {"lr": contender.learning_rate, **contender.rates}
    names = ("lr", "layer_lr_decay", "group_lrs")
    param_groups(own, task.args, plan=contender.freeze_plan, **{name: rates[name] for name in names})
    if contender.freeze_plan is None:
        return False
    schedule = rate_schedule(task.args, contender.freeze_plan.resolve(own), (), rows=len(task.train_dataset))
    assert schedule is not None
    return any(begin >= schedule.max_steps for begin in schedule.begins)


def _adapted(name: str, contender: Contender, task: Task) -> nn.Module:
    try:
        return contender.model(task.model_init, 0)
    except FreezeError:
        raise
    except Exception as error:  # whatever PEFT raises for a configuration that fits no module
        raise PlanError(f"plans[{name!r}]: PEFT cannot put this adapter on the model: {error}") from error
