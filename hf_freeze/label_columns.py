"""The one definition of which column of a row, or field of a batch, is the label."""

import inspect
from collections.abc import Iterable
from typing import Any

from transformers.utils.generic import find_labels

LABEL_COLUMNS = ("labels", "label", "label_ids", "targets", "target")
"""Names that are labels whatever the model: its own, those that collators turn into it, and those of custom models."""


def label_columns(model: Any = None, given: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of label columns, the surest first.

    Those that are `given` (a Trainer's `label_names`), those that the model's `forward` takes as its labels
    (`start_positions` and `end_positions` in question answering), then the usual ones.

    >>> label_columns(given=["stars"])
    ('stars', 'labels', 'label', 'label_ids', 'targets', 'target')
    """
    own = () if model is None else _of_forward(model)
    return tuple(dict.fromkeys((*given, *own, *LABEL_COLUMNS)))


def _of_forward(model: Any) -> list[str]:
    # PEFT's forward passes everything on to the model that it wraps.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: list[str] = find_labels(type(model))  # type: ignore[no-untyped-call]
    parameters = inspect.signature(type(model).forward).parameters
    # A number such as `label_smoothing=0.1` and a switch are no column: a column has no default, or None.
    return [name for name in found if parameters[name].default in (inspect.Parameter.empty, None)]
