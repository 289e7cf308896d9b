"""Train with a tuned threshold on sets that do not divide by the number of processes, and write what every rank saw.

`accelerate launch ... threshold_run.py OUT_DIR`: `rank{N}.json`, and `written`, a line for every threshold file.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_freeze import BinaryClassificationMetrics, FreezePlan, FreezeTrainer, Stage, ThresholdResult
from tests.binary.conftest import WORDS
from tests.binary.test_trainer import dataset
from tests.ranks import process_group
from tests.training.staged import arguments

WINDOW = 8  # rows per optimizer step over all processes
EVAL_ROWS, TEST_ROWS = 101, 53


def build() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes, **still))


def record_writers(folder: Path, rank: int) -> None:
    """Make every writing of a threshold leave its rank and its folder in a file."""
    write = ThresholdResult.save

    def save(self: ThresholdResult, target: Path) -> None:
        with (folder / "written").open("a") as file:
            file.write(f"{rank} {Path(target).parent.name}\n")
        write(self, target)

    ThresholdResult.save = save


def make(folder: Path, batched: bool = False) -> FreezeTrainer:
    processes = dist.get_world_size() if dist.is_initialized() else 1
    set_seed(0)
    args = arguments(
        folder / "run",
        max_steps=8,
        per_device_train_batch_size=WINDOW // processes,
        per_device_eval_batch_size=8,
        adam_epsilon=1e-3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        batch_eval_metrics=batched,
        load_best_model_at_end=True,
        metric_for_best_model="eval_average_precision",
        greater_is_better=True,
    )
    return FreezeTrainer(
        build(),
        args,
        train_dataset=dataset(64, 0),
        eval_dataset=dataset(EVAL_ROWS, 1),
        compute_metrics=BinaryClassificationMetrics(),
        freeze_plan=FreezePlan(trainable="head", stages=[Stage(step=3, unfreeze="layers[-1]")]),
    )


def figures(metrics: dict) -> dict:
    others = ("runtime", "per_second", "preparation_time", "_loss")  # the loss is the Trainer's: see the test
    return {name: value for name, value in metrics.items() if not name.endswith(others)}


def run(folder: Path, batched: bool = False) -> dict:
    trainer = make(folder, batched)
    trainer.train()
    seen = {
        "during": [figures(entry) for entry in trainer.state.log_history if "eval_f1" in entry],
        "losses": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "best": Path(trainer.state.best_model_checkpoint).name,
        "result": trainer.compute_metrics.result.to_dict(),
        "evaluated": figures(trainer.evaluate()),
        "predicted": figures(trainer.predict(dataset(TEST_ROWS, 2)).metrics),
        "result_afterwards": trainer.compute_metrics.result.to_dict(),
    }
    trainer.save_model(str(folder / "final"))
    return seen


@process_group()
def main() -> None:
    for name in ("whole", "batched"):
        folder = Path(sys.argv[1]) / name
        folder.mkdir(exist_ok=True)
        write = ThresholdResult.save
        record_writers(folder, dist.get_rank())
        seen = run(folder, batched=name == "batched")
        ThresholdResult.save = write
        (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
