"""The picture of a comparison. matplotlib (the extra `plots`) is imported when it is drawn."""

from pathlib import Path
from statistics import fmean
from typing import Any

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison.comparison import Comparison
from hf_freeze.reporting.comparison.runs import Run
from hf_freeze.reporting.comparison.verdicts import interval
from hf_freeze.reporting.figure import logarithmic, new_figure

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#222222", "#8c6d31")
_LETTERS = 190  # that fit into one line of the legend
_LETTERS_OF_A_LINE = 9  # that the line and the gap before a name take


def plot_comparison(comparison: Comparison, path: str | Path | None = None) -> Any:
    """Draw training and validation loss over the run, and F1 with its interval beside the cost, for every plan.

    Args:
        comparison: What `compare` returned.
        path: Write the figure there, in the format of its suffix. By default nothing is written.

    Returns:
        The matplotlib figure.

    Raises:
        FreezeError: For anything but a `Comparison`, for a path that no picture can be written to, and without
            matplotlib.
    """
    if not isinstance(comparison, Comparison):
        raise FreezeError(f"{comparison!r} is not a comparison: give what compare(...) returned.")
    plans = comparison.by_plan
    columns = max(1, _LETTERS // (_LETTERS_OF_A_LINE + max(map(len, plans), default=0)))
    height = max(4.2, 1.2 + 0.45 * len(plans)) + 0.2 * (max(len(plans) - 1, 0) // columns)
    figure = new_figure("plot_comparison", width=13.0, height=height, path=path)
    training, validation, outcome = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for index, (name, runs) in enumerate(plans.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        for run in runs:
            label = name if run is runs[0] else None
            _draw_losses(training, validation, run, color=colour, label=label)
        _draw_outcome(outcome, runs, height=len(plans) - index, colour=colour)
    training.set(xlabel="share of the run", ylabel="training loss", title="Training loss")
    validation.set(xlabel="share of the run", title="Validation loss")
    for axes in (training, validation):
        logarithmic(axes)
    figure.legend(*validation.get_legend_handles_labels(), loc="outside upper center", ncols=columns, fontsize=8)
    outcome.set(xlabel="F1 on fresh rows, 95 % interval", title="F1 against its cost", ylim=(0.4, len(plans) + 0.6))
    outcome.set_yticks(range(len(plans), 0, -1), [_cost(name, runs) for name, runs in plans.items()], fontsize=8)
    for axes in (training, validation, outcome):
        axes.grid(alpha=0.25)
    if path is not None:
        figure.savefig(Path(path))
    return figure


def _draw_losses(training: Any, validation: Any, run: Run, **style: Any) -> None:
    count = len(run.training_losses)
    training.plot([(index + 1) / count for index in range(count)], run.training_losses, alpha=0.85, lw=1.2, **style)
    end = max(run.last.step, 1)
    shares = [evaluation.step / end for evaluation in run.evaluations]
    validation.plot(shares, [evaluation.loss for evaluation in run.evaluations], marker="o", ms=3, **style)


def _draw_outcome(axes: Any, runs: list[Run], *, height: int, colour: str) -> None:
    value = fmean(run.last.f1 for run in runs)
    low, high = interval(runs) or (value, value)
    axes.plot([low, high], [height, height], color=colour, lw=3, alpha=0.4, solid_capstyle="butt")
    axes.plot([run.last.f1 for run in runs], [height] * len(runs), "o", color=colour, ms=6)


def _cost(name: str, runs: list[Run]) -> str:
    seconds, peak = fmean(run.seconds for run in runs), max(run.peak_bytes for run in runs)
    return f"{name}\n{runs[0].trainable:,} train\n{seconds:.3g} s, {peak / 1e6:,.0f} MB"
