"""What a comparison found: one table, and what the figures say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_freeze.plan.tables import as_table
from hf_freeze.reporting.comparison.blocked_learning import frozen_layers_block
from hf_freeze.reporting.comparison.notes import notes
from hf_freeze.reporting.comparison.runs import Run
from hf_freeze.reporting.comparison.verdicts import (
    as_good_for_less,
    diverged,
    f1,
    freezing_helps,
    has_diverged,
    interval,
    is_told,
    mean,
    recall_collapsed,
    too_short,
)
from hf_freeze.whole_files import write_text

_NOT_TOLD = "-"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs of every plan, one per seed. `str()` is a table, how its figures were had, and what they say.

    `failures` has (plan, seed, reason) of runs that broke off, of which nothing is in the table.
    """

    runs: Sequence[Run]
    failures: Sequence[tuple[str, int, str]] = ()

    @property
    def by_plan(self) -> dict[str, list[Run]]:
        """Name -> its runs."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.name, []).append(run)
        return found

    @property
    def verdicts(self) -> list[str]:
        """What the figures say; see `verdicts.py` for when. Empty where they carry nothing."""
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
        table = [_table(self.by_plan), "", *notes(self.runs)] if self.runs else []
        return "\n".join([*table, *failed, *said])

    def to_dict(self) -> dict[str, Any]:
        """Return all figures and verdicts as JSON-able values."""
        failures = [{"name": name, "seed": seed, "reason": reason} for name, seed, reason in self.failures]
        return {"runs": [asdict(run) for run in self.runs], "failures": failures, "verdicts": self.verdicts}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, whole or not at all."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")


def line_of(run: Run) -> str:
    """Say in one line what came of a run."""
    if has_diverged(run):
        return f"{run.name}, seed {run.seed}: diverged, validation loss {run.last.loss:.4f}, {run.seconds:.1f} s"
    return (
        f"{run.name}, seed {run.seed}: validation loss {run.last.loss:.4f}, "
        f"F1 {f'{run.last.f1:.3f}' if is_told([run]) else _NOT_TOLD}, "
        f"average precision {run.last.average_precision:.3f}, {run.seconds:.1f} s"
    )


def _freezing_helps(runs: list[Run], plans: Sequence[list[Run]]) -> str | None:
    """Hold a plan against the one with the best F1 among those that train more; without one, nothing is said."""
    freer = [other for other in plans if other[0].trainable > runs[0].trainable]
    return freezing_helps(runs, max(freer, key=lambda other: mean(other, f1))) if freer else None


def _table(by_plan: dict[str, list[Run]]) -> str:
    columns: dict[str, Callable[[list[Run]], str]] = {
        "plan": lambda runs: runs[0].name,
        "trains": lambda runs: f"{runs[0].trainable:,}",
        # The Trainer logs 0 in place of a loss that is no number.
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
    """Return a cell of the table that has no figure where a run diverged."""
    return lambda runs: _NOT_TOLD if any(map(has_diverged, runs)) else _spread(list(map(what, runs)))


def _f1_with_interval(runs: list[Run]) -> str:
    if not is_told(runs):
        return _NOT_TOLD
    ends = interval(runs)
    return _spread(list(map(f1, runs))) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _spread(values: Sequence[float]) -> str:
    told = len(values) > 1 and all(map(math.isfinite, values))
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if told else "")
