"""Tune a threshold on scores and labels: the search as one call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.criterion import Criterion, Objective
from hf_freeze.binary.diagnosis import ThresholdWarning, diagnose
from hf_freeze.binary.margin import Head
from hf_freeze.binary.result import ThresholdResult
from hf_freeze.binary.rows import judged, read_rows
from hf_freeze.binary.search import Select, ThresholdError, ThresholdSearch


def tune_threshold(  # noqa: PLR0913 - one declaration of a search; all but two are keywords
    scores: Any,
    labels: Any,
    *,
    objective: str | Objective = "f1",
    beta: float = 1.0,
    costs: Mapping[str, float] | None = None,
    min_precision: float | None = None,
    min_recall: float | None = None,
    max_fpr: float | None = None,
    confidence: float | None = None,
    select: Select = "exact",
    n_boot: int = 200,
    seed: int = 0,
    head: Head = "auto",
) -> ThresholdResult:
    """Find the threshold that maximises an objective under constraints, exactly, and say how far to believe it.

    `scores`: margins (n,), or logits in any form that `binary_margin` reads. `labels`: any form that `binary_labels`
    reads; rows labelled -100 are left out. For objectives and constraints see `Criterion`.
    `select="bagged"` takes the median of the re-tuned thresholds in place of the best one, which loses less on fresh
    rows when positives are few. `n_boot=0` skips the resampling: no out-of-bag value, no intervals.

    Raises `ThresholdError` when there is nothing to tune on: no rows, one class, a NaN score, or a constraint that no
    threshold meets. Warns (`ThresholdWarning`) when the result is to be doubted. The cost is one sort and a few passes.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random(2000) < 0.1
    >>> result = tune_threshold(rng.normal(2.0 * labels), labels)
    >>> round(result.threshold, 2), round(result.value, 2), round(result.oob_value, 2)
    (1.7, 0.59, 0.57)
    """
    criterion = Criterion(
        objective=objective,
        beta=beta,
        costs=costs,
        min_precision=min_precision,
        min_recall=min_recall,
        max_fpr=max_fpr,
        confidence=confidence,
    )
    search = ThresholdSearch(criterion=criterion, select=select, n_boot=n_boot, seed=seed)
    rows = judged(read_rows(scores, labels, head=head), head)
    if rows.n_nan:
        raise ThresholdError("nonfinite", f"{rows.n_nan} of {len(rows.margin)} scores are NaN. Did training diverge?")
    result = replace(
        search.run(count_scores(rows.margin, rows.positive)),
        n_ignored=rows.n_ignored,
        head="probability" if head == "probability" else "logits",
    )
    for text in diagnose(result).values():
        warnings.warn(text, ThresholdWarning, stacklevel=2)
    return result
