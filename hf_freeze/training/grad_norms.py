"""The norm of the gradient per optimizer group, for the logs."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from hf_freeze.training.backends import is_sharded
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


def parameters_by_group(optimizer: torch.optim.Optimizer, bound: BoundPlan) -> dict[str, list[torch.Tensor]]:
    """Return group name -> the model's parameters in it; parts that differ only in weight decay count as one."""
    ours = {id(parameter) for parameter in bound.parameters.values()}
    groups: dict[str, list[torch.Tensor]] = {}
    for index, group in enumerate(optimizer.param_groups):
        name = str(group.get("name", f"group_{index}")).replace(NO_DECAY, "", 1)
        groups.setdefault(name, []).extend(p for p in group["params"] if id(p) in ours)
    return groups


def norms_by_group(groups: Mapping[str, Iterable[torch.Tensor]]) -> dict[str, float]:
    """Return name -> norm of the gradient of the group, as it is now; a group without a gradient is left out."""
    gradients = [(name, p.grad) for name, members in groups.items() for p in members if p.grad is not None]
    if not gradients:
        return {}
    first = gradients[0][1].device
    # All are started before the first is read, because reading one waits for the device.
    norms = torch.stack([_norm(gradient).to(first, torch.float32) for _, gradient in gradients]).tolist()
    found: dict[str, list[float]] = {}
    for (name, _), norm in zip(gradients, norms, strict=True):
        found.setdefault(name, []).append(norm)
    return {name: math.hypot(*of) for name, of in found.items()}


def _norm(gradient: torch.Tensor) -> torch.Tensor:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm: Any = torch.linalg.vector_norm(values, dtype=torch.float32 if values.itemsize < 4 else None)
    whole: torch.Tensor = norm.full_tensor() if is_sharded(norm) else norm
    return whole


def before_clipping(norms: Mapping[str, float], total: object) -> dict[str, float]:
    """Scale norms that were taken after clipping to those before it, by the `total` that the Trainer logs."""
    clipped = math.sqrt(sum(norm**2 for norm in norms.values()))
    if not (isinstance(total, int | float) and math.isfinite(total) and 0 < clipped < math.inf):
        return dict(norms)
    return {name: norm * total / clipped for name, norm in norms.items()}
