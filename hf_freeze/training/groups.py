"""The one builder of optimizer parameter groups: who shares a learning rate and a weight decay.

Groups hold every parameter that ever trains, from the start, and never change: an optimizer that learns of a
parameter later breaks its scheduler and cannot be resumed. A frozen parameter has no gradient, so that optimizers
neither step it nor decay it nor hold state for it.
"""

import difflib
import hashlib
import inspect
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import FreezePlan, ResolvedPlan, resolve
from hf_freeze.plan.given import PlanLike, as_plan
from hf_freeze.plan.stages import is_number
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.backends import group_members
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.freezing import plan_as_it_is
from hf_freeze.training.group_names import group_name
from hf_freeze.training.group_rates import BaseOptions, GroupLRs, Rung, rungs_of
from hf_freeze.training.row_parameters import members

logger = logging.getLogger(__name__)

_PLAN = "freeze_plan"
_NO_PLAN = ""
"""The key under which a group holds the fingerprint of the plan given to `param_groups`."""


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """One optimizer group: its name, the canonical names of its parameters in model order, and its options."""

    name: str
    parameters: tuple[str, ...]
    options: Mapping[str, Any]
    has_own_rate: bool = False
    """Whether `group_lrs` or the plan's `lr_factors` gave the rate."""

    @property
    def digest(self) -> str:
        """A short text that tells groups with other members apart."""
        members = hashlib.sha256("\n".join(self.parameters).encode()).hexdigest()[:12]
        return f"{len(self.parameters)} tensors, {members}"


def param_groups(
    model: nn.Module,
    args: TrainingArguments | None = None,
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
    plan: PlanLike | None = None,
    group_lrs: GroupLRs | None = None,
    layer_lr_decay: float = 1.0,
    optimizer_cls: type[torch.optim.Optimizer] | None = None,
) -> list[dict[str, Any]]:
    """Build named parameter groups for `Trainer(optimizers=...)`, `optimizer_cls_and_kwargs` or a custom training loop.

    Biases and norms have no weight decay, as in the Trainer, unless a selection of nothing else is given one.

    Args:
        model: The model whose parameters the groups hold, wrapped or not.
        args: Gives the learning rate and the weight decay where `lr` and `weight_decay` do not.
        lr: The learning rate, in a loop that has no TrainingArguments.
        weight_decay: The weight decay; 0 without it and without `args`.
        plan: What `FreezeCallback` takes as a plan. Without it, what requires a gradient now is what trains.
        group_lrs: Maps a selection to a learning rate or to options (`lr`, `weight_decay`, ...).
        layer_lr_decay: Parameters without a rate from `group_lrs` have the learning rate times this factor to the power
            of their depth: 0 for the head and what follows the layers, 1 for the top layer, one more per layer below,
            embeddings last. (Discriminative rates of Howard and Ruder, 2018, in the layer-wise form of ELECTRA and
            BEiT.)
        optimizer_cls: The class that takes the groups. As optimizers ignore options that they do not know, an option
            that this class does not have is refused; without it, those of torch's own optimizers and of `args.optim`
            pass.

    Returns:
        The groups, as an optimizer of torch takes them, each with a `name`.

    Raises:
        PlanError: Without a learning rate, for an invalid rate, for an unknown option, and for a selection
            that matches nothing that trains or what another one matches too.
        SelectionError: For a selection that matches nothing in the model.
    """
    _refuse_other_types(args, group_lrs, optimizer_cls)
    base = _base_options(args, lr, weight_decay)
    _refuse_misspelt_options(group_lrs or {}, args, model, optimizer_cls)
    declared = plan_as_it_is(model) if plan is None else as_plan(plan)
    resolved = resolve(declared, model, rates=group_lrs or ())
    decayed = Trainer.get_decay_parameter_names(None, unwrap(model))  # type: ignore[arg-type] # reads nothing of self
    specs = group_specs(resolved, base, decayed=decayed, group_lrs=group_lrs or {}, layer_lr_decay=layer_lr_decay)
    mark = _NO_PLAN if plan is None else resolved.fingerprint
    return [{**group, _PLAN: mark} for group in with_parameters(specs, model)]


