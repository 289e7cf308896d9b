"""Metrics of the `evaluate` library, run on thresholded labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.figures import finite


def extra_figures(
    metrics: Sequence[Any], predicted: NDArray[np.bool_], positive: NDArray[np.bool_], *, taken: Mapping[str, float]
) -> tuple[dict[str, float], list[str]]:
    """Return what the metrics say, and the names of results that are no single number and were left out.

    A metric is an `evaluate` module, or any callable, that takes `predictions=` and `references=` (0 and 1, 1 being the
    positive class) and returns a dict. A name that is `taken` gets the metric's own name in front.
    """
    figures: dict[str, float] = {}
    left_out = []
    for metric in metrics:
        compute = getattr(metric, "compute", metric)
        computed = compute(predictions=predicted.astype(np.int64), references=positive.astype(np.int64))
        for key, value in (computed or {}).items():
            name = key if key not in taken and key not in figures else f"{_name(metric)}_{key}"
            if np.ndim(value) == 0 and isinstance(value, (bool, int, float, np.number, np.bool_)):
                figures[name] = finite(float(value))
            else:
                left_out.append(name)
    return figures, left_out


def _name(metric: Any) -> str:
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__)
