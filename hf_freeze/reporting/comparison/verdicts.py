"""Sentences on what a comparison found, each only where the evidence supports it.

Each function looks at the runs of one plan, one per seed, or of several, and returns a sentence with its numbers, or
None. What is said of frozen layers that block learning is in `blocked_learning.py`.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from hf_freeze.binary.counts import FloatArray
from hf_freeze.binary.metric_values import ratio, recall_below_accuracy
from hf_freeze.reporting.comparison.runs import Evaluation, Run

_SHORT = 50
"""Optimizer steps below which a low recall says little: at first most heads call everything negative at 0.5."""

_TURNED = 1.05
_ONE_SIDED_2_5_PERCENT = 1.96


def mean(runs: Sequence[Run], what: Callable[[Run], float]) -> float:
    """Return the mean over seeds."""
    return fmean(map(what, runs))


def seeds_note(runs: Sequence[Run]) -> str:
    """Say that these are means over seeds, where there are several."""
    return f" (means of {len(runs)} seeds)" if len(runs) > 1 else ""


def has_diverged(run: Run) -> bool:
    """Tell whether a loss, or a logit at the end, is not a number. Then no other result of the run means anything."""
    return not run.at_half or not all(map(math.isfinite, (run.last.loss, *run.training_losses)))


def has_interval(runs: Sequence[Run]) -> bool:
    """Tell whether F1 on fresh rows is known for every seed: it takes rows of both classes to tune on and to judge."""
    return bool(runs) and not any(run.interval is None or has_diverged(run) for run in runs)


def is_perfect(run: Run) -> bool:
    """Tell whether every evaluated row is classified correctly: in every draw of them, too, and F1 has no spread."""
    return run.interval is not None and not run.interval[0] < run.interval[1]


def interval(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Return the interval of F1 that holds those of all seeds; None where one is unknown, or none has a spread."""
    if not has_interval(runs) or all(map(is_perfect, runs)):
        return None
    ends = [run.interval for run in runs if run.interval is not None]
    return min(low for low, _ in ends), max(high for _, high in ends)


def diverged(runs: Sequence[Run]) -> str | None:
    """Say that the losses of a plan became infinite or NaN, with one seed or several."""
    seeds = [run.seed for run in runs if has_diverged(run)]
    if not seeds:
        return None
    where = f" with seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if len(runs) > 1 else ""
    return (
        f"{runs[0].name!r} diverged{where}: its loss or its logits are not numbers at the end. It is not compared "
        "with the other plans; give it a smaller learning rate."
    )


def freezing_helps(runs: Sequence[Run], less_frozen: Sequence[Run]) -> str | None:
    """Say that a plan which freezes something works, compared with the runs of one that trains more, `less_frozen`.

    In every seed validation loss falls and has not turned up again, and metrics rise; the rise in F1 is more than the
    rows leave open at the end; F1 of the other is not better by more than that; and recall has not collapsed.
    """
    if not (has_interval(runs) and has_interval(less_frozen)):
        return None
    if runs[0].trainable >= min(runs[0].parameters, less_frozen[0].trainable):
        return None
    before, after = _mean_of(runs, 0), _mean_of(runs, -1)
    if not all(map(_learns, runs)) or not before.f1 < _least_f1(runs) or is_better(less_frozen, runs):
        return None
    if _all_collapsed(runs):
        return None
    share = 1 - runs[0].trainable / runs[0].parameters
    return (
        f"Freezing helps in {runs[0].name!r}: with {_percent(share)} of the model frozen throughout, validation loss "
        f"falls from {before.loss:.3f} to {after.loss:.3f} and F1 rises from {before.f1:.3f} to "
        f"{_f1_with_interval(runs)}, no worse than {less_frozen[0].name!r} ({mean(less_frozen, f1):.3f})"
        f"{seeds_note(runs)}."
    )


def is_better(runs: Sequence[Run], other: Sequence[Run]) -> bool:
    """Tell whether the F1 of `runs` lies above the interval of the `other`, and by more than one positive row can make.

    Nothing is better than a plan that classifies every row correctly.
    """
    bounds = interval(other)
    gain = mean(runs, f1) - mean(other, f1)
    return bounds is not None and mean(runs, f1) > bounds[1] and gain > 1 / max(other[0].n_pos, 1)


def _least_f1(runs: Sequence[Run]) -> float:
    """Return the lowest F1 that the rows leave open.

    Without an error among n positives it is F1 at the lower 95 % bounds of precision and recall (Wilson, 1927).
    """
    bounds = interval(runs)
    if bounds is not None:
        return bounds[0]
    n_pos = np.array([float(runs[0].n_pos)])
    return float(wilson_bound(n_pos, n_pos, z=-_ONE_SIDED_2_5_PERCENT)[0])


def _learns(run: Run) -> bool:
    first, last = run.evaluations[0], run.last
    lowest = min(evaluation.loss for evaluation in run.evaluations)
    rises = last.average_precision > first.average_precision and last.f1 > first.f1
    return last.loss < first.loss and last.loss <= _TURNED * lowest and rises


