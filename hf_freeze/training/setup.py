"""Refuse set-ups that could not honour a plan, before anything is written or trained."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import str_to_bool
from torch import nn
from transformers import TrainingArguments

from hf_freeze.errors import PlanError, UnsupportedSetupError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.forgetting import refuse_forgetting
from hf_freeze.training.settling import refuse_settling
from hf_freeze.training.snapshot import refuse_rewind
from hf_freeze.training.thawed_base import thawed_tensors

logger = MainProcessLogger(__name__)


def check_setup(args: TrainingArguments, bound: BoundPlan, *, log_grad_norms: bool = False) -> None:
    """Raise `UnsupportedSetupError` for an optimizer, a precision or a wrapper that cannot honour the plan."""
    if log_grad_norms and not is_whole(args):
        raise UnsupportedSetupError(
            "log_grad_norms=True reads whole gradients, and FSDP and DeepSpeed keep them in shards. Leave it out."
        )
    check_arguments(args)
    _check_precision(args, bound)
    _check_plateaus(args, bound.resolved)
    _check_deepspeed(args, bound.resolved)
    if _uses_fsdp(args):
        refuse_rewind(bound.resolved, "FSDP")
        refuse_settling(bound.resolved, "FSDP")
    _check_thawed_base(args, bound)
    _check_rows(args, bound.resolved)


def require_module(model: object) -> None:
    """Raise `UnsupportedSetupError` for a model that is not a `torch.nn.Module`, such as SetFit hands to callbacks."""
    if isinstance(model, nn.Module):
        return
    advice = "Give the callback to a Trainer whose model is one."
    if isinstance(getattr(model, "model_body", None), nn.Module):
        advice = (
            "Its model_body is one: freeze that before training, with hf_freeze.freeze(model.model_body, ...), and "
            "leave the callback out."
        )
    raise UnsupportedSetupError(
        f"FreezeCallback was handed a {type(model).__name__}, which is not a torch.nn.Module. {advice}"
    )


def check_arguments(args: TrainingArguments) -> None:
    """Raise `UnsupportedSetupError` for arguments with which no plan on any model can be honoured."""
    _check_optimizer(args)
    _check_fsdp(args)


def _check_plateaus(args: TrainingArguments, resolved: ResolvedPlan) -> None:
    plateaus = [stage.plateau for stage in resolved.timed if stage.plateau]
    if plateaus and args.eval_strategy == "no":
        raise PlanError(
            f"The plan waits for a plateau of {plateaus[0].metric!r}, but eval_strategy is 'no': nothing would ever be "
            "evaluated. Set eval_strategy to 'epoch' or 'steps'."
        )


def _check_thawed_base(args: TrainingArguments, bound: BoundPlan) -> None:
    """PEFT saves adapters only; what is saved beside them must be whole on the process that saves."""
    zero = _deepspeed_config(args).get("zero_optimization", {}).get("stage")
    in_shards = "FSDP" if _uses_fsdp(args) else "ZeRO-3" if zero == 3 else None
    if in_shards and (thawed := thawed_tensors(bound.model, bound.resolved.ever_trainable)):
        raise UnsupportedSetupError(
            f"The plan trains {next(iter(thawed))!r} and {len(thawed) - 1} other weights of the base model under PEFT, "
            f"which would have to be saved beside the adapter, and {in_shards} keeps them in shards. Train adapters "
            "only, list the modules in modules_to_save of the PEFT config, or use DistributedDataParallel."
        )


def _check_rows(args: TrainingArguments, resolved: ResolvedPlan) -> None:
    if resolved.model_map.rows and not is_whole(args):
        raise UnsupportedSetupError(
            f"The plan does not treat all rows of {next(iter(resolved.model_map.cuts))!r} the same way, and "
            f"{'DeepSpeed' if uses_deepspeed(args) else 'FSDP'} keeps weights in shards or steps copies of them, in "
            "which single rows cannot be frozen. Train the whole matrix, or use DistributedDataParallel."
        )


def _check_optimizer(args: TrainingArguments) -> None:
    name = str(getattr(args.optim, "value", args.optim))
    if "layerwise" in name or name in ("lomo", "adalomo"):
        instead = name.removesuffix("_layerwise") if "layerwise" in name else "adamw_torch"
        raise UnsupportedSetupError(
            f"optim={name!r} steps each parameter inside backward, so that there are no parameter groups to freeze, "
            f"unfreeze or give a rate of their own. Use one that steps after backward, such as optim={instead!r}."
        )


def _check_precision(args: TrainingArguments, bound: BoundPlan) -> None:
    if not args.fp16:
        return
    half = [name for name, tensor in bound.ever_trainable.items() if tensor.dtype is torch.float16]
    if half:
        raise UnsupportedSetupError(
            f"{half[0]!r} and {len(half) - 1} other parameters to be trained are float16, and fp16=True scales "
            "gradients, which torch refuses for float16 weights. Load the model in float32, or upcast what trains: "
            "parameter.data = parameter.data.float(). What stays frozen may stay float16."
        )


def warn_of_coarse_weights(bound: BoundPlan) -> None:
    """Warn where what trains is kept in a precision that swallows small steps."""
    dtypes = {name: tensor.dtype for name, tensor in bound.ever_trainable.items()}
    coarse = [name for name, dtype in dtypes.items() if dtype in (torch.float16, torch.bfloat16)]
    if coarse:
        logger.warning(
            "%r and %d other parameters to be trained are %s: most steps at small learning rates are lost to rounding. "
            "Keep what trains in float32; frozen parts may stay as they are.",
            coarse[0],
            len(coarse) - 1,
            dtypes[coarse[0]],
        )


def _check_deepspeed(args: TrainingArguments, resolved: ResolvedPlan) -> None:
    if uses_deepspeed(args):
        refuse_rewind(resolved, "DeepSpeed")
        refuse_settling(resolved, "DeepSpeed")
        refuse_forgetting(resolved, "DeepSpeed")
    if resolved.timed:
        refuse_deepspeeds_own_optimizer(args)


def refuse_deepspeeds_own_optimizer(args: TrainingArguments) -> None:
    """Raise `UnsupportedSetupError` when the DeepSpeed configuration declares the optimizer."""
    if "optimizer" in _deepspeed_config(args):
        raise UnsupportedSetupError(
            "The DeepSpeed configuration has an 'optimizer', which DeepSpeed builds over one group of what trains at "
            "the start: nothing could be unfrozen later or have a rate of its own. Remove 'optimizer' from the "
            "configuration, and name it in the TrainingArguments, such as optim='adamw_torch'; the engine "
            "steps that one."
        )


def uses_deepspeed(args: TrainingArguments) -> bool:
    """Tell whether the Trainer runs, or will run, under DeepSpeed."""
    return bool(args.deepspeed or args.deepspeed_plugin or _plugin("deepspeed_plugins"))


def _deepspeed_config(args: TrainingArguments) -> Mapping[str, Any]:
    """Return what is configured; {} before accelerate has read a configuration that it was launched with."""
    given = _plugin("deepspeed_plugins")
    several = given.values() if isinstance(given, Mapping) else filter(None, [given])
    plugin = next((plugin for plugin in several if plugin.selected), args.deepspeed_plugin)
    config: Mapping[str, Any] = getattr(plugin, "deepspeed_config", None) or {}
    return config


def _check_fsdp(args: TrainingArguments) -> None:
    if _uses_flat_parameters(args):
        raise UnsupportedSetupError(
            "FSDP1 with use_orig_params=False flattens frozen and trainable parameters into one tensor, which can only "
            "be trained or frozen as a whole. Use fsdp_version 2, or FSDP1 with use_orig_params=True."
        )


def _uses_fsdp(args: TrainingArguments) -> bool:
    return bool(args.fsdp or _plugin("fsdp_plugin") or _launched_with_fsdp())


def is_whole(args: TrainingArguments) -> bool:
    """Tell whether each process holds the whole model, and the optimizer steps the model's own parameters."""
    return not (_uses_fsdp(args) or uses_deepspeed(args))


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
    """Return what `accelerate launch` or an Accelerator has set up; None before either."""
    return vars(AcceleratorState()).get(name) if is_initialized() else None
