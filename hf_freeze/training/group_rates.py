"""At which rate and with which options each parameter trains, before it is put into a group.

A rung is what `group_lrs` says of a parameter, else the plan's own rates, else its depth under `layer_lr_decay`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import TrainingArguments

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.plan.stages import is_number
from hf_freeze.plan.tables import part_labels
from hf_freeze.selection.language import evaluate
from hf_freeze.selection.model_map import ModelMap

GroupLRs: TypeAlias = Mapping[str, float | Mapping[str, Any]]


@dataclass(frozen=True)
class BaseOptions:
    """The rate and the weight decay of parameters for which nothing else is declared."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Rung:
    """What a parameter's group is called and optimized with, before the splits by weight decay and by stage."""

    label: str
    options: Mapping[str, Any]
    order: tuple[int, ...]
    has_own_rate: bool = False

    @property
    def is_named(self) -> bool:
        """Whether it is an entry of `group_lrs` or of `lr_factors`."""
        return self.order[0] == 1

    def label_of_turn(self, layer: str) -> str:
        """Name the group of one layer of a rotation: by the layer, and by the entry that gives its rate, if any."""
        return f"{self.label} of {_dotted(layer)}" if self.is_named else _dotted(layer)


def rungs_of(
    resolved: ResolvedPlan, base: TrainingArguments | BaseOptions, group_lrs: GroupLRs, layer_lr_decay: float
) -> dict[str, Rung]:
    """Return the rung of each name: that of `group_lrs`, else of the plan's own rates, else of its depth."""
    plan = resolved.plan
    factors = {selection: base.learning_rate * factor for selection, factor in plan.lr_factors.items()}
    rungs = _ladder(resolved.model_map, base.learning_rate, layer_lr_decay, spread=plan.lr_spread)
    rungs |= _named_rungs(factors, resolved, rungs, argument="lr_factors")
    return rungs | _named_rungs(group_lrs, resolved, rungs, argument="group_lrs", after=len(factors))


def _ladder(model_map: ModelMap, rate: float, decay: float, *, spread: float) -> dict[str, Rung]:
    """Rungs from the head down; one rung for all without a decay, or else the plan's spread."""
    if not (is_number(decay) and 0 < decay <= 1):
        raise PlanError(
            f"layer_lr_decay={decay!r} is not a factor per layer: it must be above 0 and at most 1 (no decay)."
        )
    if decay == 1 and spread == 1:
        return dict.fromkeys(model_map.parts, Rung("trainable", {"lr": rate}, (0,)))
    depths = _depths(model_map)
    if decay == 1:
        decay = spread ** (-1 / max(*depths.values(), 1))
    labels = {name: _dotted(label) for name, label in part_labels(model_map).items()}
    order = {label: index for index, label in enumerate(sorted(set(labels.values())))}
    return {
        name: Rung(label, {"lr": rate * decay ** depths[name]}, (0, depths[name], order[label]))
        for name, label in labels.items()
    }


def _depths(model_map: ModelMap) -> dict[str, int]:
    """Return how far below the head a tensor is: 0 for head and rest, 1 for the top layer, embeddings last."""
    depths = dict.fromkeys(model_map.parts, 0)
    for stack in model_map.stacks:
        for index, names in enumerate(stack.layers):
            depths.update(dict.fromkeys(names, len(stack.layers) - index))
    bottom = max(depths.values()) + 1
    return depths | {name: bottom for name, part in model_map.parts.items() if part == "embeddings"}


def _named_rungs(
    group_lrs: GroupLRs, resolved: ResolvedPlan, below: Mapping[str, Rung], *, argument: str, after: int = 0
) -> dict[str, Rung]:
    """Return the rungs of what `group_lrs` names; one that is given no rate there keeps that of its rung in `below`."""
    rungs: dict[str, Rung] = {}
    named: dict[str, str] = {}
    ever_trainable = frozenset().union(*resolved.stages)
    for order, (selection, value) in enumerate(group_lrs.items(), start=after):
        picked = ever_trainable.intersection(evaluate(selection, resolved.model_map).names)
        if not picked:
            raise PlanError(
                f"{argument}[{selection!r}] matches nothing that the plan ever trains. Drop it, or unfreeze it."
            )
        if twice := sorted(picked & named.keys()):
            raise PlanError(
                f"{twice[0]!r} is matched twice by {argument}: by {named[twice[0]]!r} and by {selection!r}. "
                f"Leave it out of one, by a narrower selection or a regular expression: "
                f"'{named[twice[0]]} & re:(?!.*{_module_of(twice[0])}).*' is {named[twice[0]]!r} without what has "
                f"{_module_of(twice[0])!r} in its name."
            )
        named |= dict.fromkeys(picked, selection)
        options = _options(selection, value)
        parts = 1 if "lr" in options else len({below[name].order for name in picked})
        for name in picked:
            rung = below[name]
            label, place = (selection, ()) if parts == 1 else (f"{selection} of {rung.label}", rung.order)
            has_own_rate = "lr" in options or rung.has_own_rate
            rungs[name] = Rung(label, {**rung.options, **options}, (1, order, *place), has_own_rate)
    return rungs


def _module_of(parameter: str) -> str:
    return next((part for part in parameter.split(".")[-2::-1] if not part.isdecimal()), parameter)


def _options(selection: str, value: float | Mapping[str, Any]) -> dict[str, Any]:
    options = dict(value) if isinstance(value, Mapping) else {"lr": value}
    if reserved := options.keys() & {"params", "name"}:
        raise PlanError(f"group_lrs[{selection!r}]: {min(reserved)!r} is set by hf_freeze. Give lr, weight_decay, ...")
    for name in options.keys() & {"lr", "weight_decay"}:
        number = options[name]
        if not is_number(number) or number < 0:
            raise PlanError(f"group_lrs[{selection!r}]: {name}={number!r} is not a finite number of at least 0.")
    return options


def _dotted(label: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", label)
