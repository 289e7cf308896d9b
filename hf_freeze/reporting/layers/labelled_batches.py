"""From rows to batches: texts tokenised, padded or stacked, and the labels as numbers of classes."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from datasets import DatasetDict, IterableDatasetDict
from torch import nn
from torch.utils.data import IterableDataset

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.model_inputs.inspected_model import InspectedModel, inspect_model
from hf_freeze.reporting.layers.class_labels import Classes, Labels, class_columns, label_column
from hf_freeze.reporting.layers.row_batches import as_mapping, inputs_of, refuse_unread, stacked

CLASSES = "labels"
"""The key under which a batch carries the numbers of its rows' classes."""


def refuse_unfit_dataset(dataset: Any) -> None:
    """Raise `FreezeError` for anything but a data set of rows by number, and for one without rows."""
    if isinstance(dataset, DatasetDict | IterableDatasetDict | Mapping):
        raise FreezeError(f"dataset is a dict of {sorted(map(str, dataset))}. Give one of its sets: dataset['train'].")
    numbered = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not numbered or isinstance(dataset, str):
        raise UnsupportedSetupError(
            f"dataset={dataset!r:.80} has no rows by number, and an iterable data set has none: give a "
            "datasets.Dataset, a list of rows, or a torch data set with a length."
        )
    if not len(dataset):
        raise FreezeError("dataset has no rows. Was everything filtered out?")


class LabelledBatches:
    """Makes batches of rows: what the model takes, and `CLASSES`.

    `collator` gets rows as they are, with a number for a label that is a text; by default texts are tokenised, rows
    are padded by `tokenizer`, or stacked without one, and the label is taken from the row.
    """

    def __init__(
        self, model: nn.Module, collator: Callable[[list[Any]], Mapping[str, Any]] | None, tokenizer: Any
    ) -> None:
        self.classes = Classes()
        self._collator = collator
        self._inspected: InspectedModel = inspect_model(model, tokenizer=tokenizer, collator=None, threshold=None)
        self._names = class_columns(self._inspected.label_names)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return a batch. Raises `FreezeError` where rows cannot be one, or hold no class."""
        batch = self._stacked(rows) if self._collator is None else self._collated(rows)
        if batch[CLASSES] is None:
            batch[CLASSES] = [self._class_in(row) for row in rows]
        return {**batch, CLASSES: torch.tensor(batch[CLASSES], dtype=torch.long)}

    def refuse_unread(self, row: Any) -> None:
        """Raise `FreezeError` where what the model needs is not in a row; a collator's own rows are left to it."""
        if self._collator is None:
            refuse_unread(self._inspected, row)

    def to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to where the model is; the classes stay."""
        return {**self._inspected.place(batch), CLASSES: batch[CLASSES]}

    def labels_ahead(self, dataset: Any, rows: Sequence[int], sample: Sequence[int], batch: Any) -> Labels | None:
        """Return the classes of `rows` where they can be read without the rest of the rows, else None.

        `batch`, made of the rows `sample`, tells whether the column is what the batches will hold: transforms and
        collators may make labels of their own.
        """
        column, classes = _column(dataset, self._names), deepcopy(self.classes)
        try:
            if column is None or [classes.number(column[row]) for row in sample] != batch[CLASSES].tolist():
                return None
        except UnsupportedSetupError:
            return None
        return classes.named([classes.number(column[row]) for row in rows])

    def _stacked(self, rows: Sequence[Any]) -> dict[str, Any]:
        classes = [self._class_in(row) for row in rows]
        batch = stacked(self._inspected, [inputs_of(self._inspected, row) for row in rows])
        return {**batch, CLASSES: classes}

    def _collated(self, rows: Sequence[Any]) -> dict[str, Any]:
        assert self._collator is not None
        given = [self._with_numbers(row) for row in rows]
        batch = dict(self._collator(given))
        named = [name for name in self._names if batch.get(name) is not None]
        if not named and not all(isinstance(row, Mapping) for row in rows):
            raise FreezeError(f"A batch holds {sorted(batch)}, and no labels to learn: name them 'labels'.")
        found = batch[named[0]] if named else None
        given_numbers = any(one is not row for one, row in zip(given, rows, strict=True))
        return {
            **{name: value for name, value in batch.items() if name not in self._inspected.label_names},
            CLASSES: None if found is None else list(map(int if given_numbers else self.classes.number, found)),
        }

    def _with_numbers(self, row: Any) -> Any:
        texts = {k: row[k] for k in self._names if isinstance(row.get(k), str)} if isinstance(row, Mapping) else {}
        return {**row, **{name: self.classes.number(text) for name, text in texts.items()}} if texts else row

    def _class_in(self, row: Any) -> int:
        return self.classes.number(as_mapping(row)[label_column(as_mapping(row), self._names)])


def _column(dataset: Any, names: Sequence[str]) -> Any:
    """Return the labels of a data set that need no reading of whole rows."""
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):
        named = [name for name in names if name in dataset.column_names]
        return dataset.with_format(None)[named[0]][:] if named else None
    rows = dataset if isinstance(dataset, list | tuple) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    return [next((row[name] for name in names if row.get(name) is not None), None) for row in rows]
