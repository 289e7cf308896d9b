"""Forget the optimizer's state of weights that freeze, for plans with `forget=True` and rotations."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.plan.tables import describe_parts
from hf_freeze.training.backends import inner_optimizer
from hf_freeze.training.bound_plan import BoundPlan

logger = MainProcessLogger(__name__)

_GROUP_COUNTERS = ("step", "k")  # of apex; of schedulefree and prodigy


def refuse_forgetting(resolved: ResolvedPlan, backend: str) -> None:
    """Raise `UnsupportedSetupError` when the plan forgets optimizer state, for a backend that cannot."""
    if resolved.forgets:
        raise UnsupportedSetupError(
            f"The plan forgets optimizer state (forget=True, or a rotation). {backend} keeps the state of all weights "
            "in flat buffers, as long as its copies of the weights are, and cannot forget part of it. Leave forget "
            "out, or use DistributedDataParallel."
        )


def refuse_optimizers_that_keep_state(optimizer: object, bound: BoundPlan) -> None:
    """Raise `UnsupportedSetupError`, before the first step, for an optimizer that keeps the state of what freezes."""
    inner = inner_optimizer(optimizer)
    name, why = type(inner).__name__, ""
    if getattr(inner, "is_paged", False):
        why = "pages its state, and holds the pages for good. Use the one that does not, such as adamw_bnb_8bit"
    elif any(counter in group for group in inner.param_groups for counter in _GROUP_COUNTERS):
        why = "counts its steps per group, so that what is unfrozen again would not start fresh. Use AdamW"
    elif _is_built_ahead(inner, [*bound.ever_trainable.values()]):
        why = "builds the state of all weights before its first step. Use one that builds it as it steps, such as AdamW"
    if why:
        raise UnsupportedSetupError(
            f"The plan forgets optimizer state (forget=True, or a rotation), and {name} {why}, or leave forget out."
        )


def _is_built_ahead(inner: Any, tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether there is state of all, and no step was made: what an earlier run left lacks some, or has counted."""
    states = [inner.state[tensor] for tensor in tensors if tensor in inner.state]
    return len(states) == len(tensors) and not any(state.get("step", 0) for state in states)


def forget(optimizer: object, bound: BoundPlan, names: Iterable[str]) -> None:
    """Forget the state of the parameters with these canonical names."""
    inner = inner_optimizer(optimizer)
    # Some keep it in their groups, as GrokAdamW does.
    in_groups = [value for group in inner.param_groups for value in group.values() if isinstance(value, dict)]
    parameters = bound.parameters
    for name in names:
        for state in (inner.state, *in_groups):
            state.pop(parameters[name], None)


def forget_between(optimizer: object, bound: BoundPlan, *, before: int, stage: int) -> None:
    """Forget the state of what froze between the stages `before` and `stage`; log that, and what starts fresh."""
    resolved = bound.resolved
    now = resolved.stages[stage]
    gone = frozenset().union(*map(resolved.forgotten, range(before + 1, stage + 1))) - now
    forget(optimizer, bound, gone)
    anew = (now - resolved.stages[before]) & frozenset().union(*map(resolved.forgotten, range(before + 1)))
    if gone:
        logger.info("Forgot the optimizer's state of %s.", describe_parts(gone, resolved.model_map))
    if anew:
        logger.info("Trains again, with fresh optimizer state: %s.", describe_parts(anew, resolved.model_map))
