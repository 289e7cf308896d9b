"""How fast tune_threshold is, beside one argsort and beside scikit-learn, in one process.

Run (about a minute):  OMP_NUM_THREADS=1 python tests/benchmarks/threshold_speed.py
Options: --rows 1000000 --repeats 7 --sklearn-repeats 3

Goals at 1e6 rows: at most 2.5 times one `numpy.argsort` of the same float32 scores, resampling included; at least 150
times as fast as `TunedThresholdClassifierCV(cv="prefit")` with its 100 thresholds, and never a worse objective.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import f1_score
from sklearn.model_selection import TunedThresholdClassifierCV

from hf_freeze import tune_threshold

ARGSORTS_ALLOWED = 2.5
SPEEDUP_WANTED = 150


class Scores(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose decision function is its one input column."""

    def fit(self, features, labels):
        """Remember the classes."""
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, features):
        """Return the scores."""
        return features[:, 0]

    def predict(self, features):
        """Return the labels at margin 0."""
        return (features[:, 0] >= 0).astype(int)


def seconds(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Time `repeats` calls after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return np.array(times)


def shown(times: np.ndarray) -> str:
    return f"{np.median(times) * 1e3:10.2f} ms  [{times.min() * 1e3:.2f}, {times.max() * 1e3:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sklearn-repeats", type=int, default=3)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    labels = (rng.random(options.rows) < 0.1).astype(np.int64)
    scores = (rng.normal(size=options.rows) + 2.0 * labels - 1.0).astype(np.float32)
    peer = TunedThresholdClassifierCV(
        Scores().fit(None, labels), scoring="f1", cv="prefit", refit=False, response_method="decision_function"
    )
    column = scores[:, None]

    argsort = seconds(lambda: np.argsort(scores), options.repeats)
    exact = seconds(lambda: tune_threshold(scores, labels, n_boot=0), options.repeats)
    complete = seconds(lambda: tune_threshold(scores, labels), options.repeats)
    sklearn = seconds(lambda: peer.fit(column, labels), options.sklearn_repeats)

    result = tune_threshold(scores, labels)
    at_ours = f1_score(labels, scores >= np.float32(result.threshold))
    at_peer = f1_score(labels, scores >= peer.best_threshold_)

    print(f"command: {' '.join(['python', *sys.argv])}")
    print(f"{options.rows} rows, median [min, max] of {options.repeats} ({options.sklearn_repeats} for scikit-learn)")
    print(f"numpy.argsort, float32             {shown(argsort)}")
    print(f"tune_threshold, n_boot=0           {shown(exact)}")
    print(f"tune_threshold, n_boot=200         {shown(complete)}")
    print(f"TunedThresholdClassifierCV         {shown(sklearn)}")
    argsorts = np.median(complete) / np.median(argsort)
    speedup = np.median(sklearn) / np.median(complete)
    print(f"ratio to argsort: n_boot=0 {np.median(exact) / np.median(argsort):.2f}, n_boot=200 {argsorts:.2f}")
    print(f"ratio to scikit-learn: n_boot=0 {np.median(sklearn) / np.median(exact):.0f}, n_boot=200 {speedup:.0f}")
    print(f"f1 at the threshold: ours {at_ours:.8f}, scikit-learn {at_peer:.8f}")
    reached = argsorts <= ARGSORTS_ALLOWED and speedup >= SPEEDUP_WANTED and at_ours >= at_peer
    print("goals reached" if reached else "GOALS MISSED")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
