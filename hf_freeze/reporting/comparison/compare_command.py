"""The shell command `hf-freeze compare`: ways to fine-tune a model on a file of texts and labels."""

import argparse
import json
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict, disable_progress_bars
from transformers import logging

from hf_freeze.errors import FreezeError
from hf_freeze.features.extraction import by_length
from hf_freeze.reporting.comparison.compare import compare
from hf_freeze.reporting.comparison.comparison_plot import plot_comparison
from hf_freeze.reporting.comparison.contenders import ContenderLike, default_contenders
from hf_freeze.reporting.comparison.labelled_texts import load_texts
from hf_freeze.reporting.figure import prepare_picture
from hf_freeze.reporting.flags import LARGEST_COUNT, check_seed
from hf_freeze.reporting.saved_model import load_classifier, load_tokenizer
from hf_freeze.training.arguments import FreezeTrainingArguments


def add_compare(commands: Any) -> None:
    """Add the sub-command and its arguments."""
    command = commands.add_parser(
        "compare",
        help="train a model in several ways on the same rows, and compare them",
        description="Train a sequence classification model in several ways (linear probe, last layers, gradual, LP-FT, "
        "layer-wise decay, LoRA, full) on the same rows and seeds. Finished runs are kept in --folder, so that an "
        "interrupted comparison goes on.",
    )
    command.add_argument("model", metavar="MODEL", help="a folder, or a model of the hub")
    command.add_argument("data", metavar="DATA", help="a csv, tsv, json, jsonl or parquet file, or .gz")
    command.add_argument("--text_column", "--text-column", default="text", help="the column with the text")
    command.add_argument("--label_column", "--label-column", default="label", help="the column with the label")
    command.add_argument("--positive", help="the positive label, by name; by default the second in order")
    command.add_argument(
        "--rows", type=int, help="use this many rows, drawn at random; 70 %% train, 15 %% tune, 15 %% test"
    )
    command.add_argument("--plans", nargs="+", help="only these ways of training, or recipes such as last-layers:k=4")
    command.add_argument("--seeds", nargs="+", type=int, default=[42], help="train with each of these seeds")
    command.add_argument("--epochs", type=float, default=1.0, help="passes over the training rows")
    command.add_argument("--learning_rate", "--learning-rate", type=float, default=5e-5, help="as for training it all")
    command.add_argument("--batch_size", "--batch-size", type=int, default=16, help="rows per step")
    command.add_argument("--max_length", "--max-length", type=int, default=128, help="cut texts after this many tokens")
    command.add_argument("--folder", default="outputs/compare", help="the folder to keep finished runs in")
    command.add_argument("--plot", help="write the picture to this file, as a PNG")
    command.add_argument("--json", action="store_true", help="print all results as JSON")
    command.add_argument("--use_cpu", "--use-cpu", action="store_true", help="leave accelerators alone")
    command.set_defaults(run=_run_compare)


def _run_compare(options: argparse.Namespace) -> tuple[int, str]:
    """Run the sub-command; return its exit status and what to print."""
    if options.plot:
        prepare_picture("--plot", options.plot)
    _check_numbers(options)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    name = options.model
    parts = load_texts(options.data, text=options.text_column, label=options.label_column, rows=options.rows)
    classes = parts["train"].features["label"].names
    tokenizer = load_tokenizer(name)
    _check_length(options.max_length, tokenizer)
    args = _arguments(options)
    model_init = partial(_new_model, name, classes)
    comparison = compare(
        _chosen(options.plans, model_init(), args, len(parts["train"])),
        model_init=model_init,
        args=args,
        processing_class=tokenizer,
        folder=options.folder,
        seeds=options.seeds,
        positive=_positive(options.positive, classes),
        **_tokenized(parts, tokenizer, options.max_length),
    )
    if options.plot:
        plot_comparison(comparison, options.plot)
    return 0, json.dumps(comparison.to_dict(), indent=1) if options.json else str(comparison)


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise `FreezeError` for numbers that no comparison can be made with; None is what was not given."""
    for name in ("rows", "batch_size", "max_length", "epochs", "learning_rate"):
        value = getattr(options, name)
        if value is not None and not 0 < value <= LARGEST_COUNT:
            raise FreezeError(f"--{name} {value!r}: give a number above 0, at most {LARGEST_COUNT:,}.")
    if options.text_column == options.label_column:
        raise FreezeError(f"--text_column and --label_column are both {options.text_column!r}: give two columns.")
    for seed in options.seeds:
        check_seed("--seeds", seed)


def _check_length(max_length: int, tokenizer: Any) -> None:
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise FreezeError(
            f"--max_length {max_length} leaves no token of the text: the tokenizer adds {special} itself. Give more."
        )


def _new_model(name: str, classes: list[str]) -> Any:
    named = dict(enumerate(classes))
    return load_classifier(name, id2label=named, label2id={label: index for index, label in named.items()})


def _arguments(options: argparse.Namespace) -> FreezeTrainingArguments:
    return FreezeTrainingArguments(
        options.folder,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=4 * options.batch_size,
        warmup_steps=0.1,
        use_cpu=options.use_cpu,
        report_to="none",
        dataloader_pin_memory=False,
    )


def _chosen(
    names: list[str] | None, model: Any, args: FreezeTrainingArguments, rows: int
) -> dict[str, ContenderLike] | None:
    """Look names up among the default contenders of `compare`; others are recipes."""
    if names is None:
        return None
    known = default_contenders(model, args, train_rows=rows)
    return {name: known.get(name, name) for name in names}


def _positive(name: str | None, classes: list[str]) -> int:
    if name is None:
        return 1
    if name not in classes:
        raise FreezeError(f"--positive {name!r} is not one of the labels {classes}.")
    return classes.index(name)


def _tokenized(parts: DatasetDict, tokenizer: Any, max_length: int) -> dict[str, Any]:
    data = parts.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=max_length),
        batched=True,
        remove_columns="text",
    )
    return {
        "train_dataset": data["train"],
        "eval_dataset": _longest_first(data["validation"]),
        "test_dataset": _longest_first(data["test"]),
    }


def _longest_first(data: Dataset) -> Dataset:
    """Sort by length, so that little is padded; for sets in which the order makes no difference."""
    return data.select(by_length([len(tokens) for tokens in data["input_ids"]]))
