"""What the figures of a comparison say, in sentences; nothing where the evidence does not carry it.

Each function looks at the runs of one plan, one per seed, or of two, and returns a sentence with its numbers, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from hf_freeze.binary.criterion import wilson_bound
from hf_freeze.binary.diagnosis import recall_below_accuracy
from hf_freeze.reporting.runs import Evaluation, Run

FAR_ABOVE = 2.0
"""A training loss "stays far above" another when it is this many times as high,"""
LEAST_GAP = 0.05
"""above it by at least this many nats,"""
STILL_FALLS = 0.25
"""and falls by less than this share of the gap from the second quarter of the run to the last."""

_TURNED = 1.05
_ERRORS = 3.0
_ONE_SIDED_2_5_PERCENT = 1.96


def mean(runs: Sequence[Run], what: Callable[[Run], float]) -> float:
    """Return the mean of a figure over seeds."""
    return fmean(map(what, runs))


def interval(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Return the interval of F1 that holds those of all seeds; None where a run has none."""
    ends = [run.interval for run in runs if run.interval is not None]
    if not runs or len(ends) < len(runs):
        return None
    return min(low for low, _ in ends), max(high for _, high in ends)


def freezing_helps(runs: Sequence[Run], freest: Sequence[Run] = ()) -> str | None:
    """Say that a plan which freezes something works: validation loss falls and metrics rise while it trains.

    In every seed; the rise in F1 lies outside its interval at the end; the validation loss has not turned up again; and
    the runs of the `freest` plan, if there is one, are not better by more than that interval.
    """
    bounds = interval(runs)
    if bounds is None or runs[0].trainable >= runs[0].parameters or not all(map(_learns, runs)):
        return None
    low, high = bounds
    before, after = _mean_of(runs, 0), _mean_of(runs, -1)
    if not before.f1 < low or (freest and is_better(freest, runs)):
        return None
    share = 1 - runs[0].trainable / runs[0].parameters
    than = f", no worse than {freest[0].name!r} ({mean(freest, _f1):.3f})" if freest else ""
    return (
        f"Freezing helps in {runs[0].name!r}: with {_percent(share)} of the model frozen throughout, validation loss "
        f"falls from {before.loss:.3f} to {after.loss:.3f} and F1 rises from {before.f1:.3f} to {after.f1:.3f} "
        f"[{low:.3f}, {high:.3f}]{than}{_over(runs)}."
    )


def is_better(runs: Sequence[Run], other: Sequence[Run]) -> bool:
    """Whether the F1 of `runs` lies above the interval of the `other`, and by more than one positive row can make.

    The interval alone will not do: where a few rows are told apart without an error, it has no width.
    """
    bounds = interval(other)
    gain = mean(runs, _f1) - mean(other, _f1)
    return bounds is not None and mean(runs, _f1) > bounds[1] and gain > 1 / max(other[0].n_pos, 1)


def _learns(run: Run) -> bool:
    first, last = run.evaluations[0], run.last
    lowest = min(evaluation.loss for evaluation in run.evaluations)
    rises = last.average_precision > first.average_precision and last.f1 > first.f1
    return last.loss < first.loss and last.loss <= _TURNED * lowest and rises


def frozen_layers_block(frozen: Sequence[Run], freer: Sequence[Run]) -> str | None:
    """Say that what a plan freezes keeps the model from learning, against a plan that trains more.

    Its training loss over the last quarter is far above the other's in every seed, by more than three standard errors;
    it no longer falls; and the validation loss is higher as well, so that the other has not just learnt by heart.
    """
    if not frozen or not freer or frozen[0].trainable >= freer[0].trainable:
        return None
    high, low = min(run.training_loss() for run in frozen), max(run.training_loss() for run in freer)
    gap = mean(frozen, Run.training_loss) - mean(freer, Run.training_loss)
    error = math.sqrt(sum(_mean_error(runs) ** 2 for runs in (frozen, freer)))
    fell = mean(frozen, lambda run: run.training_loss(2)) - mean(frozen, Run.training_loss)
    validates_worse = min(run.last.loss for run in frozen) > max(run.last.loss for run in freer)
    far = high > FAR_ABOVE * low and gap > max(LEAST_GAP, _ERRORS * error)
    if not (far and fell < STILL_FALLS * gap and validates_worse):
        return None
    return (
        f"Frozen layers block learning in {frozen[0].name!r}: its training loss stays at "
        f"{mean(frozen, Run.training_loss):.3f}, {freer[0].name!r} comes to {mean(freer, Run.training_loss):.3f} "
        f"(standard error of the difference {error:.3f}); validation loss {mean(frozen, _loss):.3f} against "
        f"{mean(freer, _loss):.3f}{_over(frozen)}. Thaw more layers."
    )


