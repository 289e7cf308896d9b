"""Logits to labels, by the same margin and the same comparison that the threshold was tuned with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_freeze.binary.margin import Head, binary_margin
from hf_freeze.binary.result import ThresholdResult, as_result


@dataclass(frozen=True, eq=False)
class BinaryPrediction:
    """`probability` (n,) of the positive class, float32, for display; `label` (n,) of label ids, int64.

    The label follows from the margin and its threshold, so a row may be labelled positive at a probability below 0.5.
    """

    probability: Any
    label: Any


def predict_binary(
    logits: Any,
    threshold: float | ThresholdResult | None = None,
    *,
    positive: int | None = None,
    head: Head = "auto",
) -> BinaryPrediction:
    """Return the probability and the label of every row.

    `logits` and `head` as in `binary_margin`; torch in, torch out, otherwise numpy. `threshold` is a margin in logit
    units, or what `tune_threshold` or `load_threshold` returned; None is margin 0, the usual argmax or 0.5.
    `positive` is the id of the positive class: by default that of the result, else 1. A NaN margin is not positive.
    A result that was tuned on probabilities reads `logits` as probabilities, unless `head` says otherwise.

    >>> predict_binary([[0.0, 2.0], [1.5, 0.5]], threshold=-1.5).label
    array([1, 1])
    """
    tuned = as_result(0.0 if threshold is None else threshold)
    positive = tuned.positive if positive is None else positive
    if head == "auto" and tuned.head == "probability":
        head = "probability"
    margin = binary_margin(logits, positive=positive, head=head)
    is_positive = margin >= float(np.float32(tuned.threshold))
    if isinstance(margin, torch.Tensor):
        return BinaryPrediction(torch.sigmoid(margin), (is_positive == bool(positive)).long())
    return BinaryPrediction(probabilities(margin), (is_positive == bool(positive)).astype(np.int64))


def probabilities(margin: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the logistic function of each margin, without overflow."""
    probability: np.ndarray[Any, np.dtype[np.float32]] = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * margin))
    return probability
