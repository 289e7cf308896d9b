"""Hold all that is to be compared against the model and the length of the run, before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_freeze.errors import FreezeError, PlanError
from hf_freeze.reporting.comparison.contenders import Contender, ContenderLike, default_contenders, read_contenders
from hf_freeze.reporting.comparison.task import Task
from hf_freeze.reporting.preview.rates import rate_schedule
from hf_freeze.training.groups import param_groups

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