def recall_collapsed(runs: Sequence[Run]) -> str | None:
    """Say that a good accuracy at probability 0.5 hides that most positives are missed, and what the threshold does.

    In every seed, and so that the 95 % interval of the recall (Wilson, 1927) ends below one half. Short runs
    are not judged; see `too_short`.
    """
    if not _all_collapsed(runs) or _is_short(runs):
        return None
    accuracy = mean(runs, lambda run: run.at_half["accuracy"])
    found, positives = sum(map(_found_at_half, runs)), sum(run.n_pos for run in runs)
    return (
        f"Recall collapsed in {runs[0].name!r}: at probability 0.5 it has accuracy {accuracy:.3f} and recall "
        f"{found / positives:.3f}, {found} of {positives} positives found"
        f"{f' in {len(runs)} seeds together' if len(runs) > 1 else ''}. At the tuned threshold recall is "
        f"{mean(runs, lambda run: run.last.recall):.3f}, average precision "
        f"{mean(runs, lambda run: run.last.average_precision):.3f}{seeds_note(runs)}."
    )


def too_short(plans: Sequence[Sequence[Run]]) -> str | None:
    """Name the plans that cannot be judged yet: short runs that find few positives at probability 0.5."""
    low = [runs for runs in plans if _all_collapsed(runs) and _is_short(runs)]
    if not low:
        return None
    names = ", ".join(repr(runs[0].name) for runs in low)
    steps = max(run.last.step for runs in low for run in runs)
    return (
        f"The run was short, {steps} steps: {names} {'find' if len(low) > 1 else 'finds'} few of the positives at "
        "probability 0.5, which may only mean that training has just begun. Train for at least "
        f"{_SHORT} steps to judge."
    )


def _all_collapsed(runs: Sequence[Run]) -> bool:
    return bool(runs) and all(run.at_half and _collapsed(run) for run in runs)


def _is_short(runs: Sequence[Run]) -> bool:
    return min(run.last.step for run in runs) < _SHORT


def _found_at_half(run: Run) -> int:
    return round(run.at_half["recall"] * run.n_pos)


def _collapsed(run: Run) -> bool:
    accuracy, recall = run.at_half["accuracy"], run.at_half["recall"]
    if recall_below_accuracy(accuracy=accuracy, recall=recall, n_pos=run.n_pos) is None:
        return False
    upper = wilson_bound(np.array([recall * run.n_pos]), np.array([float(run.n_pos)]), z=_ONE_SIDED_2_5_PERCENT)
    return bool(upper[0] < 0.5)


def as_good_for_less(plans: Sequence[Sequence[Run]]) -> str | None:
    """Say which plan trains fewest parameters among those that F1 cannot tell from the best (`is_better`)."""
    if len(plans) < 2 or not all(map(has_interval, plans)):
        return None
    best = max(plans, key=lambda runs: mean(runs, f1))
    equal = [runs for runs in plans if not is_better(best, runs)]
    least = min(equal, key=lambda runs: (runs[0].trainable, mean(runs, _seconds)))
    top = f"{mean(best, f1):.3f}"
    if least is not best:
        return (
            f"{least[0].name!r} (F1 {_f1_with_interval(least)}) cannot be told apart from the best plan, "
            f"{best[0].name!r} ({top}), and trains {_millions(least)} instead of {_millions(best)} parameters in "
            f"{mean(least, _seconds):.3g} s instead of {mean(best, _seconds):.3g} s{seeds_note(least)}."
        )
    if any(runs[0].trainable < best[0].trainable for runs in plans):
        return f"{best[0].name!r} has the best F1, {top}, and no plan that trains less comes near it{seeds_note(best)}."
    return f"No plan has a better F1 than {best[0].name!r}, {top}, and none trains less{seeds_note(best)}."


def f1(run: Run) -> float:
    """Return F1 at the end, as on fresh rows."""
    return run.last.f1


def _f1_with_interval(runs: Sequence[Run]) -> str:
    bounds = interval(runs)
    return f"{mean(runs, f1):.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "")


def _mean_of(runs: Sequence[Run], index: int) -> Evaluation:
    own = [run.evaluations[index] for run in runs]
    names = ("loss", "average_precision", "f1", "accuracy", "recall")
    return Evaluation(step=own[0].step, **{name: fmean(getattr(one, name) for one in own) for name in names})


def _millions(runs: Sequence[Run]) -> str:
    count = runs[0].trainable
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count:,}"


def _seconds(run: Run) -> float:
    return run.seconds


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %" if share < 0.9999 else "over 99.99 %"


def wilson_bound(successes: FloatArray, trials: FloatArray, *, z: float) -> FloatArray:
    """Return the end of Wilson's score interval `z` standard deviations from the rate: below for z < 0 (Wilson, 1927).

    Without any trial nothing is known: 0 below, 1 above.
    """
    rate = ratio(successes, trials)
    spread = z * np.sqrt(rate * (1.0 - rate) * trials + z * z / 4.0)
    return np.where(trials > 0, (successes + z * z / 2.0 + spread) / (trials + z * z), float(z > 0))
