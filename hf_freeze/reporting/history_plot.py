"""A picture of a run: loss, metrics and learning rates over its stages.

The log is read from wherever it is kept: a trainer, its history, a checkpoint, or the folder of a run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.figure import logarithmic, mark_stages, new_figure
from hf_freeze.training.group_names import from_the_head_down, joined_names

Entries: TypeAlias = Sequence[Mapping[str, Any]]
Series: TypeAlias = dict[str, list[tuple[int, float]]]

_SHADES = ("#ffffff", "#e9eef5")
_FIRST = ("f1", "accuracy", "average_precision", "auroc", "precision", "recall")
_MOST_METRICS = 6
_MOST_LABELS = 42
_STYLES = ("-", "--", ":", "-.")  # the colours repeat after ten lines


def plot_history(
    history: Trainer | Entries | str | PathLike[str],
    path: str | Path | None = None,
    *,
    metrics: str | Sequence[str] | None = None,
) -> Any:
    """Draw a run: loss and metrics over its steps, the learning rate of every group, the stages shaded.

    A stage begins behind the last log of the one before, so that with `logging_steps=1` it is exact.

    Args:
        history: A trainer, its `state.log_history`, a checkpoint (a folder or its `trainer_state.json`), or the
            `output_dir` of a run, whose last checkpoint is read.
        path: Write the figure there, in the format of its suffix. By default nothing is written.
        metrics: Names of those to draw, with or without `eval_`. By default some that lie between 0 and 1.

    Returns:
        The matplotlib figure.

    Raises:
        FreezeError: For anything but a log, one without a loss, a metric that was not logged, for a path that no
            picture can be written to, and without matplotlib.
    """
    entries = _logged_entries(history)
    losses = _series(entries, [name for name in _names(entries) if name == "loss" or name.endswith("_loss")])
    if not losses:
        raise FreezeError("The log has no loss: nothing to draw. Give the log_history of a run with logging_steps.")
    parts = {
        "loss": losses,
        "metrics": _series(entries, _metrics(entries) if metrics is None else _named(entries, metrics)),
        "learning rate": _rates(entries),
    }
    shown = {title: series for title, series in parts.items() if series}
    figure = new_figure("plot_history", width=9, height=0.8 + 2.1 * len(shown), path=path)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    stages = _stages(entries)
    for axes, (title, series) in zip(panels, shown.items(), strict=True):
        _draw(axes, title, series)
        _shade(axes, stages)
    if stages:
        names = [f"stage {stage}" for stage, _, _ in stages]
        mark_stages(panels[0], [begin for _, begin, _ in stages], names, end=stages[-1][2])
    panels[-1].set_xlabel("optimizer step")
    if path is not None:
        figure.savefig(Path(path))
    return figure


def _names(entries: Entries) -> list[str]:
    """Return everything that was logged as a number, in the order of its first log."""
    return [
        name
        for name in dict.fromkeys(name for entry in entries for name in entry)
        if all(isinstance(entry.get(name, 0), int | float) for entry in entries)
    ]


def _series(entries: Entries, names: Sequence[str]) -> Series:
    found = {name: [(entry["step"], entry[name]) for entry in entries if name in entry] for name in names}
    return {name: points for name, points in found.items() if name != "train_loss" or len(points) > 1}


def _rates(entries: Entries) -> Series:
    """Return the rate of every group where it trains; of a group that is frozen there is none in the log."""
    names = [name for name in _names(entries) if name.startswith("lr/")]
    if not names:
        return _series(entries, [name for name in _names(entries) if name == "learning_rate"])
    logged = [entry for entry in entries if any(name in entry for name in names)]
    # A rate of 0 has no place on a logarithmic axis either.
    rates = {
        name.removeprefix("lr/"): [(entry["step"], entry.get(name) or math.nan) for entry in logged] for name in names
    }
    shown = joined_names(rates)
    return {label: rates[shown[label]] for label in sorted(shown, key=from_the_head_down)}


def _metrics(entries: Entries) -> list[str]:
    """Some of the metrics that lie between 0 and 1: those that most look at, else the first that were logged."""
    skipped = ("_loss", "_runtime", "_per_second", "threshold")
    within = [
        name
        for name in _names(entries)
        if name.startswith("eval_")
        and not name.endswith(skipped)
        and all(0 <= entry[name] <= 1 for entry in entries if name in entry)
    ]
    first = [f"eval_{name}" for name in _FIRST if f"eval_{name}" in within]
    return (first or within)[:_MOST_METRICS]


def _named(entries: Entries, metrics: str | Sequence[str]) -> list[str]:
    known = _names(entries)
    found = []
    for name in [metrics] if isinstance(metrics, str) else metrics:
        spellings = [spelling for spelling in (name, f"eval_{name}") if spelling in known]
        if not spellings:
            logged = ", ".join(known)
            raise FreezeError(f"metrics={metrics!r}: {name!r} was not logged. Logged were {logged}.")
        found.append(spellings[0])
    return found


def _stages(entries: Entries) -> list[tuple[int, int, int]]:
    """Return every stage with the steps between which it was; one that was too short to be logged is missing."""
    logged = [(entry["step"], entry["stage"]) for entry in entries if "stage" in entry]
    end = max(entry["step"] for entry in entries)
    begins: dict[int, int] = {}
    before = 0
    for step, stage in logged:
        begins.setdefault(stage, before)
        before = step
    ends = [*begins.values(), end][1:]
    return [(stage, begin, until) for (stage, begin), until in zip(begins.items(), ends, strict=True)]


def _shade(axes: Any, stages: Sequence[tuple[int, int, int]]) -> None:
    for index, (_, begin, end) in enumerate(stages):
        axes.axvspan(begin, end, color=_SHADES[index % 2], lw=0, zorder=0)


def _draw(axes: Any, title: str, series: Series) -> None:
    for index, (name, points) in enumerate(series.items()):
        steps, values = zip(*points, strict=True)
        marker = "o" if name.startswith("eval_") or len(points) == 1 else ""
        label = name.removeprefix("eval_") if title == "metrics" else name
        axes.plot(steps, values, marker=marker, ms=3.5, lw=1.4, ls=_STYLES[index // 10 % len(_STYLES)], label=label)
    if title == "learning rate":
        logarithmic(axes)
    axes.set_ylabel(title)
    axes.grid(alpha=0.25)
    if len(series) <= _MOST_LABELS:
        size, rows = (7.5, 8) if len(series) <= 16 else (5.5, 14)
        columns = 1 + (len(series) - 1) // rows
        axes.legend(fontsize=size, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, frameon=False)


_WANTED = "Give a trainer, its state.log_history, a checkpoint, or the output_dir of a run with checkpoints."


def _logged_entries(history: Trainer | Entries | str | PathLike[str]) -> Entries:
    """Return the entries of a log, each with its step. Raises `FreezeError` for what holds none."""
    if isinstance(history, Trainer):
        return history.state.log_history
    if isinstance(history, str | PathLike):
        file = _state_file(Path(history))
        return _checked(_log_of(file), f"log_history of {str(file)!r}")
    return _checked(history, "history")


def _state_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / TRAINER_STATE_NAME).is_file():
        path = Path(get_last_checkpoint(str(path)) or path)  # type: ignore[no-untyped-call]
    return path / TRAINER_STATE_NAME


def _log_of(file: Path) -> Any:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FreezeError(f"{str(file)!r} has no log_history: {error!r}. {_WANTED}") from error
    if not isinstance(state, dict) or "log_history" not in state:
        found = f"the keys {sorted(state)}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise FreezeError(f"{str(file)!r} has no log_history, but {found}. {_WANTED}")
    return state["log_history"]


def _checked(entries: Any, name: str) -> Entries:
    if not isinstance(entries, Sequence):
        raise FreezeError(f"{name} is a {type(entries).__name__}: {_short(entries)}. {_WANTED}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("step"), int):
            raise FreezeError(f"{name}[{index}] is not a log entry with its 'step': {_short(entry)}. {_WANTED}")
    return entries


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
