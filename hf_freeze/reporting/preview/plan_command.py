"""The shell command `hf-freeze plan`: preview what a plan would do to a model."""

import argparse
import json
import math
from dataclasses import fields, replace
from typing import Any

from transformers import HfArgumentParser, logging

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.figure import prepare_picture
from hf_freeze.reporting.flags import LARGEST_COUNT
from hf_freeze.reporting.preview.named_model import named_model
from hf_freeze.reporting.preview.plan_plot import plot_plan
from hf_freeze.reporting.preview.preview import preview
from hf_freeze.reporting.preview.preview_result import Preview
from hf_freeze.reporting.preview.rates import trainers_scheduler
from hf_freeze.reporting.saved_model import base_of_adapters
from hf_freeze.training.arguments import FreezeArguments, FreezeTrainingArguments

_LISTED = {field.name for field in fields(FreezeArguments)} | {
    *("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
}
_NOT_LISTED = ("cache_frozen", "ignore_plan_change", "verify_freeze")


def add_plan(commands: Any) -> None:
    """Add the sub-command and its arguments: its own, and every flag of `FreezeTrainingArguments`."""
    flags = HfArgumentParser(FreezeTrainingArguments, add_help=False)  # type: ignore[arg-type]
    for action in flags._actions:
        if action.dest not in _LISTED or action.dest.startswith(_NOT_LISTED) or isinstance(action.const, bool):
            action.help = argparse.SUPPRESS
        if action.choices:
            action.metavar = action.dest.upper()  # the choices of optim alone are a screen full; an error lists them
    command = commands.add_parser(
        "plan",
        parents=[flags],
        help="preview a plan on a model: what trains when, memory, traffic, cost",
        description="Preview a plan stage by stage and group by group: parameters, learning rates, optimizer state, "
        "gradients, activations, what DDP sends, and the cost relative to full fine-tuning. No weights are loaded. "
        "Every flag of FreezeTrainingArguments counts, also those that are not listed.",
    )
    command.add_argument("model", metavar="MODEL", help="a folder, or a model of the hub; only its config is read")
    command.add_argument("--auto_class", "--auto-class", help="build it with this class, e.g. AutoModelForCausalLM")
    command.add_argument("--tokens", type=int, help="tokens per row, for activations and cost (128)")
    command.add_argument("--rows", type=int, help="rows of training data, so that epochs become steps")
    command.add_argument("--plot", help="write a picture of the learning rates to this file, as a PNG; needs --rows")
    command.add_argument("--json", action="store_true", help="print the preview as JSON")
    command.set_defaults(run=_run_plan)


def _run_plan(options: argparse.Namespace) -> tuple[int, str]:
    """Run the sub-command; return its exit status and what to print."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    args = _checked_arguments(options)
    if options.plot:
        prepare_picture("--plot", options.plot)
    seen = _previewed(options, args)
    if options.plot:
        plot_plan(seen, options.plot)
    return 0, json.dumps(seen.to_dict(), indent=2) if options.json else str(seen)


def _previewed(options: argparse.Namespace, args: FreezeTrainingArguments) -> Preview:
    base = base_of_adapters(options.model)
    model = named_model(base or options.model, options.auto_class)
    seen = preview(model, args, tokens=options.tokens, rows=options.rows)
    if base is None:
        return seen
    remark = f"{options.model} holds PEFT adapters: this is their model {base}, without them."
    return replace(seen, remarks=(*seen.remarks, remark))


_COUNTS = ("tokens", "rows", "per_device_train_batch_size", "gradient_accumulation_steps")
_AMOUNTS = ("learning_rate", "weight_decay", "num_train_epochs", "warmup_steps", "unfreeze_warmup")


def _checked_arguments(options: argparse.Namespace) -> FreezeTrainingArguments:
    """Return the training arguments among the options. Raises `FreezeError` for those that no run can have."""
    for name in _COUNTS:
        count = getattr(options, name)
        if count is not None and not 1 <= count <= LARGEST_COUNT:
            raise FreezeError(f"--{name} {count} is not a count. Give 1 or more, at most {LARGEST_COUNT:,}.")
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
        raise FreezeError(f"Nothing can be trained with these arguments: {error}") from error
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
    try:
        trainers_scheduler(args, max(args.max_steps, 1))
    except Exception as error:  # of whatever kind
        given = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise FreezeError(
            f"--lr_scheduler_type {given} with --lr_scheduler_kwargs {args.lr_scheduler_kwargs} makes no scheduler: "
            f"{error}. Give its settings as JSON in --lr_scheduler_kwargs."
        ) from error
