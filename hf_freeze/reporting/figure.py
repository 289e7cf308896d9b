"""A matplotlib figure without a window, or an error that names the extra."""

from __future__ import annotations

from typing import Any

from hf_freeze.errors import FreezeError


def new_figure(caller: str, *, width: float, height: float) -> Any:
    """Return an empty figure of this size in inches. Raises `FreezeError` when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise FreezeError(f'{caller} needs matplotlib: pip install "hf_freeze[plots]".') from error
    return Figure(figsize=(width, height), layout="constrained", dpi=100)
