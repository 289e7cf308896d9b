"""Checks of what the Trainer would do with the gradients: the plan, the optimizer, the scale of the loss."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_freeze.debugging.passes import Runner
from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning
from hf_freeze.model_inputs.inspected_model import InspectedModel
from hf_freeze.selection.frozen_marks import trained_rows
from hf_freeze.selection.rows import tensors_of


def stale_gradients(model: nn.Module) -> list[str]:
    """Return the frozen parameters that hold a gradient nevertheless."""
    return [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]


def check_plan(inspected: InspectedModel, stale: Sequence[str]) -> Check:
    """Compare what requires a gradient with the plan of the Trainer's callbacks, if there is one."""
    name: CheckName = "plan"
    model = inspected.model
    if stale:
        return failed(
            name,
            f"{_shown(stale)} is frozen but still holds a gradient: an optimizer that has it would update it. "
            "Set .grad = None, or freeze with hf_freeze.freeze, which does.",
        )
    mistaken = [path or "model" for path, module in model.named_modules() if "requires_grad" in vars(module)]
    if mistaken:
        return failed(
            name,
            f"{mistaken[0]}.requires_grad was set on a module: an attribute that torch never reads, and that freezes "
            "nothing. Call requires_grad_(...), or hf_freeze.freeze.",
        )
    training = frozenset(path for path, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)
    if not training:
        return (
            failed(name, "Nothing requires a gradient, so nothing would train.")
            if inspected.trainer
            else ok(name, "Everything is frozen.")
        )
    return _as_planned(training, _planned(inspected, model))


def _as_planned(training: frozenset[str], allowed: Sequence[frozenset[str]]) -> Check:
    name: CheckName = "plan"
    if not allowed or training in allowed:
        return ok(name, "Exactly what the plan trains requires a gradient." if allowed else "No plan to compare with.")
    nearest = min(allowed, key=lambda names: len(names ^ training))
    if extra := sorted(training - nearest):
        return failed(
            name,
            f"{_shown(extra)} requires a gradient, but the plan freezes it. Was requires_grad set afterwards?",
        )
    missing = sorted(nearest - training)
    return failed(name, f"{_shown(missing)} is frozen, but the plan trains it. Was requires_grad set afterwards?")


def ever_trainable(inspected: InspectedModel) -> tuple[frozenset[str], bool]:
    """Return the names of what trains at any time, and whether a plan says so; else they require a gradient now."""
    for callback in _planning_callbacks(inspected):
        return _every_alias(callback.resolved.ever_trainable, inspected.model), True
    return frozenset(name for name, p in inspected.model.named_parameters() if p.requires_grad), False


def _planned(inspected: InspectedModel, model: nn.Module) -> list[frozenset[str]]:
    """Return the sets of names that a plan lets train: those of its stage, or of any, while it does not run."""
    return [
        _every_alias(names, model)
        for callback in _planning_callbacks(inspected)[:1]
        for names in callback.planned_now()
    ]


def _planning_callbacks(inspected: InspectedModel) -> list[Any]:
    """Return the callbacks that follow a plan for this model: they answer `planned_now()`."""
    handler = getattr(inspected.trainer, "callback_handler", None)
    found = [one for one in getattr(handler, "callbacks", ()) if callable(getattr(one, "planned_now", None))]
    return [callback for callback in found if callback.planned_now()]


def _every_alias(names: Iterable[str], model: nn.Module) -> frozenset[str]:
    own = dict(model.named_parameters(remove_duplicate=False))
    tensors = {id(own[name]) for name in tensors_of(names) if name in own}
    return frozenset(name for name, parameter in own.items() if id(parameter) in tensors)


def check_optimizer(inspected: InspectedModel) -> Check | None:
    """Look for trainable parameters that the optimizer does not hold."""
    groups = _groups(inspected.trainer)
    if groups is None:
        return None
    held = {id(parameter) for parameter in groups}
    training = {name: p for name, p in inspected.model.named_parameters() if p.requires_grad}
    # Of a matrix of which some rows train, the optimizer holds these, which share its memory.
    memory = {parameter.untyped_storage().data_ptr() for parameter in groups if parameter.dim() == 2}
    left_out = [
        name
        for name, p in training.items()
        if id(p) not in held and not (trained_rows(p) is not None and p.untyped_storage().data_ptr() in memory)
    ]
    if left_out:
        return failed(
            "optimizer",
            f"The optimizer does not hold {_shown(left_out)}, which requires a gradient: it would never be updated. "
            "Build the optimizer from the model as it is now, or let the Trainer build it.",
        )
    return ok("optimizer", f"The optimizer holds all {len(training)} trainable parameters.")


def _groups(trainer: Any) -> list[torch.Tensor] | None:
    """Return the parameters that are, or will be, stepped; None where finding out would have side effects."""
    if trainer is None:
        return None
    optimizer = trainer.optimizer
    if optimizer is None and _builds_its_own(trainer):
        aside = copy.copy(trainer)  # what it sets, it sets on the copy
        try:
            aside.create_optimizer()
        except Exception:
            return None
        optimizer = aside.optimizer
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        _, options = getattr(trainer, "optimizer_cls_and_kwargs", None) or (None, dict[str, Any]())
        groups = options.get("params")
    if groups is None or "deepspeed" in type(optimizer).__module__:
        return None  # DeepSpeed steps copies
    return [p for group in groups for p in (group["params"] if isinstance(group, Mapping) else [group])]


def _builds_its_own(trainer: Any) -> bool:
    build = next(vars(cls)["create_optimizer"] for cls in type(trainer).__mro__ if "create_optimizer" in vars(cls))
    own = build is not Trainer.create_optimizer and not build.__module__.startswith(("hf_freeze.", "transformers."))
    return own and getattr(trainer, "optimizer_cls_and_kwargs", None) is None


def check_loss_scale(runner: Runner, batch: Mapping[str, Any], loss: torch.Tensor) -> Check | None:
    """Tell whether accumulation and processes scale the gradients, as where the model drops num_items_in_batch."""
    trainer = runner.inspected.trainer
    name: CheckName = "loss_scale"
    if trainer is None or trainer.args.gradient_accumulation_steps * trainer.args.world_size == 1:
        return None
    parts = (
        f"gradient_accumulation_steps={trainer.args.gradient_accumulation_steps}, {trainer.args.world_size} processes"
    )
    if getattr(trainer, "corrects_loss_scale", False):
        return ok(name, f"{parts}: this Trainer weights each micro-batch by its labels.")
    counted = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    if not counted or getattr(trainer, "loss_is_scaled_for_ga", None) is False:
        return ok(name, f"{parts}: the Trainer divides the loss by its micro-batches.")
    if getattr(trainer, "loss_is_scaled_for_ga", None) is True:
        return ok(name, f"{parts}: compute_loss declares that it divides by the whole batch.")
    items = torch.tensor(1_000, device=runner.inspected.device)
    counted_pass = runner.run(batch, count=items)
    if counted_pass.error is not None or not isinstance(counted_pass.loss, torch.Tensor):
        return None
    ratio = float(counted_pass.loss.detach()) / float(loss.detach()) if float(loss.detach()) else 0.0
    factor = trainer.args.world_size if trainer.args.average_tokens_across_devices else 1
    if abs(ratio / factor - 1) > 1e-2:
        return ok(name, f"{parts}: the loss divides by the items of the whole batch.")
    return warning(
        name,
        f"{parts}: the loss takes num_items_in_batch and drops it, so that gradients grow with both (transformers "
        "issue 47688). Use FreezeTrainer, or set model.accepts_loss_kwargs = False before building the Trainer.",
    )


def _shown(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
