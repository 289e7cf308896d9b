"""Name what is wrong with a threshold or with the figures at it, in a sentence that can be acted on."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from hf_freeze.binary.result import ThresholdResult

FEW_OF_A_CLASS = 10
FEW_POSITIVES = 50
_ONE_SIDED_5_PERCENT = 1.645


class ThresholdWarning(UserWarning):
    """A threshold was found, or kept, and there is a reason to doubt it."""


def warn_once_per_run(text: str, *, stacklevel: int = 2) -> None:
    """Warn on the first process only: all processes see the same rows, and say the same."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()):
        warnings.warn(text, ThresholdWarning, stacklevel=stacklevel + 1)


def status_of(result: ThresholdResult) -> str:
    """Return the most serious peculiarity of a tuned threshold in one word."""
    if result.n_distinct == 1:
        return "constant"
    if _is_anti_correlated(result):
        return "anti_correlated"
    if result.tp + result.fp == 0:
        return "predict_none"
    if result.fn + result.tn == 0:
        return "predict_all"
    return "low_support" if min(result.n_pos, result.n_neg) < FEW_OF_A_CLASS else "ok"


def diagnose(result: ThresholdResult) -> dict[str, str]:
    """Return every reason to doubt a tuned threshold: a word for the kind, and a sentence."""
    n_rows = result.n_pos + result.n_neg
    found = {}
    if result.n_distinct == 1:
        found["constant"] = (
            f"Every one of {n_rows} scores is the same, so a threshold can only call all rows positive or none. "
            "Is the head trained at all?"
        )
    elif result.n_distinct < 0.01 * n_rows:
        found["coarse_scores"] = (
            f"Only {result.n_distinct} distinct scores in {n_rows} rows: half-precision logits? "
            "Thresholds fall between them. Evaluate in float32 if the model can."
        )
    if _is_anti_correlated(result):
        found["anti_correlated"] = (
            f"AUROC is {result.auroc:.3f}, below 0.5 by more than chance: is the positive label reversed?"
        )
    support = _support(result)
    if support:
        found["low_support" if min(result.n_pos, result.n_neg) < FEW_OF_A_CLASS else "few_positives"] = support
    return found


def recall_below_accuracy(*, accuracy: float, recall: float, n_pos: int) -> str | None:
    """Return a warning when a good-looking accuracy hides that most positives are missed."""
    if n_pos == 0 or recall >= 0.5 or accuracy - recall < 0.3:
        return None
    return (
        f"Accuracy {accuracy:.3f} hides a recall of {recall:.3f}: {round((1 - recall) * n_pos)} of {n_pos} positive "
        "rows are missed. Judge by average_precision, and choose the objective or a min_recall accordingly."
    )


def trains_as_regression(config: Any) -> str | None:
    """Return a warning when a head of one logit will be trained with the squared error, so that it is no logit."""
    if getattr(config, "num_labels", None) != 1 or getattr(config, "problem_type", None) not in (None, "regression"):
        return None
    return (
        "num_labels=1 without a problem_type trains as regression, with the squared error: the output is no logit and "
        'its sigmoid no probability. Use num_labels=2, or problem_type="multi_label_classification" with float labels '
        "of shape (n, 1)."
    )


def _is_anti_correlated(result: ThresholdResult) -> bool:
    """Test AUROC < 0.5, one-sided at 5 % (Mann and Whitney, 1947): by chance half of untrained models lie below."""
    if result.auroc is None:
        return False
    deviation = math.sqrt((result.n_pos + result.n_neg + 1) / (12 * result.n_pos * result.n_neg))
    return result.auroc < 0.5 - _ONE_SIDED_5_PERCENT * deviation


def _support(result: ThresholdResult) -> str | None:
    n_pos, n_neg = result.n_pos, result.n_neg
    if min(n_pos, n_neg) >= FEW_OF_A_CLASS and n_pos >= FEW_POSITIVES:
        return None
    believed = "how optimistic that is cannot be told"
    if result.oob_value is not None and result.optimism is not None and result.interval is not None:
        believed = (
            f"optimistic by about {max(result.optimism, 0.0):.3f}; expect {result.oob_value:.3f} on fresh rows "
            f"(95 % interval {result.interval[0]:.3f} to {result.interval[1]:.3f})"
        )
    few = f"{n_pos} positive" if n_pos <= n_neg else f"{n_neg} negative"
    return f"The threshold hangs on {few} rows: {result.objective} {result.value:.3f} was tuned, {believed}."
