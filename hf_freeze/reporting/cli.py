"""The shell command `hf-freeze`. A sub-command is a function that adds its arguments, and one that runs it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging, set_seed

from hf_freeze.debugging.sample import debug_sample
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison.compare_command import add_compare
from hf_freeze.reporting.preview.plan_command import add_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `hf-freeze`; return its exit status: 0, 1 when a check failed, 2 when it could not be run."""
    parser = argparse.ArgumentParser(
        prog="hf-freeze", description="Look at models before they are fine-tuned, while they are, and after."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_plan, add_compare, _add_debug):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except (FreezeError, OSError) as error:
        print(f"hf-freeze: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status


def _add_debug(commands: Any) -> None:
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
    command.set_defaults(run=_debug)


def _debug(options: argparse.Namespace) -> int:
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_seed(options.seed)
    model, tokenizer = _load(options.model)
    report = debug_sample(
        model,
        _sample(options, getattr(model, "config", None)),
        tokenizer=tokenizer,
        threshold="auto" if options.threshold is None else options.threshold,
        backward=options.backward,
        checks=options.checks,
        seed=options.seed,
        quiet=True,
    )
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.ok else 1


def _sample(options: argparse.Namespace, config: Any) -> dict[str, Any]:
    sample: dict[str, Any] = {"text": options.text}
    if options.text_pair is not None:
        sample["text_pair"] = options.text_pair
    if options.label is not None:
        known = getattr(config, "label2id", None) or {}
        sample["label"] = options.label if options.label in known else _number(options.label, known, config)
    return sample


def _number(text: str, known: dict[str, int], config: Any) -> int | float:
    try:
        value = float(text)
    except ValueError:
        raise FreezeError(
            f"--label {text!r} is neither a number nor one of the model's labels {list(known)}."
        ) from None
    return value if getattr(config, "num_labels", 2) == 1 else int(value)


def _load(name: str) -> tuple[Any, Any]:
    adapters = (Path(name) / "adapter_config.json").is_file()
    if adapters:
        model: Any = AutoPeftModelForSequenceClassification.from_pretrained(name)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        if not adapters:
            raise FreezeError(
                f"{name} has no tokenizer. Save it beside the model: tokenizer.save_pretrained(...)."
            ) from None
        tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    return model, tokenizer


if __name__ == "__main__":
    sys.exit(main())
