"""Step time and peak memory on one CUDA device, by what trains: BERT of base size, AdamW, bf16 autocast.

    python -m tests.benchmarks.gpu_memory_and_time

A row per plan: the median of the steps after the first ten with its quartiles, and the peak of allocated memory. The
Trainer without a plan is the yardstick. All runs see the same rows: 32 of 128 tokens a step.
"""

import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_freeze import FreezeTrainer, FreezeTrainingArguments

ROWS, TOKENS, STEPS, WARM = 32, 128, 60, 10
PLANS: dict[str, dict[str, Any] | None] = {
    "plain Trainer": None,
    "full": {"trainable": ["all"]},
    "last 2 layers": {"freeze_recipe": "last-layers:k=2"},
    "linear probe": {"freeze_recipe": "linear-probe"},
    "probe, cached": {"freeze_recipe": "linear-probe", "cache_frozen": True, "cache_frozen_always": True},
}


class Steps(TrainerCallback):
    """Notes when each optimizer step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the device, and look at the clock."""
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def measure(plan: dict[str, Any] | None) -> tuple[list[float], float]:
    """Return milliseconds of each step after the warm ones, and the peak of allocated memory in GB."""
    set_seed(0)
    model = BertForSequenceClassification(BertConfig())
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30000, (ROWS * STEPS // 2, TOKENS), generator=generator)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": i % 2} for i, row in enumerate(ids)]
    steps = Steps()
    common: dict[str, Any] = {
        "per_device_train_batch_size": ROWS,
        "max_steps": STEPS,
        "bf16": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        kind, given = (
            (Trainer, TrainingArguments(folder, **common))
            if plan is None
            else (
                FreezeTrainer,
                FreezeTrainingArguments(folder, **common, **plan),
            )
        )
        kind(model, given, train_dataset=rows, callbacks=[steps]).train()
    spans = [1000 * (end - begin) for begin, end in zip(steps.ends[WARM:], steps.ends[WARM + 1 :], strict=False)]
    return spans, torch.cuda.max_memory_allocated() / 1e9


if __name__ == "__main__":
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, plan in PLANS.items():
        spans, peak = measure(plan)
        low, middle, high = statistics.quantiles(spans, n=4)
        print(f"{name:14} {middle:7.2f} ms a step [{low:.2f}, {high:.2f}]  {peak:6.2f} GB at the peak", flush=True)
