"""What a rotation costs beside training as many layers all the time: optimizer state and time.

Run (about two minutes):  OMP_NUM_THREADS=1 python -m tests.benchmarks.rotation_cost
Options: --steps 160 --every 5 --layers 2 --width 64 --batch 8 --tokens 64 --repeats 3

A Llama of 16 layers on random tokens. Goals: the optimizer never holds more than 1.05 times what it holds of the same
number of static layers, and the rotation (31 switches, with their proofs) takes at most 1.10 times as long. The runs
take turns; the best time of each counts.
"""

import argparse
import sys
import tempfile
import time

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, recipes
from tests.models import tiny_llama


class Held(TrainerCallback):
    """The most bytes that the optimizer held after any step."""

    most = 0

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        self.most = max(self.most, sum(t.numel() * t.element_size() for held in states for t in held.values()))


def train(plan: FreezePlan, options: argparse.Namespace) -> tuple[float, int]:
    set_seed(0)
    width = options.width
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 4}
    model = tiny_llama(layers=16, max_position_embeddings=2 * options.tokens, **sizes)
    rows = [{"input_ids": torch.randint(5, 20, (options.tokens,)), "labels": index % 2} for index in range(64)]
    held = Held()
    with tempfile.TemporaryDirectory() as folder:
        args = FreezeTrainingArguments(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            log_level="error",
        )
        trainer = FreezeTrainer(model, args, train_dataset=rows, freeze_plan=plan, callbacks=[held])
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start, held.most


def main() -> int:
    parser = argparse.ArgumentParser()
    defaults = {"steps": 160, "every": 5, "layers": 2, "width": 64, "batch": 8, "tokens": 64, "repeats": 3}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_verbosity_error()
    disable_progress_bar()
    print("command: python -m tests.benchmarks.rotation_cost", *sys.argv[1:])
    # The static layers are those in the middle: a rotation goes as far back as they do, on average.
    middle = 8 - options.layers // 2
    plans = {
        "static": FreezePlan(trainable=["head", f"layers[{middle}:{middle + options.layers}]"]),
        "rotation": recipes.rotate(layers=options.layers, every=options.every),
    }
    found = {name: [] for name in plans}
    for _ in range(options.repeats):
        for name, plan in plans.items():
            found[name].append(train(plan, options))
    best = {name: min(seconds for seconds, _ in runs) for name, runs in found.items()}
    held = {name: runs[0][1] for name, runs in found.items()}
    for name in plans:
        print(f"{name:>9}: {best[name]:.2f} s, optimizer at most {held[name]:,} bytes")
    ratios = best["rotation"] / best["static"], held["rotation"] / held["static"]
    print(f"rotation to static: {ratios[0]:.3f} of the time, {ratios[1]:.3f} of the optimizer's bytes")
    met = ratios[0] <= 1.10 and ratios[1] <= 1.05
    print("goals met" if met else "GOALS MISSED")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
