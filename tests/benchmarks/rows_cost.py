"""What it costs to train rows of a matrix, beside training all of it.

Run (about a minute):  OMP_NUM_THREADS=1 python -m tests.benchmarks.rows_cost
Options: --steps 20 --vocabulary 30522 --width 384 --batch 8 --tokens 64 --repeats 5

A BERT of two layers whose word embeddings train, all or the last three rows, with AdamW and decay. Goal: a step over
rows takes at most 1.05 times as long, of FreezeTrainer and of a plain Trainer under FreezeCallback. The runs take turns;
the best time of each counts.
"""

import argparse
import sys
import tempfile
import time

import torch
import transformers as hf
from transformers import PrinterCallback, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezeCallback, FreezeTrainer, FreezeTrainingArguments
from tests.quiet import quiet_arguments

MATRIX = "bert.embeddings.word_embeddings"


def seconds_per_step(kind: str, options: argparse.Namespace) -> float:
    set_seed(0)
    sizes = {"hidden_size": options.width, "intermediate_size": 2 * options.width, "num_attention_heads": 4}
    config = hf.BertConfig(vocab_size=options.vocabulary, num_hidden_layers=2, **sizes)
    model = hf.BertForSequenceClassification(config)
    ids = torch.randint(options.vocabulary, (64, options.tokens))
    ids[:, 0] = options.vocabulary - 1 - torch.arange(64) % 3
    rows = [{"input_ids": row, "labels": index % 2} for index, row in enumerate(ids)]
    entry = MATRIX if kind == "matrix" else f"{MATRIX}[-3:]"
    short = {"max_steps": options.steps, "per_device_train_batch_size": options.batch, "weight_decay": 0.1}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "callback":
            args = quiet_arguments(folder, **short)
            trainer = hf.Trainer(
                model, args, train_dataset=rows, callbacks=[FreezeCallback(trainable=entry, verify=False)]
            )
        else:
            args = quiet_arguments(folder, cls=FreezeTrainingArguments, trainable=[entry], verify_freeze=False, **short)
            trainer = FreezeTrainer(model, args, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return (time.perf_counter() - start) / options.steps


def main() -> int:
    parser = argparse.ArgumentParser()
    defaults = {"steps": 20, "vocabulary": 30522, "width": 384, "batch": 8, "tokens": 64, "repeats": 5}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_verbosity_error()
    disable_progress_bar()
    print("command: python -m tests.benchmarks.rows_cost", *sys.argv[1:])
    found: dict[str, list[float]] = {"matrix": [], "rows": [], "callback": []}
    for _ in range(options.repeats):
        for kind, times in found.items():
            times.append(seconds_per_step(kind, options))
    best = {kind: min(times) for kind, times in found.items()}
    told = {"matrix": "the whole matrix", "rows": "three rows", "callback": "three rows, plain Trainer"}
    for kind, seconds in best.items():
        print(f"{told[kind]:>26}: {1e3 * seconds:.1f} ms a step, {seconds / best['matrix']:.3f} of the time")
    met = max(best["rows"], best["callback"]) <= 1.05 * best["matrix"]
    print("goal met" if met else "GOAL MISSED")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
