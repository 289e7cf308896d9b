"""Refuse to tune a threshold on scores other than those that the model serves.

A threshold is saved for the model's own logits. Between them and the metrics stand the user's
`preprocess_logits_for_metrics`, `compute_loss` and `prediction_step`: a probability, one logit of two or an argmax that
one of them computes would be tuned on and reported, and the saved threshold would label other rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hf_freeze.binary.margin import Head, as_numpy, read_margin, take_logits
from hf_freeze.errors import FreezeError

_ROUNDING = 1e-5
"""Rounding of float32 (in a log_softmax), relative to the larger logit of the row."""

_WITHOUT_FUNCTION = (
    "It takes the first output of one or two dimensions, after compute_loss and prediction_step: let these return the "
    "model's logits, and name other outputs in the config's keys_to_ignore_at_inference."
)


@contextmanager
def logits_of(model: Any) -> Iterator[list[Any]]:
    """Collect what each call of the model inside this context returned as its logits."""
    seen: list[Any] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        try:
            logits = take_logits(output)
            # A copy, since what comes next may write into it.
            seen.append(logits.detach().clone() if isinstance(logits, torch.Tensor) else logits)
        except FreezeError:
            return  # no array of one or two dimensions, so nothing to compare the scores with

    hook = model.register_forward_hook(keep) if isinstance(model, nn.Module) else None
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


def refuse_other_scores(given: Any, served: list[Any], *, head: Head, preprocessed: bool) -> None:
    """Raise `FreezeError` unless the scores `given` to the metrics are the margins of one of the `served` logits.

    Outputs that are not binary are left to the metrics, which say why. `preprocessed`: whether the user's
    `preprocess_logits_for_metrics` returned what is given.
    """
    scores = _margin(given, head)
    for logits in served if head == "probability" and scores is not None else ():
        if _margin(logits, head) is None and _margin(logits, "logits") is not None:
            raise FreezeError(
                'head="probability" says that the model gives probabilities, but its outputs lie outside [0, 1], or '
                "the two of a row do not sum to one. Leave head= out, and preprocess_logits_for_metrics as well if "
                "that makes probabilities of them."
            )
    own = [(margin, logits) for logits in served if (margin := _margin(logits, head)) is not None]
    own = [] if scores is None else [(margin, logits) for margin, logits in own if len(margin) == len(scores)]
    if scores is None or not own or any(_agree(scores, margin, logits).all() for margin, logits in own):
        return
    margin, logits = own[-1]
    row = int(np.flatnonzero(~_agree(scores, margin, logits))[0])
    who, advice = "The Trainer", _WITHOUT_FUNCTION
    if preprocessed:
        who, advice = "preprocess_logits_for_metrics", "Let it return the logits, or leave it out."
    raise FreezeError(
        f"{who} hands the metrics scores that are not the model's: {scores[row]:.6g} in row {row} of a batch, where "
        f"the model's logits give the margin {margin[row]:.6g}. Once the model is served, a threshold tuned on them "
        f"would not give the labels that were reported. {advice}"
    )


def _margin(outputs: Any, head: Head) -> NDArray[np.float32] | None:
    try:
        margin: NDArray[np.float32] = as_numpy(read_margin(outputs, positive=1, head=head)[0])
    except FreezeError:
        return None
    return margin


def _agree(scores: NDArray[np.float32], margin: NDArray[np.float32], logits: Any) -> NDArray[np.bool_]:
    columns = np.abs(as_numpy(logits).reshape(len(margin), -1).astype(np.float64))
    allowed = _ROUNDING * np.where(np.isfinite(columns), columns, 0.0).max(axis=1, initial=0.0) + 1e-6
    with np.errstate(invalid="ignore"):
        near = np.abs(scores.astype(np.float64) - margin) <= allowed
    agree: NDArray[np.bool_] = near | (scores == margin) | (np.isnan(scores) & np.isnan(margin))
    return agree
