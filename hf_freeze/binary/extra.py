"""Metrics of the `evaluate` library, run on thresholded labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.figures import finite
from hf_freeze.binary.result import short
from hf_freeze.errors import FreezeError


def check_extra(metrics: Any) -> list[Any]:
    """Return the metrics as a list. Raises `FreezeError` for what cannot be called with predictions and references."""
    if not isinstance(metrics, (list, tuple)):
        raise FreezeError(f"extra={short(metrics)} is not a list of metrics. Say extra=[evaluate.load(...)].")
    for metric in metrics:
        compute = getattr(metric, "compute", metric)
        if isinstance(metric, str):
            raise FreezeError(f"extra={short(metrics)} has a name, not a metric. Load it: evaluate.load({metric!r}).")
        if not callable(compute) or not _takes_predictions(compute):
            raise FreezeError(
                f"extra={short(metrics)}: {_name(metric)} cannot be called with predictions= and references=. Give "
                "metrics of the evaluate library, or functions of these two that return a dict."
            )
    return list(metrics)


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
        for key, value in _computed(metric, predicted.astype(np.int64), positive.astype(np.int64)).items():
            name = str(key) if key not in taken and key not in figures else f"{_name(metric)}_{key}"
            if np.ndim(value) == 0 and isinstance(value, (bool, int, float, np.number, np.bool_)):
                figures[name] = finite(float(value))
            else:
                left_out.append(name)
    return figures, left_out


def _computed(metric: Any, predictions: NDArray[np.int64], references: NDArray[np.int64]) -> Mapping[str, Any]:
    try:
        computed = getattr(metric, "compute", metric)(predictions=predictions, references=references)
    except Exception as error:
        raise FreezeError(f"The extra metric {_name(metric)} failed: {type(error).__name__}: {error}") from error
    if not isinstance(computed, Mapping) and computed is not None:
        raise FreezeError(f"The extra metric {_name(metric)} returned {short(computed)}, not a dict of figures.")
    return computed or {}


def _takes_predictions(compute: Any) -> bool:
    try:
        inspect.signature(compute).bind(predictions=None, references=None)
    except TypeError:
        return False
    except ValueError:  # a function without a signature
        return True
    return True


def _name(metric: Any) -> str:
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", None) or type(metric).__name__)
