"""Check the arguments of `preview` before anything is built or traced."""

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, TrainingArguments

from hf_freeze.errors import FreezeError, PlanError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.given import as_plan
from hf_freeze.reporting.preview.stand_in import longest_text
from hf_freeze.training.arguments import FreezeArguments


def check_model_and_arguments(model: object, args: object) -> None:
    """Raise `FreezeError` where there is no model to preview, or there are not TrainingArguments."""
    if not isinstance(model, nn.Module | PretrainedConfig | str | PathLike):
        raise FreezeError(
            f"model={model!r} is a {type(model).__name__}. Give a model, a configuration, or the name or folder of one."
        )
    if not isinstance(args, TrainingArguments):
        raise FreezeError(
            f"args={args!r} are not TrainingArguments. Give those of the run, such as FreezeTrainingArguments."
        )


def check_counts(**counts: object) -> None:
    """Raise `FreezeError` for a count that is given and is not a whole number of at least 1."""
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise FreezeError(f"{name}={count!r} is not a whole number of at least 1.")


def check_tokens(tokens: int | None, model: nn.Module) -> None:
    """Raise `FreezeError` for texts that are longer than the model takes."""
    longest = longest_text(model)
    if tokens is not None and longest is not None and tokens > longest:
        raise FreezeError(
            f"tokens={tokens}: the configuration of {type(model).__name__} has max_position_embeddings={longest}. Give "
            "fewer tokens, or raise it there."
        )


def check_batch(batch: object, model: nn.Module) -> None:
    """Raise `FreezeError` for anything but a batch, and for inputs that the model's forward does not have."""
    if batch is None:
        return
    if not isinstance(batch, Mapping) or not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(dict(batch))):
        raise FreezeError(
            f"batch={_start_of(batch)} is not a mapping of a model's inputs to tensors. Give one as the data collator "
            "makes it, such as next(iter(trainer.get_train_dataloader()))."
        )
    named, takes_more = _inputs(model)
    unknown = [name for name in batch if name not in named]
    if unknown and named and not (takes_more and len(unknown) < len(batch)):
        raise FreezeError(
            f"batch has {unknown[0]!r}, which {type(model).__name__}.forward does not take. It takes "
            f"{', '.join(named)}."
        )


def _inputs(model: nn.Module) -> tuple[list[str], bool]:
    """Return the names of what `forward` takes, and whether it takes others too."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _start_of(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def one_plan(plan: Any, args: TrainingArguments) -> FreezePlan | None:
    """Return the plan that is given, or else the one that the arguments declare. Raises `PlanError` for both."""
    given = None if plan is None else as_plan(plan)
    declared = args.freeze_plan() if isinstance(args, FreezeArguments) else None
    if given is not None and declared is not None:
        raise PlanError(f"Two plans: plan={given.to_dict()} and, in the arguments, {declared.to_dict()}. Keep one.")
    return given or declared
