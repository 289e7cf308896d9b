"""How often a limit that tune_threshold keeps "with confidence 0.95" is broken on fresh rows, and what that costs.

Run (about 5 minutes):  OMP_NUM_THREADS=1 python tests/benchmarks/risk_control.py
Options: --draws 1000 --confidence 0.95

Goal: broken in at most 5 % of the draws, plus one standard error, in every cell. Beside it the same limit kept by the
observed rate, and by Wilson's bound at each candidate by itself: right for a threshold fixed beforehand, not for one
that was chosen by looking.

Each line: how often a threshold is found, how often it breaks its limit (of all draws), and the recall on fresh rows
(0 where there is none) beside the best that keeps the limit. The worst case is "flat": scores that tell nothing, with
a share of positives just below the limit, where every threshold breaks it. Fresh rows are 400,000 drawn once a model.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from hf_freeze import ThresholdError
from hf_freeze.binary.counts import ScoreCounts, count_scores
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.search import ThresholdSearch

ROWS = (200, 1000, 5000)


def normal(share, separation):
    def draw(rng, n):
        labels = rng.random(n) < share
        return rng.normal(separation * labels), labels

    return draw


def mislabelled(share, wrong):
    def draw(rng, n):
        labels = rng.random(n) < share
        return rng.normal(4.0 * (labels ^ (rng.random(n) < wrong))), labels

    return draw


def wavy(rng, n):
    """Scores whose precision does not rise with the threshold: it swings about 0.9."""
    scores = rng.random(n)
    return scores, rng.random(n) < 0.9 + 0.08 * np.sin(40.0 * scores)


def coarse(rng, n):
    scores, labels = normal(0.3, 2.5)(rng, n)
    return np.round(scores * 4.0) / 4.0, labels


MODELS = {
    "normal": (normal(0.3, 2.5), {"min_precision": 0.9}),
    "rare": (normal(0.1, 3.0), {"min_precision": 0.8}),
    "mislabelled": (mislabelled(0.3, 0.02), {"min_precision": 0.9}),
    "coarse": (coarse, {"min_precision": 0.9}),
    "wavy": (wavy, {"min_precision": 0.9}),
    "flat": (normal(0.895, 0.0), {"min_precision": 0.9}),
    "recall": (normal(0.3, 2.0), {"min_recall": 0.9, "objective": "precision"}),
    "fpr": (normal(0.3, 2.0), {"max_fpr": 0.1}),
    "two limits": (normal(0.3, 3.0), {"min_precision": 0.85, "min_recall": 0.8}),
}


def wilson_at_each(counts: ScoreCounts, name: str, limit: float) -> np.ndarray:
    tp, fp, fn, tn = counts.table(slice(None))
    hits, rows = {"min_precision": (tp, tp + fp), "min_recall": (tp, tp + fn), "max_fpr": (tn, tn + fp)}[name]
    limit = 1.0 - limit if name == "max_fpr" else limit
    z, rate = 1.6449, hits / np.maximum(rows, 1)
    bound = (hits + z * z / 2 - z * np.sqrt(rate * (1 - rate) * rows + z * z / 4)) / (rows + z * z)
    return (rows > 0) & (bound >= limit)


def thresholds(counts: ScoreCounts, criterion: Criterion, confidence: float) -> dict[str, float | None]:
    """The threshold of each method; None where it finds none."""
    found: dict[str, float | None] = {}
    for method, at in (("observed", None), ("learn then test", confidence)):
        search = ThresholdSearch(criterion=Criterion(**{**vars(criterion), "confidence": at}), n_boot=0)
        try:
            found[method] = search.run(counts).threshold
        except ThresholdError:
            found[method] = None
    value = criterion.value(*counts.table(slice(None)))
    for name, limit in criterion.constraints.items():
        value = np.where(wilson_at_each(counts, name, limit), value, -np.inf)
    best = int(value.argmax())
    low, high = counts.gaps(best, best)
    found["Wilson at each"] = float((low + high) / 2.0) if np.isfinite(value[best]) else None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--confidence", type=float, default=0.95)
    options = parser.parse_args()
    failed = []
    for name, (draw, limits) in MODELS.items():
        criterion = Criterion(**{"objective": "recall", **limits})
        if criterion.objective == "recall" and "min_recall" in limits:
            criterion = Criterion(**limits)
        rng = np.random.default_rng(0)
        fresh, labels = draw(rng, 400_000)
        truth = count_scores(fresh.astype(np.float32), labels)
        kept = criterion.feasible(*truth.table(slice(None)))
        best = (truth.tp[kept] / truth.n_pos).max(initial=0.0)
        for n in ROWS:
            tally = {method: np.zeros(3) for method in ("observed", "Wilson at each", "learn then test")}
            for _ in range(options.draws):
                scores, labels = draw(rng, n)
                counts = count_scores(scores.astype(np.float32), labels)
                for method, threshold in thresholds(counts, criterion, options.confidence).items():
                    if threshold is not None:
                        at = truth.candidate_at(threshold)
                        broken = not criterion.feasible(*truth.table(np.array([at])))[0]
                        tally[method] += 1.0, broken, truth.tp[at] / truth.n_pos
            print(f"{name}, {n} rows, best recall {best:.3f}")
            for method, sums in tally.items():
                found, broken, recall = sums / options.draws
                print(f"    {method:16s} found {found:5.3f}   broken {broken:5.3f}   recall {recall:5.3f}", flush=True)
            allowed = 1.0 - options.confidence
            if tally["learn then test"][1] / options.draws > allowed + (allowed * (1 - allowed) / options.draws) ** 0.5:
                failed.append(f"{name}, {n} rows")
    print("FAILED: " + "; ".join(failed) if failed else "The stated rate holds in every cell.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
