"""What `hf-freeze plan` was given, checked before a model is built."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields

import torch
from transformers import get_scheduler

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.flags import LARGEST_COUNT
from hf_freeze.training.arguments import FreezeTrainingArguments

_COUNTS = ("tokens", "rows", "per_device_train_batch_size", "gradient_accumulation_steps")
_AMOUNTS = ("learning_rate", "weight_decay", "num_train_epochs", "warmup_steps", "unfreeze_warmup")


def checked_arguments(options: argparse.Namespace) -> FreezeTrainingArguments:
    """Return the training arguments among the options. Raises `FreezeError` for those that no run can have."""
    for name in _COUNTS:
        count = getattr(options, name)
        if count is not None and not 1 <= count <= LARGEST_COUNT:
            raise FreezeError(f"--{name} {count} is no count. Give 1 or more, at most {LARGEST_COUNT:,}.")
    for name in _AMOUNTS:
        amount = getattr(options, name)
        if not (0 <= amount < math.inf):
            raise FreezeError(f"--{name} {amount:g}: give a finite number of at least 0.")
    values = {field.name: getattr(options, field.name) for field in fields(FreezeTrainingArguments) if field.init}
    try:
        args = FreezeTrainingArguments(**values)
    except FreezeError:
        raise
    except Exception as error:  # what the Trainer's own arguments refuse, in whatever way
        raise FreezeError(f"These arguments make no training: {error}") from error
    _check_length(args, options)
    _check_scheduler(args)
    return args


def _check_length(args: FreezeTrainingArguments, options: argparse.Namespace) -> None:
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise FreezeError(f"--num_train_epochs {args.num_train_epochs:g} trains nothing. Give more than 0.")
    if options.plot and options.rows is None and args.max_steps <= 0:
        raise FreezeError(
            "--plot: the length of the run is not known. Give --rows, the number of training rows, or --max_steps."
        )


def _check_scheduler(args: FreezeTrainingArguments) -> None:
    steps = max(args.max_steps, 1)
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(())], lr=1.0),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type] # text is read by the arguments
        )
    except Exception as error:  # of whatever kind
        given = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise FreezeError(
            f"--lr_scheduler_type {given} with --lr_scheduler_kwargs {args.lr_scheduler_kwargs} makes no scheduler: "
            f"{error}. Give its settings as JSON in --lr_scheduler_kwargs."
        ) from error
