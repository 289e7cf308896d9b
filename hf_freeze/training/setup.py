"""Refuse, before anything is written or trained, what could not honour a plan."""

import logging
import os
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import str_to_bool
from torch import nn
from transformers import TrainingArguments

from hf_freeze.errors import PlanError, UnsupportedSetupError
from hf_freeze.plan.resolved import ResolvedPlan
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.snapshot import refuse_rewind

logger = logging.getLogger(__name__)


def check_setup(args: TrainingArguments, model: nn.Module, resolved: ResolvedPlan) -> None:
    """Raise `UnsupportedSetupError` for an optimizer, a precision or a wrapper that cannot honour the plan."""
    check_arguments(args)
    _check_precision(args, model, resolved)
    _check_plateaus(args, resolved)
    _check_deepspeed(args, resolved)
    if _uses_fsdp(args):
        refuse_rewind(resolved, "FSDP")


def check_arguments(args: TrainingArguments) -> None:
    """Raise `UnsupportedSetupError` for what no plan on any model can be honoured with."""
    _check_optimizer(args)
    _check_fsdp(args)


def _check_plateaus(args: TrainingArguments, resolved: ResolvedPlan) -> None:
    plateaus = [stage.plateau for stage in resolved.timed if stage.plateau]
    if plateaus and args.eval_strategy == "no":
        raise PlanError(
            f"The plan waits for a plateau of {plateaus[0].metric!r}, but eval_strategy is 'no': nothing would ever be "
            "evaluated. Set eval_strategy to 'epoch' or 'steps'."
        )


def _check_optimizer(args: TrainingArguments) -> None:
    name = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in name or name in ("lomo", "adalomo"):
        instead = name.removesuffix("_layerwise") if "layerwise" in name else "adamw_torch"
        raise UnsupportedSetupError(
            f"optim={name!r} steps each parameter inside backward, so that there are no parameter groups to freeze, "
            f"thaw or give a rate of their own. Use one that steps after backward, such as optim={instead!r}."
        )


def _check_precision(args: TrainingArguments, model: nn.Module, resolved: ResolvedPlan) -> None:
    by_name = dict(unwrap(model).named_parameters())
    ever = [name for name in by_name if name in resolved.ever_trainable]
    half = [name for name in ever if by_name[name].dtype is torch.float16]
    if half and args.fp16:
        raise UnsupportedSetupError(
            f"{half[0]!r} and {len(half) - 1} other parameters to be trained are float16, and fp16=True scales "
            "gradients, which torch refuses for float16 weights. Load the model in float32, or upcast what trains: "
            "parameter.data = parameter.data.float(). What stays frozen may stay float16."
        )


def warn_of_coarse_weights(model: nn.Module, resolved: ResolvedPlan) -> None:
    """Warn where what trains is kept in a precision that swallows small steps."""
    by_name = dict(unwrap(model).named_parameters())
    ever = [name for name in by_name if name in resolved.ever_trainable]
    coarse = [name for name in ever if by_name[name].dtype in (torch.float16, torch.bfloat16)]
    if coarse:
        logger.warning(
            "%r and %d other parameters to be trained are %s: most steps at small learning rates are lost to rounding. "
            "Keep what trains in float32; frozen parts may stay as they are.",
            coarse[0],
            len(coarse) - 1,
            by_name[coarse[0]].dtype,
        )


def _check_deepspeed(args: TrainingArguments, resolved: ResolvedPlan) -> None:
    if resolved.timed and (args.deepspeed or args.deepspeed_plugin or _plugin("deepspeed_plugins")):
        raise UnsupportedSetupError(
            f"The plan has stages ({resolved.timed[0].when}, ...), and the Trainer runs under DeepSpeed, which steps "
            "inside backward, before the Trainer tells its callbacks of a step: freezing over time is not tested "
            "there. Use a plan without stages, DistributedDataParallel or FSDP2, or a loop of your own over "
            "deepspeed.initialize with param_groups and hf_freeze.training.run.FreezeRun."
        )


def _check_fsdp(args: TrainingArguments) -> None:
    if _uses_flat_parameters(args):
        raise UnsupportedSetupError(
            "FSDP1 with use_orig_params=False flattens frozen and trainable parameters into one tensor, which can only "
            "be trained or frozen as a whole. Use fsdp_version 2, or FSDP1 with use_orig_params=True."
        )


def _uses_fsdp(args: TrainingArguments) -> bool:
    return bool(args.fsdp or _plugin("fsdp_plugin") or _launched_with_fsdp())


def _launched_with_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _uses_flat_parameters(args: TrainingArguments) -> bool:
    """Read what accelerate reads: its plugin, where there is one, or else what the plugin will be built from.

    That is the arguments first, and the environment, in which `accelerate launch` leaves its options, where they are
    silent.
    """
    plugin = _plugin("fsdp_plugin")
    if plugin is not None:
        return plugin.fsdp_version == 1 and not plugin.use_orig_params
    declared: dict[str, Any] | None = args.fsdp_plugin_args
    if declared is None and not _launched_with_fsdp():
        return False
    launched = {
        "fsdp_version": os.environ.get("FSDP_VERSION", "1"),
        "use_orig_params": os.environ.get("FSDP_USE_ORIG_PARAMS", "false"),
    }
    asked = launched | (declared or {})
    return int(asked["fsdp_version"]) == 1 and not str_to_bool(str(asked["use_orig_params"]))


def _plugin(name: str) -> Any:
    """What `accelerate launch` or an Accelerator has set up; None before either."""
    return AcceleratorState._shared_state.get(name)
