"""What a rotation costs beside training as many layers all the time: optimizer state, memory and time.

Run (about three minutes):  OMP_NUM_THREADS=1 python -m tests.benchmarks.rotation_cost
Options: --steps 160 --every 5 --layers 2 --width 64 --batch 8 --tokens 64 --repeats 3 --memory_width 384

A Llama of 16 layers on random tokens. Goals: the optimizer never holds more than 1.05 times what it holds of the same
number of static layers, and so do the weights with their gradients and the optimizer, and the whole process at its peak;
the rotation (31 switches, with their proofs) takes at most 1.10 times as long. For the time the static layers
reach as far back as those of the rotation do on average, the runs take turns, and the best time of each counts. For the memory
they are the lowest, as a rotation goes as far back at its peak, and each run has a process of its own, whose allocator
returns to the system what is freed.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, recipes
from tests.models import tiny_llama

_DEFAULTS = {"steps": 160, "every": 5, "layers": 2, "width": 64, "batch": 8, "tokens": 64, "repeats": 3}
_DEFAULTS |= {"memory_width": 384}
_RETURNS_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Held(TrainerCallback):
    """The most bytes that the optimizer held after any step, and that all tensors had before any step of it."""

    optimizer = 0
    tensors = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.tensors = max(self.tensors, _bytes([*model.parameters(), *gradients]) + _state_bytes(optimizer))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.optimizer = max(self.optimizer, _state_bytes(optimizer))


def _state_bytes(optimizer) -> int:
    return _bytes(t for held in getattr(optimizer, "optimizer", optimizer).state.values() for t in held.values())


def _bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def train(plan: FreezePlan, options: argparse.Namespace, width: int, steps: int) -> tuple[float, Held]:
    set_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 4}
    model = tiny_llama(layers=16, max_position_embeddings=2 * options.tokens, **sizes)
    rows = [{"input_ids": torch.randint(5, 20, (options.tokens,)), "labels": index % 2} for index in range(64)]
    held = Held()
    with tempfile.TemporaryDirectory() as folder:
        args = FreezeTrainingArguments(
            folder,
            max_steps=steps,
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
        return time.perf_counter() - start, held


def plans(options: argparse.Namespace) -> dict[str, FreezePlan]:
    rotation = recipes.rotate(layers=options.layers, every=options.every)
    found = rotation.resolve(tiny_llama(layers=16)).rotation
    turns = [found.names(period) for period in range(options.steps // options.every)]
    lowest = round(sum(min(found.layer_of[name] for name in names) for names in turns) / len(turns))
    return {
        "static": FreezePlan(trainable=["head", f"layers[{lowest}:{lowest + options.layers}]"]),
        "lowest": FreezePlan(trainable=["head", f"layers[:{options.layers}]"]),
        "rotation": rotation,
    }


def measure_memory(name: str, options: argparse.Namespace) -> None:
    """Print the most bytes of tensors and the peak of the process above where it was, over more than a cycle."""
    train(plans(options)["static"], options, 64, 2)  # what the first training of a process loads
    gc.collect()
    before = _resident()
    _, held = train(plans(options)[name], options, options.memory_width, (16 // options.layers + 1) * options.every)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tensors": held.tensors, "resident": peak - before}))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of(name: str) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.benchmarks.rotation_cost", *sys.argv[1:], "--memory_of", name]
    done = subprocess.run(command, env={**os.environ, **_RETURNS_MEMORY}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in _DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_verbosity_error()
    disable_progress_bar()
    if options.memory_of:
        measure_memory(options.memory_of, options)
        return 0
    print("command: python -m tests.benchmarks.rotation_cost", *sys.argv[1:])
    found = {name: [] for name in ("static", "rotation")}
    for _ in range(options.repeats):
        for name, runs in found.items():
            runs.append(train(plans(options)[name], options, options.width, options.steps))
    best = {name: min(seconds for seconds, _ in runs) for name, runs in found.items()}
    held = {name: runs[0][1].optimizer for name, runs in found.items()}
    memory = {name: memory_of(name) for name in ("lowest", "rotation")}
    for name in found:
        print(f"{name:>9}: {best[name]:.2f} s, optimizer at most {held[name]:,} bytes")
    for name, bytes_ in memory.items():
        print(
            f"{name:>9}, {options.memory_width} wide: weights, gradients and optimizer at most {bytes_['tensors']:,} "
            f"bytes, process {bytes_['resident']:,} bytes above its start"
        )
    tensors, resident = (memory["rotation"][kind] / memory["lowest"][kind] for kind in ("tensors", "resident"))
    taken, kept = best["rotation"] / best["static"], held["rotation"] / held["static"]
    where = plans(options)["static"].trainable[1]
    print(f"static: {where}, the layers that reach as far back as those of the rotation do on average")
    print(f"rotation to static: {taken:.3f} of the time, {kept:.3f} of the optimizer's bytes")
    print(f"rotation to lowest: {tensors:.3f} of the bytes of tensors, {resident:.3f} of the peak of the process")
    met = taken <= 1.10 and max(kept, tensors, resident) <= 1.05
    print("goals met" if met else "GOALS MISSED")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
