"""Find the label: the column of a row or field of a batch, where a data set keeps it, and which value is left out."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils.generic import find_labels

LABEL_COLUMNS = ("labels", "label", "label_ids", "targets", "target")
"""Names that are labels whatever the model: its own, those that collators turn into it, and those of custom models."""

IGNORED_LABEL = -100
"""The label that the Trainer and torch's losses leave out."""

_ATTRIBUTES = ("labels", "label", "targets", "target", "label_ids", "y")
"""Where torchvision's and custom data sets keep their labels."""


def label_columns(model: Any = None, given: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of label columns, the surest first.

    Those that are `given` (a Trainer's `label_names`), those that the model's `forward` takes as its labels
    (`start_positions` and `end_positions` in question answering), then the usual ones.

    >>> label_columns(given=["stars"])
    ('stars', 'labels', 'label', 'label_ids', 'targets', 'target')
    """
    own = () if model is None else _of_forward(model)
    return tuple(dict.fromkeys((*given, *own, *LABEL_COLUMNS)))


def label_values(dataset: Any, names: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Yield what may be the labels of a data set, each a sequence with one entry per row."""
    if hasattr(dataset, "column_names") and hasattr(dataset, "select_columns"):
        for name in names:
            if name in dataset.column_names:
                yield dataset.with_format(None).select_columns([name])[:][name]
    elif isinstance(dataset, list | tuple):
        if dataset and isinstance(dataset[0], Mapping):
            named = [name for name in names if name in dataset[0]]
            yield from ([row.get(name) if isinstance(row, Mapping) else None for row in dataset] for name in named)
    elif hasattr(dataset, "indices") and hasattr(dataset, "dataset"):  # torch's Subset
        for column in label_values(dataset.dataset, names):
            yield [column[index] for index in dataset.indices]
    elif hasattr(dataset, "datasets") and hasattr(dataset, "cumulative_sizes"):  # torch's ConcatDataset
        parts = [next(label_values(part, names), None) for part in dataset.datasets]
        if all(part is not None for part in parts):
            yield [value for part in parts if part is not None for value in part]
    else:
        found = [*reversed(getattr(dataset, "tensors", ())), *(getattr(dataset, name, None) for name in _ATTRIBUTES)]
        for one in found:
            if isinstance(one, list | tuple | torch.Tensor | np.ndarray):
                yield one  # type: ignore[misc]  # a tensor has a length and rows


def values_in(label: Any, ids: Mapping[str, int]) -> Iterator[Any]:
    """Yield the values of a label, which may have one per token or class; a name of `ids` as its number.

    >>> list(values_in([["O", "PER"], -100], {"O": 0, "PER": 1}))
    [0, 1, -100]
    """
    label = label.tolist() if hasattr(label, "tolist") else label
    if isinstance(label, list | tuple):
        for part in label:
            yield from values_in(part, ids)
    else:
        yield ids.get(label, label) if isinstance(label, str) else label


def _of_forward(model: Any) -> list[str]:
    # PEFT's forward passes everything on to the model that it wraps.
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    found: list[str] = find_labels(type(model))  # type: ignore[no-untyped-call]
    parameters = inspect.signature(type(model).forward).parameters
    # A number such as `label_smoothing=0.1`, or a flag, is not a column: a column has no default, or None.
    return [name for name in found if parameters[name].default in (inspect.Parameter.empty, None)]
