"""The lines under the table of a comparison: how its figures were had, and why some are not told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_freeze.reporting.comparison.peak_memory import HOW
from hf_freeze.reporting.comparison.runs import Run
from hf_freeze.reporting.comparison.verdicts import has_diverged, separates


def notes(runs: Sequence[Run]) -> list[str]:
    """Return the lines for these runs: at least one."""
    seeds = sorted({run.seed for run in runs})
    means = f"Means ± standard deviations over the seeds {seeds}. " if len(seeds) > 1 else f"Seed {seeds[0]}. "
    stored = _names(run for run in runs if run.stored_features)
    sound = [run for run in runs if not has_diverged(run)]
    return [
        f"{means}Accuracy and recall of the validation set at the threshold tuned on it; F1 as on fresh rows (out of "
        "bag), with its 95 % interval.",
        *_without_interval(sound),
        "Train loss: mean over the last quarter. Seconds: training without evaluations"
        + (f"; {stored} on features computed once, which is in it." if stored else "."),
        f"Peak memory: {HOW['cuda' if runs[0].device == 'cuda' else 'cpu']}.",
        *remarks(sound),
    ]


def _without_interval(runs: Sequence[Run]) -> list[str]:
    apart = [run for run in runs if separates(run)]
    untold = [run for run in runs if run.interval is None]
    said = []
    if apart:
        said.append(
            f"Every validation row was classified correctly: {_names(apart)}. With {_positives(apart)} that gives F1 "
            "no interval."
        )
    if untold:
        said.append(
            f"F1 on fresh rows is unknown: {_names(untold)}. With {_positives(untold)} there are too few rows of a "
            "class to tune on some and judge on others."
        )
    return said


def remarks(runs: Sequence[Run]) -> list[str]:
    """Return what there is to say of thresholds: once where it is the same, with the figures of one run."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        if run.remark:
            grouped.setdefault(run.remark.partition(": ")[0], []).append(run)
    return [_remark(head, own, of=len(runs)) for head, own in grouped.items()]


def _remark(head: str, runs: Sequence[Run], *, of: int) -> str:
    if len(runs) == 1:
        return f"{_who(runs[0])}: {_believable(runs[0])}"
    if len(set(map(_believable, runs))) == 1:
        return f"In {len(runs)} of {of} runs: {_believable(runs[0])}"
    example = next((run for run in runs if not separates(run)), runs[0])
    return f"In {len(runs)} of {of} runs: {head}. {_who(example)}: {_believable(example).partition(': ')[2]}"


def _believable(run: Run) -> str:
    """Return the remark without an interval that has no width."""
    if run.interval is None or not separates(run):
        return run.remark
    return run.remark.replace(f" (95 % interval {run.interval[0]:.3f} to {run.interval[1]:.3f})", "")


def _who(run: Run) -> str:
    return f"{run.name}, seed {run.seed}"


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(dict.fromkeys(run.name for run in runs))


def _positives(runs: Sequence[Run]) -> str:
    count = min(run.n_pos for run in runs)
    return f"{count} positive{'s' * (count != 1)}"
