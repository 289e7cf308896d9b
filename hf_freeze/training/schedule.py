"""Gate and warmup per group, on top of whatever scheduler the Trainer has.

The scheduler's rate of a group is multiplied by a factor for the time of one optimizer step and put back afterwards,
so that the scheduler never sees it: 0 while the group is frozen, a linear ramp after it is unfrozen, then 1, all times
the factor of the stage. It is a function of the step alone, which is why a resumed run has the same rates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_freeze.errors import PlanError
from hf_freeze.plan.stages import is_number
from hf_freeze.plan.timeline import stage_of
from hf_freeze.training.backends import group_members, uses_master_weights
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.group_names import joined_names


def warmup_steps(warmup: float, max_steps: int) -> int:
    """Read `unfreeze_warmup`: a number of steps from 1 on, a fraction of the run below 1. Raises `PlanError`."""
    if not is_number(warmup) or warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise PlanError(
            f"unfreeze_warmup={warmup!r} must be a whole number of steps (1 or more) or a fraction of the run (below "
            "1)."
        )
    return int(warmup) if warmup >= 1 else round(warmup * max_steps)


def rate_factor(
    trains: Sequence[bool], begins: Sequence[int], step: int, warmup: int, factors: Sequence[float]
) -> float:
    """Return the factor on the scheduler's rate in the optimizer step that comes after `step` steps.

    `trains[i]` says whether the group trains in stage i, which begins after `begins[i]` steps. In step k = 1, 2, ... of
    its unfreezing the group has k / `warmup` of the rate. What trains from the start has the scheduler's ramp alone.
    `factors[i]` is what stage i multiplies all rates with.

    >>> [rate_factor([False, True], [0, 2], step, warmup=4, factors=[1.0, 0.5]) for step in range(7)]
    [0.0, 0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    """
    stage = stage_of(begins, step)
    if not trains[stage]:
        return 0.0
    factor = factors[stage]
    while stage and trains[stage - 1] and step - begins[stage] + 1 < warmup:
        stage -= 1
    if stage == 0 or warmup == 0:
        return factor
    return factor * min((step - begins[stage] + 1) / warmup, 1.0)


class RateGate:
    """Applies `rate_factor` to the groups of one optimizer.

    `apply` before an optimizer step, `restore` after it and before the scheduler steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, bound: BoundPlan, *, warmup: int) -> None:
        self._optimizer = optimizer
        self._warmup = warmup
        self._trains = _trains_by_group(optimizer, bound, warmup)
        self._rotation = rotation = bound.resolved.rotation
        members = names_by_group(optimizer, bound)
        self._places = [frozenset[int]() if rotation is None else rotation.places(names) for names in members]
        self._factors = bound.resolved.lr_factors
        self._applied: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._frozen: list[bool] = [False] * len(optimizer.param_groups)

    def apply(self, begins: Sequence[int], step: int) -> None:
        """Set every group to its rate of this step; a frozen one has no weight decay either."""
        groups = self._optimizer.param_groups
        self.restore()
        if len(groups) != len(self._trains):
            position = min(len(groups), len(self._trains))
            extra = groups[position].get("name", f"group_{position}") if len(groups) > len(self._trains) else ""
            raise PlanError(
                f"The optimizer has {len(groups)} groups, but had {len(self._trains)} when training began"
                + (f": {extra!r} was added. " if extra else ". ")
                + "Declare what trains later as a stage of the plan; its groups are there from the start."
            )
        self._frozen = []
        for group, trains, places in zip(groups, self._trains, self._places, strict=True):
            scheduled: dict[str, Any] = {option: group[option] for option in ("lr", "weight_decay") if option in group}
            factor = rate_factor(trains, begins, step, self._warmup, self._factors)
            if self._rotation is not None:
                factor *= self._rotation.factor(places, step, self._warmup)
            self._frozen.append(not factor)
            group["lr"] = group["lr"] * factor
            if not factor and "weight_decay" in group:
                group["weight_decay"] = 0.0
            self._applied.append((scheduled, {option: group[option] for option in scheduled}))

    def rates(self) -> dict[str, float]:
        """Return name -> rate of the groups that train; of a group and its parts once if equal: those without weight
        decay and, without a warmup, those unfrozen later.

        So of groups without names, such as the two of a plain Trainer, where they begin with one rate and train in the
        same stages.
        """
        rates: dict[str, float] = {}
        alike: dict[object, str] = {}
        groups = zip(self._optimizer.param_groups, self._trains, self._frozen, strict=False)
        for index, (group, trains, frozen) in enumerate(groups):
            if not frozen:
                rate = float(group["lr"])
                first = alike.setdefault((rate, group.get("initial_lr"), *trains), f"group_{index}")
                rates[str(group.get("name", first))] = rate
        # Without a warmup, what was unfrozen later has the rate of what trains already.
        shown = joined_names(rates, whenever=not self._warmup)
        return {label: rates[name] for label, name in shown.items()}

    def restore(self) -> None:
        """Put the scheduler's rates back, except where a new scheduler has set others since."""
        for group, (scheduled, gated) in zip(self._optimizer.param_groups, self._applied, strict=False):
            group.update({option: value for option, value in scheduled.items() if group[option] == gated[option]})
        self._applied = []


def names_by_group(optimizer: torch.optim.Optimizer, bound: BoundPlan) -> list[frozenset[str]]:
    """Return the canonical names of what ever trains in each group of the optimizer."""
    names = {id(parameter): name for name, parameter in bound.ever_trainable.items()}
    return [frozenset(names[id(p)] for p in members if id(p) in names) for members in group_members(optimizer)]


def _trains_by_group(optimizer: torch.optim.Optimizer, bound: BoundPlan, warmup: int) -> list[list[bool]]:
    """For every group, in which stages it trains."""
    names = {id(parameter): name for name, parameter in bound.parameters.items()}
    freezes_by_lr = uses_master_weights(optimizer)
    stages_of, rotation = bound.resolved.stages_of, bound.resolved.rotation
    result: list[list[bool]] = []
    for index, (group, parameters) in enumerate(zip(optimizer.param_groups, group_members(optimizer), strict=True)):
        members = [names[id(parameter)] for parameter in parameters if id(parameter) in names]
        ever = [name for name in members if name in stages_of]
        stages = {stages_of[name] for name in ever}
        takes_turns = rotation is not None and rotation.take_turns(frozenset(ever))
        if (warmup or freezes_by_lr) and (takes_turns or len(stages) > 1):
            raise PlanError(
                f"{'DeepSpeed' if freezes_by_lr else 'unfreeze_warmup'} needs groups that are unfrozen as a whole; "
                f"group {group.get('name', index)!r} of the optimizer mixes parameters of several stages or periods. "
                "Build it with hf_freeze.param_groups(model, args, plan=plan), or use FreezeTrainer."
            )
        trains = frozenset[int]().union(*stages)
        result.append([stage in trains or not members for stage in range(len(bound.resolved.stages))])
    return result


def continue_schedule(scheduler: object, step: int) -> None:
    """Put a fresh scheduler to where it is after `step` steps, for an optimizer that starts anew there.

    One that reacts to metrics (`ReduceLROnPlateau`) starts anew as well: what it has seen belongs to the old groups.
    """
    if isinstance(scheduler, LambdaLR):
        scheduler.last_epoch = step
        rates = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