def recall_collapsed(runs: Sequence[Run]) -> str | None:
    """Say that a good accuracy at probability 0.5 hides that most positives are missed, and what the threshold does.

    In every seed, and so that the 95 % interval of the recall (Wilson, 1927) ends below one half.
    """
    if not runs or any(not run.at_half or not _collapsed(run) for run in runs):
        return None
    accuracy, recall = mean(runs, lambda run: run.at_half["accuracy"]), mean(runs, lambda run: run.at_half["recall"])
    found = round(recall * runs[0].n_pos)
    return (
        f"Recall collapsed in {runs[0].name!r}: at probability 0.5 it has accuracy {accuracy:.3f} and recall "
        f"{recall:.3f}, {found} of {runs[0].n_pos} positives found. At the tuned threshold recall is "
        f"{mean(runs, lambda run: run.last.recall):.3f}, average precision "
        f"{mean(runs, lambda run: run.last.average_precision):.3f}{_over(runs)}."
    )


def _collapsed(run: Run) -> bool:
    accuracy, recall = run.at_half["accuracy"], run.at_half["recall"]
    if recall_below_accuracy(accuracy=accuracy, recall=recall, n_pos=run.n_pos) is None:
        return False
    upper = wilson_bound(np.array([recall * run.n_pos]), np.array([float(run.n_pos)]), z=_ONE_SIDED_2_5_PERCENT)
    return bool(upper[0] < 0.5)


def as_good_for_less(plans: Sequence[Sequence[Run]]) -> str | None:
    """Say which plan trains fewest parameters among those that F1 cannot tell from the best (`is_better`)."""
    if len(plans) < 2 or any(interval(runs) is None for runs in plans):
        return None
    best = max(plans, key=lambda runs: mean(runs, _f1))
    top = mean(best, _f1)
    equal = [runs for runs in plans if not is_better(best, runs)]
    least = min(equal, key=lambda runs: (runs[0].trainable, mean(runs, _seconds)))
    if least is best:
        return f"{best[0].name!r} has the best F1, {top:.3f}, and nothing that trains less comes near it{_over(best)}."
    low, high = interval(least) or (0, 0)
    return (
        f"F1 does not tell {least[0].name!r}, {mean(least, _f1):.3f} [{low:.3f}, {high:.3f}], from the best, "
        f"{best[0].name!r}, {top:.3f}: it trains {least[0].trainable:,} parameters in place of {best[0].trainable:,}, "
        f"in {mean(least, _seconds):.3g} s in place of {mean(best, _seconds):.3g}{_over(least)}."
    )


def _mean_of(runs: Sequence[Run], index: int) -> Evaluation:
    own = [run.evaluations[index] for run in runs]
    names = ("loss", "average_precision", "f1", "accuracy", "recall")
    return Evaluation(step=own[0].step, **{name: fmean(getattr(one, name) for one in own) for name in names})


def _mean_error(runs: Sequence[Run]) -> float:
    return math.sqrt(sum(run.training_loss_error**2 for run in runs)) / len(runs)


def _f1(run: Run) -> float:
    return run.last.f1


def _loss(run: Run) -> float:
    return run.last.loss


def _seconds(run: Run) -> float:
    return run.seconds


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %" if share < 0.9999 else "over 99.99 %"


def _over(runs: Sequence[Run]) -> str:
    return f" (means of {len(runs)} seeds)" if len(runs) > 1 else ""
