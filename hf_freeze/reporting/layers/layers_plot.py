"""The picture of a suggestion. matplotlib (the extra `plots`) is imported when it is drawn."""

from pathlib import Path
from typing import Any

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.figure import CHOSEN, new_figure
from hf_freeze.reporting.layers.block_suggestion import WHAT, BlockSuggestion
from hf_freeze.reporting.layers.suggestion import LayerSuggestion, ProbeSuggestion

_MOST_LABELS = 32


def plot_layers(suggestion: LayerSuggestion, path: str | Path | None = None) -> Any:
    """Draw what `suggest_layers` found.

    Of probes: the score at every depth, the standard error below the best, and the depth that suffices. Of a gradient
    or a spectrum: the score of every block, and the best.

    Args:
        suggestion: What `suggest_layers` returned.
        path: Write the figure there, in the format of its suffix. By default nothing is written.

    Returns:
        The matplotlib figure.

    Raises:
        FreezeError: For a path that no picture can be written to, and without matplotlib.
    """
    figure = new_figure("plot_layers", width=7.0, height=4.0, path=path)
    axes = figure.subplots()
    if isinstance(suggestion, ProbeSuggestion):
        _draw_depths(axes, suggestion)
    elif isinstance(suggestion, BlockSuggestion):
        _draw_blocks(axes, suggestion)
    else:
        raise FreezeError(f"{suggestion!r:.80} is not a suggestion: give what suggest_layers() returned.")
    axes.grid(alpha=0.25)
    if path is not None:
        figure.savefig(Path(path))
    return figure


def _draw_depths(axes: Any, suggestion: ProbeSuggestion) -> None:
    best, chosen = suggestion.best, suggestion.depth
    depths = [score.depth for score in suggestion.scores]
    axes.axhspan(best.mean - best.error, best.mean, color="#009e73", alpha=0.18, lw=0, label="one standard error")
    axes.errorbar(
        depths,
        [score.mean for score in suggestion.scores],
        yerr=[score.error for score in suggestion.scores],
        color="#0072b2",
        marker="o",
        capsize=3,
        label="linear probe",
    )
    axes.axvline(chosen, color=CHOSEN, lw=1.5, ls="--", label=f"depth {chosen} suffices")
    axes.plot([best.depth], [best.mean], "*", color="#222222", ms=12, label=f"best: depth {best.depth}")
    every = 1 + (len(depths) - 1) // _MOST_LABELS
    names = ["emb.", *(str(depth - 1) for depth in depths[1:])]
    axes.set_xticks(depths[::every], names[::every], fontsize=8)
    axes.set(
        xlabel="features after the embeddings, and after layers[...]",
        ylabel=f"{suggestion.scoring}, {len(best.folds)} folds",
    )
    axes.set_title(f"{suggestion.rows:,} rows; plan: {suggestion.plan.to_dict()}", fontsize=9)
    axes.legend(fontsize=8, loc="best")


def _draw_blocks(axes: Any, suggestion: BlockSuggestion) -> None:
    names, scores = list(suggestion.scores), list(suggestion.scores.values())
    bars = axes.bar(range(len(names)), scores, color="#0072b2")
    for place, name in enumerate(names):
        if name in suggestion.best:
            bars[place].set_color(CHOSEN)
    every = 1 + (len(names) - 1) // _MOST_LABELS
    axes.set_xticks(range(0, len(names), every), names[::every], fontsize=8, rotation=90)
    axes.set(xlabel=f"the best {suggestion.k} in red", ylabel=WHAT[suggestion.method])
    axes.set_title(f"plan: {suggestion.plan.to_dict()}", fontsize=9, wrap=True)
