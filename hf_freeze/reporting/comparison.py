"""What a comparison found: one table, and what the figures say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_freeze.plan.tables import as_table
from hf_freeze.reporting.peak_memory import HOW
from hf_freeze.reporting.runs import Run
from hf_freeze.reporting.verdicts import (
    as_good_for_less,
    freezing_helps,
    frozen_layers_block,
    interval,
    recall_collapsed,
)


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
        freest = max(plans, key=lambda runs: (runs[0].trainable, fmean(run.last.f1 for run in runs)), default=[])
        blocked = {runs[0].name: _blocked(runs, plans) for runs in plans}
        helping = [runs for runs in plans if blocked[runs[0].name] is None]
        said = [freezing_helps(runs, [] if runs is freest else freest) for runs in helping]
        said += [*blocked.values(), *map(recall_collapsed, plans)]
        said += [as_good_for_less(plans)]
        return [sentence for sentence in said if sentence is not None]

    def __str__(self) -> str:
        failed = [f"{name}, seed {seed}, failed: {reason}" for name, seed, reason in self.failures]
        said = [f"- {text}" for text in self.verdicts]
        return "\n".join([_table(self.by_plan), "", *_notes(self.runs), *failed, *said])

    def to_dict(self) -> dict[str, Any]:
        """Return all figures and verdicts as JSON-able values."""
        failures = [{"name": name, "seed": seed, "reason": reason} for name, seed, reason in self.failures]
        return {"runs": [asdict(run) for run in self.runs], "failures": failures, "verdicts": self.verdicts}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def line_of(run: Run) -> str:
    """Say in one line what came of a run."""
    return (
        f"{run.name}, seed {run.seed}: validation loss {run.last.loss:.4f}, F1 {run.last.f1:.3f}, "
        f"average precision {run.last.average_precision:.3f}, {run.seconds:.1f} s"
    )


def _blocked(runs: list[Run], plans: Sequence[list[Run]]) -> str | None:
    """Hold a plan against the one with the lowest training loss among those that train more.

    Where one that trains no more learns better, something else than what is frozen holds this one back: its rates.
    """
    by_loss = sorted(plans, key=lambda other: fmean(run.training_loss() for run in other))
    freer = [other for other in by_loss if other[0].trainable > runs[0].trainable]
    sparing = [other for other in by_loss if other[0].trainable <= runs[0].trainable]
    return frozen_layers_block(runs, freer[0]) if freer and sparing[0] is runs else None


def _table(by_plan: dict[str, list[Run]]) -> str:
    columns: dict[str, Callable[[list[Run]], str]] = {
        "plan": lambda runs: runs[0].name,
        "trains": lambda runs: f"{runs[0].trainable:,}",
        "train loss": lambda runs: _spread([run.training_loss() for run in runs]),
        "val. loss": lambda runs: _spread([run.last.loss for run in runs]),
        "accuracy": lambda runs: _spread([run.last.accuracy for run in runs]),
        "recall": lambda runs: _spread([run.last.recall for run in runs]),
        "F1 [95 %]": _f1_with_interval,
        "avg. prec.": lambda runs: _spread([run.last.average_precision for run in runs]),
    }
    if all(run.tested for runs in by_plan.values() for run in runs):
        columns["test F1"] = lambda runs: _spread([(run.tested or {})["f1"] for run in runs])
    columns["seconds"] = lambda runs: f"{fmean(run.seconds for run in runs):.1f}"
    columns["peak MB"] = lambda runs: f"{max(run.peak_bytes for run in runs) / 1e6:,.0f}"
    return as_table([tuple(columns), *(tuple(cell(runs) for cell in columns.values()) for runs in by_plan.values())])


def _f1_with_interval(runs: list[Run]) -> str:
    ends = interval(runs)
    return _spread([run.last.f1 for run in runs]) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _notes(runs: Sequence[Run]) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    over = f"Means ± standard deviations over the seeds {seeds}. " if len(seeds) > 1 else f"Seed {seeds[0]}. "
    stored = sorted({run.name for run in runs if run.stored_features})
    notes = [
        f"{over}Accuracy and recall of the validation set at the threshold tuned on it; F1 as on fresh rows (out of "
        "bag), with its 95 % interval.",
        "Train loss: mean over the last quarter. Seconds: training without evaluations"
        + (f"; {', '.join(stored)} on features computed once, which is in it." if stored else "."),
        f"Peak memory: {HOW['cuda' if runs[0].device == 'cuda' else 'cpu']}.",
    ]
    remarks = [f"{run.name}, seed {run.seed}: {run.remark}" for run in runs if run.remark]
    return [*notes, *remarks[:1], *([f"So in {len(remarks)} of {len(runs)} runs."] if len(remarks) > 1 else [])]