def refuse_groups_of_another_plan(optimizer: torch.optim.Optimizer, bound: BoundPlan) -> None:
    """Raise `PlanError` where `param_groups` built the optimizer's groups for something else than this plan."""
    resolved = bound.resolved
    theirs = {group[_PLAN] for group in optimizer.param_groups if _PLAN in group}
    if theirs - {resolved.fingerprint, _NO_PLAN}:
        raise PlanError(
            "Two plans: the optimizer's groups were built by param_groups(plan=...) for another plan than "
            f"{resolved.plan.to_dict()}, which the Trainer follows. Give both the same one."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {name: id(parameter) in held for name, parameter in bound.parameters.items()}
    wrong = [name for name, is_held in names.items() if is_held != (name in resolved.ever_trainable)]
    # Where FSDP or DeepSpeed keep weights in tensors of their own, none is held by name.
    if _NO_PLAN in theirs and wrong and any(names.values()):
        raise PlanError(
            "Two plans: the optimizer's groups were built by param_groups without plan=, from what required a gradient "
            f"then, and {'hold' if names[wrong[0]] else 'lack'} {wrong[0]!r}, which {resolved.plan.to_dict()} "
            f"{'never trains' if names[wrong[0]] else 'trains'}. Give param_groups the same plan."
        )


def _refuse_other_types(args: object, group_lrs: object, optimizer_cls: object) -> None:
    if not isinstance(args, TrainingArguments | None):
        raise PlanError(f"args={args!r:.80} is a {type(args).__name__}; param_groups() takes TrainingArguments.")
    if not isinstance(group_lrs, Mapping | None):
        raise PlanError(
            f"group_lrs={group_lrs!r:.80} is not a mapping of selections to rates, such as {{'head': 1e-3}}."
        )
    if optimizer_cls is not None and not isinstance(optimizer_cls, type):
        raise PlanError(f"optimizer_cls={optimizer_cls!r:.80} is not a class; give one such as torch.optim.AdamW.")


def _base_options(args: TrainingArguments | None, lr: float | None, weight_decay: float | None) -> BaseOptions:
    rate = lr if lr is not None else args.learning_rate if args is not None else None
    decay = weight_decay if weight_decay is not None else args.weight_decay if args is not None else 0.0
    if not is_number(rate) or rate < 0:
        raise PlanError(f"lr={rate!r} is not a learning rate: pass lr= or args= to param_groups().")
    if not is_number(decay) or decay < 0:
        raise PlanError(f"weight_decay={decay!r} is not a finite number of at least 0.")
    return BaseOptions(rate, decay)


def group_specs(
    resolved: ResolvedPlan,
    base: TrainingArguments | BaseOptions,
    *,
    decayed: Collection[str],
    group_lrs: GroupLRs,
    layer_lr_decay: float,
) -> list[GroupSpec]:
    """Put every tensor that ever trains into exactly one group: of one rung, one weight decay and one set of stages."""
    rungs = rungs_of(resolved, base, group_lrs, layer_lr_decay)
    by_key = _divided(resolved, rungs, frozenset(decayed))
    layers = [] if resolved.rotation is None else [*resolved.rotation.layers]
    decaying_entries = {key.entry for key in by_key if not key.undecayed}
    stages_of: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for key in by_key:
        stages_of.setdefault(key.order, set()).add(key.stages)
    specs = []
    for key, names in sorted(by_key.items()):
        rung = rungs[names[0]]
        no_decay = key.undecayed and ("weight_decay" not in rung.options or key.entry in decaying_entries)
        label = rung.label if key.turn < 0 else rung.label_of_turn(layers[key.turn])
        stages = key.stages if len(stages_of[key.order]) > 1 else ()
        options = {"weight_decay": base.weight_decay, **rung.options, **({"weight_decay": 0.0} if no_decay else {})}
        specs.append(
            GroupSpec(
                name=group_name(label, decays=not no_decay, stages=stages, of=len(resolved.stages)),
                parameters=tuple(names),
                options=options,
                has_own_rate=rung.has_own_rate,
            )
        )
    return specs


class _Key(NamedTuple):
    """What the members of one group share, in the order in which groups are listed."""

    order: tuple[int, ...]
    stages: tuple[int, ...]
    turn: int
    undecayed: bool

    @property
    def entry(self) -> tuple[int, ...]:
        """The entry of `group_lrs` or of the plan's rates, without what tells its own groups apart."""
        return self.order[:2]


def _divided(resolved: ResolvedPlan, rungs: Mapping[str, Rung], decayed: frozenset[str]) -> dict[_Key, list[str]]:
    """Divide the names of all that ever trains into groups; `turn` is a layer of a rotation, -1 for the rest."""
    model_map, stages_of = resolved.model_map, resolved.stages_of
    turns = {} if resolved.rotation is None else resolved.rotation.layer_of
    by_key: dict[_Key, list[str]] = {}
    for name in model_map.parts:
        if stages := stages_of.get(name):
            tensor = model_map.rows[name].matrix if name in model_map.rows else name
            decays = any(alias in decayed for alias in model_map.ties[tensor])
            key = _Key(rungs[name].order, stages, turns.get(name, -1), not decays)
            by_key.setdefault(key, []).append(name)
    return by_key


_TORCHS_OWN = [cls for cls in vars(torch.optim).values() if inspect.isclass(cls) and cls is not torch.optim.Optimizer]


def refuse_unknown_options(group_lrs: GroupLRs, known: Collection[str], optimizer: str) -> None:
    """Raise `PlanError` for an option that is not among the `known` ones of the optimizer of this name."""
    for selection, options in group_lrs.items():
        unknown = sorted(options.keys() - set(known)) if isinstance(options, Mapping) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], sorted(known), n=1, cutoff=0.0)
            raise PlanError(
                f"group_lrs[{selection!r}]: {unknown[0]!r} is not an option of {optimizer}. Nearest: "
                f"{', '.join(map(repr, near))}. Its options are {', '.join(sorted(known))}."
            )


