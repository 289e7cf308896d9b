"""The result of a comparison: one table, and the sentences that the results support."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_freeze.plan.tables import as_table
from hf_freeze.reporting.comparison.blocked_learning import frozen_layers_block
from hf_freeze.reporting.comparison.peak_memory import HOW
from hf_freeze.reporting.comparison.runs import Run
from hf_freeze.reporting.comparison.verdicts import (
    as_good_for_less,
    diverged,
    f1,
    freezing_helps,
    has_diverged,
    has_interval,
    interval,
    is_perfect,
    mean,
    recall_collapsed,
    too_short,
)
from hf_freeze.whole_files import write_text

_NOT_TOLD = "-"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found. `str()` is a table, a line on how each column was measured, and the verdicts.

    Attributes:
        runs: The finished runs, one per plan and seed.
        failures: (plan, seed, reason) of each run that failed, of which nothing is in the table.
    """

    runs: Sequence[Run]
    failures: Sequence[tuple[str, int, str]] = ()

    @property
    def by_plan(self) -> dict[str, list[Run]]:
        """Return the runs of each plan, by its name."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.name, []).append(run)
        return found

    @property
    def verdicts(self) -> list[str]:
        """Return what the results support, as sentences; `verdicts.py` says when. Empty where they support nothing."""
        plans = list(self.by_plan.values())
        sound = [runs for runs in plans if diverged(runs) is None]
        blocked = frozen_layers_block(sound)
        helping = [_freezing_helps(runs, sound) for runs in sound if runs[0].name not in blocked]
        said = [*map(diverged, plans), *helping, *blocked.values(), *map(recall_collapsed, sound)]
        said += [too_short(sound), as_good_for_less(sound)]
        return [sentence for sentence in said if sentence is not None]

    def __str__(self) -> str:
        failed = [f"{name}, seed {seed}, failed: {reason}" for name, seed, reason in self.failures]
        said = [f"- {text}" for text in self.verdicts]
        table = [_table(self.by_plan), "", *_notes(self.runs)] if self.runs else []
        return "\n".join([*table, *failed, *said])

    def to_dict(self) -> dict[str, Any]:
        """Return all results and verdicts as JSON-able values."""
        failures = [{"name": name, "seed": seed, "reason": reason} for name, seed, reason in self.failures]
        return {"runs": [asdict(run) for run in self.runs], "failures": failures, "verdicts": self.verdicts}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")


def line_of(run: Run) -> str:
    """Summarise a run in one line."""
    if has_diverged(run):
        return f"{run.name}, seed {run.seed}: diverged, validation loss {run.last.loss:.4f}, {run.seconds:.1f} s"
    return (
        f"{run.name}, seed {run.seed}: validation loss {run.last.loss:.4f}, "
        f"F1 {f'{run.last.f1:.3f}' if has_interval([run]) else _NOT_TOLD}, "
        f"average precision {run.last.average_precision:.3f}, {run.seconds:.1f} s"
    )


def _freezing_helps(runs: list[Run], plans: Sequence[list[Run]]) -> str | None:
    """Compare a plan with the best by F1 among those that train more; without one, say nothing."""
    less_frozen = [other for other in plans if other[0].trainable > runs[0].trainable]
    return freezing_helps(runs, max(less_frozen, key=lambda other: mean(other, f1))) if less_frozen else None


def _table(by_plan: dict[str, list[Run]]) -> str:
    columns: dict[str, Callable[[list[Run]], str]] = {
        "plan": lambda runs: runs[0].name,
        "trains": lambda runs: f"{runs[0].trainable:,}",
        # The Trainer logs 0 in place of a loss that is not a number.
        "train loss": _of_sound_runs(Run.training_loss),
        "val. loss": lambda runs: _spread([run.last.loss for run in runs]),
        "accuracy": _of_sound_runs(lambda run: run.last.accuracy),
        "recall": _of_sound_runs(lambda run: run.last.recall),
        "F1 [95 %]": _f1_with_interval,
        "avg. prec.": _of_sound_runs(lambda run: run.last.average_precision),
    }
    if all(run.tested for runs in by_plan.values() for run in runs):
        columns["test F1"] = _of_sound_runs(lambda run: (run.tested or {})["f1"])
    columns["seconds"] = lambda runs: f"{fmean(run.seconds for run in runs):.1f}"
    columns["peak MB"] = lambda runs: f"{max(run.peak_bytes for run in runs) / 1e6:,.0f}"
    return as_table([tuple(columns), *(tuple(cell(runs) for cell in columns.values()) for runs in by_plan.values())])


def _of_sound_runs(what: Callable[[Run], float]) -> Callable[[list[Run]], str]:
    """Return a function for a cell of the table, which is empty where a run diverged."""
    return lambda runs: _NOT_TOLD if any(map(has_diverged, runs)) else _spread(list(map(what, runs)))


def _f1_with_interval(runs: list[Run]) -> str:
    if not has_interval(runs):
        return _NOT_TOLD
    ends = interval(runs)
    return _spread(list(map(f1, runs))) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _spread(values: Sequence[float]) -> str:
    told = len(values) > 1 and all(map(math.isfinite, values))
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if told else "")


def _notes(runs: Sequence[Run]) -> list[str]:
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
        + (f"; {stored} on features computed once, that pass included." if stored else "."),
        f"Peak memory: {HOW['cuda' if runs[0].device == 'cuda' else 'cpu']}.",
        *_remarks(sound),
    ]


def _without_interval(runs: Sequence[Run]) -> list[str]:
    apart = [run for run in runs if is_perfect(run)]
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


def _remarks(runs: Sequence[Run]) -> list[str]:
    """Return the remarks on thresholds, each text once, with the metrics of one run."""
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
    example = next((run for run in runs if not is_perfect(run)), runs[0])
    return f"In {len(runs)} of {of} runs: {head}. {_who(example)}: {_believable(example).partition(': ')[2]}"


def _believable(run: Run) -> str:
    """Return the remark, without an interval if that has no width."""
    if run.interval is None or not is_perfect(run):
        return run.remark
    return run.remark.replace(f" (95 % interval {run.interval[0]:.3f} to {run.interval[1]:.3f})", "")


def _who(run: Run) -> str:
    return f"{run.name}, seed {run.seed}"


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(dict.fromkeys(run.name for run in runs))


def _positives(runs: Sequence[Run]) -> str:
    count = min(run.n_pos for run in runs)
    return f"{count} positive{'s' * (count != 1)}"
