"""The norm of the gradient per optimizer group, for the logs."""

import math
from collections.abc import Mapping

import torch
from torch.nn.utils import get_total_norm
from transformers import TrainerState, TrainingArguments

from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.group_names import NO_DECAY


def is_logged(args: TrainingArguments, state: TrainerState, *, steps_per_epoch: int | None) -> bool:
    """Tell whether the Trainer will log the optimizer step that comes next."""
    step = state.global_step + 1
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if strategy == "epoch":
        return step == state.max_steps or bool(steps_per_epoch and step % steps_per_epoch == 0)
    due = strategy == "steps" and step % max(state.logging_steps, 1) == 0
    return due or (step == 1 and args.logging_first_step)


def norms_by_group(optimizer: torch.optim.Optimizer, bound: BoundPlan) -> dict[str, float]:
    """Return name -> norm of the gradient of the group, as it is now; parts that differ in weight decay count as one.

    A group without a gradient is left out, and so is one that is not the model's.
    """
    ours = {id(parameter) for parameter in bound.parameters.values()}
    gradients: dict[str, list[torch.Tensor]] = {}
    for index, group in enumerate(optimizer.param_groups):
        name = str(group.get("name", f"group_{index}")).replace(NO_DECAY, "", 1)
        found = [p.grad for p in group["params"] if p.grad is not None and id(p) in ours]
        if found:
            gradients.setdefault(name, []).extend(found)
    norms = [get_total_norm(found).float().cpu() for found in gradients.values()]
    return dict(zip(gradients, map(float, norms), strict=True))


def before_clipping(norms: Mapping[str, float], total: object) -> dict[str, float]:
    """Scale norms that were taken after clipping to those before it, by the `total` that the Trainer logs."""
    clipped = math.sqrt(sum(norm**2 for norm in norms.values()))
    if not (isinstance(total, int | float) and math.isfinite(total) and 0 < clipped < math.inf):
        return dict(norms)
    return {name: norm * total / clipped for name, norm in norms.items()}
