"""Tell whether what a plan freezes keeps the model from learning, or its learning rate may be the cause."""

import math
from collections.abc import Sequence
from statistics import fmean

from hf_freeze.reporting.comparison.runs import Run
from hf_freeze.reporting.comparison.verdicts import mean, seeds_note

_FAR_ABOVE = 2.0
"""A training loss "stays far above" another when it is this many times as high,"""
_LEAST_GAP = 0.05
"""above it by at least this many nats,"""
_STILL_FALLS = 0.25
"""falls by less than this share of the gap from the second quarter of the run to the last,"""
_AS_BEFORE = 0.5
"""and by less than this share of what it fell from the first quarter to the second: at too small a rate it goes on."""
_LARGER_RATE = 3.0
"""A rate this many times as large as one that does well is not called too small."""

_ERRORS = 3.0


def frozen_layers_block(plans: Sequence[Sequence[Run]]) -> dict[str, str]:
    """Return, by plan, a sentence where what it freezes (or its rate) keeps the model from learning.

    A plan is compared with the one with the lowest training loss among those that train more. Where a plan that trains
    no more learns better, it is not the freezing that holds this one back, but its rates.
    """
    by_loss = sorted(plans, key=lambda runs: mean(runs, Run.training_loss))
    found = {}
    for runs in plans:
        less_frozen = [other for other in by_loss if other[0].trainable > runs[0].trainable]
        no_larger = [other for other in by_loss if other[0].trainable <= runs[0].trainable]
        if less_frozen and no_larger[0] is runs and _stays_far_above(runs, less_frozen[0]):
            same_size = [other for other in no_larger if other[0].trainable == runs[0].trainable]
            found[runs[0].name] = _sentence(runs, less_frozen[0], same_size)
    return found


def _stays_far_above(frozen: Sequence[Run], less_frozen: Sequence[Run]) -> bool:
    """Tell whether the training loss has stopped far above that of a plan that trains more.

    Over the last quarter it is far above the other's in every seed, by more than three standard errors; it no longer
    falls; and the validation loss is higher as well, so the other has not merely memorised the rows.
    """
    high, low = min(run.training_loss() for run in frozen), max(run.training_loss() for run in less_frozen)
    gap = mean(frozen, Run.training_loss) - mean(less_frozen, Run.training_loss)
    far = high > _FAR_ABOVE * low and gap > max(_LEAST_GAP, _ERRORS * _error(frozen, less_frozen))
    validates_worse = min(run.last.loss for run in frozen) > max(run.last.loss for run in less_frozen)
    return far and validates_worse and _has_stopped(frozen, gap)


def _has_stopped(runs: Sequence[Run], gap: float) -> bool:
    first, second, last = (fmean(run.training_loss(quarter) for run in runs) for quarter in (1, 2, 4))
    fell = second - last
    goes_on = fell > _ERRORS * _mean_error(runs) and fell >= _AS_BEFORE * (first - second)
    return fell < _STILL_FALLS * gap and not goes_on


def _sentence(frozen: Sequence[Run], less_frozen: Sequence[Run], same_size: Sequence[Sequence[Run]]) -> str:
    rate = _highest_rate(frozen)
    at = f" at a rate of {rate:.3g}" if rate is not None else ""
    figures = (
        f"its training loss stays at {mean(frozen, Run.training_loss):.3f}{at}, {less_frozen[0].name!r} comes to "
        f"{mean(less_frozen, Run.training_loss):.3f} (standard error of the difference "
        f"{_error(frozen, less_frozen):.3f}); validation loss "
        f"{mean(frozen, _loss):.3f} against {mean(less_frozen, _loss):.3f}{seeds_note(frozen)}."
    )
    if _rate_is_large(frozen, less_frozen, same_size):
        return f"Frozen layers block learning in {frozen[0].name!r}: {figures} Unfreeze more layers."
    return (
        f"Frozen layers, or too small a rate, block learning in {frozen[0].name!r}: {figures} A larger rate may be "
        "enough: try one (learning_rate, group_lrs) before you unfreeze more layers."
    )


def _rate_is_large(frozen: Sequence[Run], less_frozen: Sequence[Run], same_size: Sequence[Sequence[Run]]) -> bool:
    """Tell whether the rate is far above that of what learns, or one that trains as much has tried a far larger one."""
    own, others = _highest_rate(frozen), _highest_rate(less_frozen)
    if own is None or others is None:
        return False
    tried = max(rate for runs in same_size if (rate := _highest_rate(runs)) is not None)
    return own >= _LARGER_RATE * others or tried >= _LARGER_RATE * own


def _highest_rate(runs: Sequence[Run]) -> float | None:
    """Return the highest learning rate of any group in these runs; None where one does not know it."""
    known = [run.highest_rate for run in runs if run.highest_rate is not None]
    return max(known) if len(known) == len(runs) else None


def _error(frozen: Sequence[Run], less_frozen: Sequence[Run]) -> float:
    return math.sqrt(sum(_mean_error(runs) ** 2 for runs in (frozen, less_frozen)))


def _mean_error(runs: Sequence[Run]) -> float:
    return math.sqrt(sum(run.training_loss_error**2 for run in runs)) / len(runs)


def _loss(run: Run) -> float:
    return run.last.loss
