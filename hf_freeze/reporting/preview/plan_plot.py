"""A picture of a plan: the learning rate of each group over the run."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.figure import mark_stages, new_figure, plain_numbers
from hf_freeze.reporting.preview.preview_result import Preview
from hf_freeze.reporting.preview.rates import RateSchedule
from hf_freeze.training.group_names import from_the_head_down, joined_names

_MOST_COLUMNS = 1500
_WIDTH = 9.0
_TITLE_COLUMNS = 100
_TITLE_LINES = 3
_DECADES = 2.5  # that the colours span; what learns more slowly has the lightest one
FROZEN = "#e4e4e4"
RATE_0 = "#ffffff"


def plot_plan(preview: Preview, path: str | Path | None = None) -> Any:
    """Draw the learning rate of every group over the run: colour is the rate, grey is frozen, lines are transitions.

    White is a group that trains with a rate of 0: the first step of a warmup, the end of a schedule, a rate given as 0.

    The rates are those of training, with the Trainer's scheduler, the gate and `unfreeze_warmup`. Groups that differ in
    weight decay alone share a row. Where a stage waits for a plateau without `max_epochs`, it and what comes behind it
    are left out, and the title says so.

    Args:
        preview: What `preview` returned for a run of known length: with `rows`, or with `max_steps` in its arguments.
        path: Write the figure there, in the format of its suffix. By default nothing is written.

    Returns:
        The matplotlib figure.

    Raises:
        FreezeError: For anything but a `Preview`, a run of unknown length, for a path that no picture can be
            written to, and without matplotlib.
    """
    if not isinstance(preview, Preview):
        raise FreezeError(f"{preview!r} is not a preview: give what preview(model, args, plan=..., rows=...) returned.")
    schedule = preview.schedule
    if schedule is None:
        raise FreezeError(
            "The length of the run is not known: give preview(..., rows=) the number of training rows, or set "
            "max_steps in the arguments."
        )
    drawn = _joined(schedule)
    begun = [stage for stage in preview.stages if stage.step is not None and stage.step < schedule.max_steps]
    title = _title(preview, len(begun))
    height = 1.55 + 0.15 * len(title) + 0.3 * min(len(drawn), 60)
    figure = new_figure("plot_plan", width=_WIDTH, height=height, path=path)
    axes = figure.subplots()
    image = _draw_rates(axes, schedule, drawn)
    begins = [stage.step or 0 for stage in begun]
    mark_stages(axes, begins, [f"{stage.index}: {stage.starts}" for stage in begun], end=schedule.max_steps)
    figure.suptitle("\n".join(title), fontsize=10)
    if image is not None:
        figure.colorbar(image, ax=axes, label="learning rate", extend="min", format=plain_numbers())
    if path is not None:
        figure.savefig(Path(path))
    return figure


def _joined(schedule: RateSchedule) -> dict[str, str]:
    rows = joined_names({name: (rate, schedule.trains[name]) for name, rate in schedule.base_rates.items()})
    return {row: rows[row] for row in sorted(rows, key=from_the_head_down)}


def _draw_rates(axes: Any, schedule: RateSchedule, drawn: Mapping[str, str]) -> Any:
    """Fill the axes; return the image that the rates are colours of, or None where all of them are 0."""
    from matplotlib.colors import ListedColormap, LogNorm  # noqa: PLC0415 - an optional extra

    steps = _columns(schedule)
    by_step = [schedule.rates(step) for step in steps]
    rates = np.array([[at[group] for at in by_step] for group in drawn.values()])
    cells = np.append(steps, schedule.max_steps), np.arange(len(drawn) + 1)
    idle = np.ma.masked_where(_frozen(schedule, steps, drawn) | (rates > 0), rates)
    axes.pcolormesh(*cells, idle, cmap=ListedColormap([RATE_0]))
    image, top = None, rates.max()
    if top > 0:
        learning = np.ma.masked_where(rates <= 0, rates)
        image = axes.pcolormesh(*cells, learning, norm=LogNorm(top / 10**_DECADES, top), cmap="viridis_r")
    axes.set_facecolor(FROZEN)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(drawn)) + 0.5, drawn, fontsize=9 if len(drawn) <= 40 else 6)
    axes.hlines(np.arange(1, len(drawn)), 0, schedule.max_steps, color="white", lw=0.8)
    per_epoch = f", {schedule.steps_per_epoch:,} an epoch" if schedule.steps_per_epoch else ""
    axes.set_xlabel(f"optimizer step{per_epoch}")
    return image


def _columns(schedule: RateSchedule) -> Any:
    """Return the steps that are drawn: all of them, or in long runs some at even distances and every transition."""
    even = np.linspace(0, schedule.max_steps - 1, min(schedule.max_steps, _MOST_COLUMNS)).round().astype(int)
    begins = [begin for begin in schedule.begins if begin < schedule.max_steps]
    return np.unique(np.append(even, begins))


def _frozen(schedule: RateSchedule, steps: Any, drawn: Mapping[str, str]) -> Any:
    return np.array([[schedule.is_frozen(group, step) for step in steps] for group in drawn.values()])


def _title(preview: Preview, drawn: int) -> list[str]:
    sentences = [f"{preview.model}: learning rates (grey: frozen, white: rate 0)"]
    if late := [stage.starts for stage in preview.stages[drawn:]]:
        sentences.append(f"not drawn: {', '.join(late)}")
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, _TITLE_COLUMNS, max_lines=_TITLE_LINES, placeholder=" ...")
    ]