def _refuse_misspelt_options(
    group_lrs: GroupLRs, args: TrainingArguments | None, model: nn.Module, cls: type[torch.optim.Optimizer] | None
) -> None:
    if cls is not None:
        return refuse_unknown_options(group_lrs, _options_of(cls), cls.__name__)
    known = frozenset().union(*map(_options_of, _TORCHS_OWN))
    given = {name for options in group_lrs.values() if isinstance(options, Mapping) for name in options}
    if given <= known:
        return
    if args is None:
        return refuse_unknown_options(group_lrs, known, "torch's own optimizers (name yours as optimizer_cls)")
    name = getattr(args.optim, "value", args.optim)
    # Only now, as it imports the optimizer's package.
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, unwrap(model))  # type: ignore[arg-type]
    refuse_unknown_options(group_lrs, known | _options_of(cls) | kwargs.keys(), f"torch's optimizers or {name}")


def _options_of(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters) - {"params", "closure", "args", "kwargs"}


def with_parameters(specs: Sequence[GroupSpec], model: nn.Module) -> list[dict[str, Any]]:
    """Turn specs into what `torch.optim` takes."""
    named = dict(unwrap(model).named_parameters())
    return [
        {"params": [*members(named, spec.parameters).values()], "name": spec.name, **spec.options} for spec in specs
    ]


def warn_of_unused_rates(optimizer: torch.optim.Optimizer, plan: FreezePlan) -> None:
    """Warn where the optimizer was built without the plan's learning rates."""
    has_rates = plan.lr_factors or plan.lr_spread != 1
    if has_rates and not any("name" in group for group in optimizer.param_groups):
        logger.warning(
            "The plan has learning rates of its own (lr_factors=%r, lr_spread=%g), and this optimizer was built "
            "without them: everything trains at one rate. Use FreezeTrainer, or give the Trainer an optimizer over "
            "hf_freeze.param_groups(model, args, plan=plan).",
            plan.lr_factors,
            plan.lr_spread,
        )


def refuse_left_out(optimizer: torch.optim.Optimizer, bound: BoundPlan) -> None:
    """Raise `PlanError` where the model was replaced, so that the optimizer lacks parameters that the plan trains.

    Callbacks are not called between `model_init` and the creation of the optimizer, which then holds only what requires
    a gradient.
    """
    held = {id(parameter) for members in group_members(optimizer) for parameter in members}
    left_out = {name: parameter for name, parameter in bound.ever_trainable.items() if id(parameter) not in held}
    if not left_out:
        return
    first, *others = left_out
    trains = f"The plan trains {first!r}" + (f" and {len(others)} more" if others else "")
    if any(parameter.requires_grad for parameter in left_out.values()):
        raise PlanError(
            f"{trains}, but the optimizer is that of another model: this one took its place after the optimizer was "
            "built. Build a new Trainer for it."
        )
    raise PlanError(
        f"{trains}, but model_init returned a model with that frozen (PEFT freezes what it wraps), and the optimizer "
        "was built before a callback could unfreeze it. Let model_init call "
        f"hf_freeze.unfreeze(model, {_entries_for([*left_out], bound.resolved)!r}) before it returns the model, or use "
        "FreezeTrainer, which builds the optimizer itself."
    )


def _entries_for(names: list[str], resolved: ResolvedPlan) -> list[str]:
    """Return the entries of the plan that ask for these tensors."""
    return [text for text, picked in resolved.declared.items() if not picked.isdisjoint(names)] or names
