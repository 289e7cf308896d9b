"""A matplotlib figure without a window, the file it is written to, and the parts that several pictures share.

Figure and file are checked before anything is drawn.
"""

from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from hf_freeze.errors import FreezeError

CHOSEN = "#c1272d"
"""The colour of the choice: a threshold, a depth, a block."""


def new_figure(caller: str, *, width: float, height: float, path: str | Path | None = None) -> Any:
    """Return an empty figure of this size in inches.

    Raises `FreezeError` when matplotlib is missing, or when no picture can be written to `path`.
    """
    figure_class = _figure_class(caller)
    if path is not None:
        _check_name(path, figure_class)
        _check_parent(Path(path))
    return figure_class(figsize=(width, height), layout="constrained", dpi=100)


def prepare_picture(caller: str, path: str | Path) -> None:
    """Make the folder of a picture that is drawn later, after work that would be lost if it could not be written.

    Raises `FreezeError` when matplotlib is missing or the name is not that of a picture, and `OSError` when the folder
    cannot be made.
    """
    _check_name(path, _figure_class(caller))
    Path(path).parent.mkdir(parents=True, exist_ok=True)


def logarithmic(axes: Any) -> None:
    """Make the upright axis logarithmic, with numbers at its ticks that are read at a glance."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator  # noqa: PLC0415 - an optional extra

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Powers of ten alone would leave less than a decade without a tick.
    within_a_decade = high < 10 * low
    few = (1, 3) if high < 1e4 * low else (1,)
    axes.yaxis.set_major_locator(MaxNLocator(6) if within_a_decade else LogLocator(subs=few))
    axes.yaxis.set_major_formatter(plain_numbers())
    axes.yaxis.set_minor_locator(NullLocator())


def plain_numbers() -> Any:
    """Write ticks as 0.62 and 3e-05, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter  # noqa: PLC0415 - an optional extra

    return FuncFormatter(lambda value, _: f"{value:.3g}")


def _figure_class(caller: str) -> Any:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise FreezeError(f'{caller} needs matplotlib: pip install "hf_freeze[plots]".') from error
    return Figure


def _check_name(path: Any, figure_class: Any) -> None:
    if not isinstance(path, str | PathLike):
        raise FreezeError(f"path={path!r} is a {type(path).__name__}. Give the name of one file, such as 'plot.png'.")
    named = Path(path)
    if named.is_dir():
        raise FreezeError(
            f"path={str(path)!r} is a folder. Give the name of a file, such as {str(named / 'plot.png')!r}."
        )
    known = sorted(figure_class().canvas.get_supported_filetypes())
    if named.suffix.removeprefix(".").lower() not in known:
        ending = f"in {named.suffix!r}, which is not a picture format" if named.suffix else "without a suffix"
        raise FreezeError(f"path={str(path)!r} ends {ending}. Known are .{', .'.join(known)}; .png is a good choice.")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise FreezeError(f"path={str(path)!r}: there is no folder {str(path.parent)!r}. Make it first.")


_ROOM = 0.14  # of the width that a level label takes
_LEAST = 0.04  # of the width between two slanted ones


def mark_stages(axes: Any, begins: Sequence[int], labels: Sequence[str], *, end: int) -> None:
    """Draw a dashed line at every transition, and the stages' names above; names that would overlap are slanted."""
    for begin in begins[1:]:
        axes.axvline(begin, color="black", lw=1.1, ls="--")
    ticks = _joined_ticks(begins, labels, least=_LEAST * end)
    crowded = any(after - before < _ROOM * end for before, after in pairwise(ticks))
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(ticks), list(ticks.values()), fontsize=8, ha="left", rotation=30 if crowded else 0)
    above.tick_params(length=2 if crowded else 0, pad=1)


def _joined_ticks(begins: Sequence[int], labels: Sequence[str], *, least: float) -> dict[int, str]:
    """Return step -> label; a stage that begins less than `least` steps after the tick before shares it.

    >>> _joined_ticks([0, 1, 50], ["0: start", "1: step 1", "2: step 50"], least=5)
    {0: '0: start, 1: step 1', 50: '2: step 50'}
    """
    ticks: dict[int, str] = {}
    for begin, label in zip(begins, labels, strict=True):
        last = max(ticks, default=None)
        if last is not None and begin - last < least:
            ticks[last] += f", {label}"
        else:
            ticks[begin] = label
    return ticks
