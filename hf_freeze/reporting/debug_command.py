"""The shell command `hf-freeze debug`: one text through a model and its tokenizer."""

import argparse
import json
import math
from typing import Any

import numpy as np
from transformers import logging, set_seed

from hf_freeze.debugging.sample import debug_sample
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.flags import check_seed
from hf_freeze.reporting.saved_model import load_classifier, load_tokenizer


def add_debug(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    command = commands.add_parser(
        "debug",
        help="run one text through a model, and say what is wrong",
        description="Run one text through a sequence classification model and its tokenizer, and say what was seen and "
        "what is wrong. Exit status 1 when a check failed.",
    )
    command.add_argument("model", metavar="MODEL", help="a folder (PEFT adapters included), or a model of the hub")
    command.add_argument("--text", required=True, help="the text")
    command.add_argument("--text_pair", "--text-pair", help="the second text, for models that read two")
    command.add_argument("--label", help="the label, by name or id; with it the loss is looked at")
    command.add_argument("--checks", choices=("fast", "full"), default="fast", help="how much to try out")
    command.add_argument("--backward", action="store_true", help="look at the gradient of every parameter")
    command.add_argument("--threshold", type=float, help="a margin, in place of the one saved with the model")
    command.add_argument("--seed", type=int, default=0, help="seeds what is random (a new head's weights, say)")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.set_defaults(run=_run_debug)


def _run_debug(options: argparse.Namespace) -> tuple[int, str]:
    """Run the sub-command; return its exit status and what to print."""
    check_seed("--seed", options.seed)
    _check_given(options)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_seed(options.seed)
    model = load_classifier(options.model)
    report = debug_sample(
        model,
        _sample(options, model.config),
        tokenizer=load_tokenizer(options.model),
        threshold="auto" if options.threshold is None else options.threshold,
        backward=options.backward,
        checks=options.checks,
        seed=options.seed,
        quiet=True,
    )
    return 0 if report.ok else 1, json.dumps(report.to_dict(), indent=2) if options.json else str(report)


def _check_given(options: argparse.Namespace) -> None:
    if options.threshold is not None and not abs(options.threshold) <= float(np.finfo(np.float32).max):
        raise FreezeError(f"--threshold {options.threshold!r}: give a finite margin, such as 0.5.")
    for name in ("text", "text_pair"):
        try:
            (getattr(options, name) or "").encode()
        except UnicodeEncodeError as error:  # bytes that the shell handed over and that are no text
            raise FreezeError(f"--{name} {getattr(options, name)!r} is not UTF-8 text.") from error


def _sample(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    sample: dict[str, Any] = {"text": options.text}
    if options.text_pair is not None:
        sample["text_pair"] = options.text_pair
    if options.label is not None:
        known = config.label2id or {}
        sample["label"] = options.label if options.label in known else _number(options.label, config)
    return sample


def _number(text: str, config: Any) -> int | float:
    """Read a class id, or any finite number for a model with one output."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if config.num_labels == 1 and math.isfinite(value):
        return value
    if not value.is_integer():
        wanted = "a finite number" if config.num_labels == 1 else f"a class id from 0 to {config.num_labels - 1}"
        raise FreezeError(f"--label {text!r} is neither {wanted} nor one of the model's labels {[*config.label2id]}.")
    return int(value)
