"""A short run of any kind of Trainer under a plan, by callback or by mixin."""

import torch
from transformers import set_seed

from hf_freeze import FreezeCallback, FreezePlan, Stage, freezing

STEPS, TRANSITION = 6, 3


def plan_of(kind, staged):
    stages = [Stage(step=TRANSITION, unfreeze=kind.more)] if staged else []
    return FreezePlan(trainable=kind.last, stages=stages)


def trainer(kind, way, folder, *, staged=False, plan=None, settings=None, **changes):
    """Build a trainer of this kind; `changes` are arguments of its constructor, `settings` those of its arguments."""
    given = {**kind.build(), **changes}
    base, plan = kind.trainer(), plan or plan_of(kind, staged)
    mine, declared = freezing(base)
    values = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": TRANSITION,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "seed": 3,
    }
    args = declared(str(folder), **{**values, **kind.settings, **(settings or {})})
    if "peft_config" in changes:
        given.pop("ref_model", None)  # the base under the adapter is the reference
    set_seed(5)
    if way == "mixin":
        made = mine(args=args, freeze_plan=plan, **given)
    else:
        made = base(args=args, callbacks=[FreezeCallback(plan), *given.pop("callbacks", [])], **given)
    assert made.args is args
    return made


def weights(made):
    return {name: parameter.detach().cpu().clone() for name, parameter in made.model.named_parameters()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}
