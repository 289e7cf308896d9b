"""From rows to batches: texts tokenised, padded or stacked, and the labels as numbers of classes."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from datasets import DatasetDict, IterableDatasetDict
from torch import nn
from torch.utils.data import IterableDataset

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.model_inputs.batch import make_batch
from hf_freeze.model_inputs.input_rows import Row, pick_row
from hf_freeze.model_inputs.inspected_model import InspectedModel, inspect_model
from hf_freeze.reporting.layers.class_labels import Classes, Labels, class_columns, label_column

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

    def first_row_reaches_the_model(self, row: Any) -> None:
        """Raise `FreezeError` where what the model needs is not in a row; a collator's own rows are left to it."""
        if self._collator is None:
            value = self._tokens(row)
            inputs = {k: v for k, v in value.items() if k not in self._inspected.label_names}
            make_batch(self._inspected, Row(value=inputs, origin=""))

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
        inputs = [{k: v for k, v in self._tokens(row).items() if k not in self._inspected.label_names} for row in rows]
        try:
            batch = dict(self._inspected.collate(inputs))
        except (ValueError, TypeError, RuntimeError, KeyError) as error:
            raise FreezeError(self._why_not_stacked(inputs, error)) from error
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
        return self.classes.number(_mapping(row)[label_column(_mapping(row), self._names)])

    def _tokens(self, row: Any) -> Mapping[str, Any]:
        """Return a row with token ids in place of its texts, where it has only these."""
        value: Mapping[str, Any] = _mapping(row)
        inputs = {k: v for k, v in value.items() if k not in self._inspected.label_names}
        if self._inspected.accepts & inputs.keys() or not any(isinstance(text, str) for text in inputs.values()):
            return value
        tokenised: Mapping[str, Any] = pick_row(self._inspected, inputs, dataset=None, index=None, seed=0).value
        return tokenised

    def _why_not_stacked(self, rows: Sequence[Mapping[str, Any]], error: Exception) -> str:
        tokenizer = self._inspected.tokenizer
        lengths = {name: {len(row[name]) for row in rows if hasattr(row.get(name), "__len__")} for name in rows[0]}
        uneven = [name for name in lengths if len(lengths[name]) > 1 and name in self._inspected.accepts]
        if uneven and (tokenizer is None or tokenizer.pad_token is None):
            found = f"{uneven[0]!r} has {min(lengths[uneven[0]])} to {max(lengths[uneven[0]])} values in a row"
            give = "tokenizer=, which pads them," if tokenizer is None else "the tokenizer a pad_token"
            return f"Rows of unequal length: {found}. Give {give} or collator=."
        said = str(error).splitlines()[0] if str(error) else ""
        return f"Rows with {sorted(rows[0])} cannot be made a batch: {type(error).__name__}: {said:.160}"


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise FreezeError(
            f"dataset has rows such as {row!r:.80}, a {type(row).__name__}. Give rows as dicts, {{'input_ids': [...], "
            "'label': 1}, or collator=, which makes batches of them."
        )
    return row


def _column(dataset: Any, names: Sequence[str]) -> Any:
    """Return the labels of a data set that need no reading of whole rows."""
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):
        named = [name for name in names if name in dataset.column_names]
        return dataset.with_format(None)[named[0]][:] if named else None
    rows = dataset if isinstance(dataset, list | tuple) else []
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    return [next((row[name] for name in names if row.get(name) is not None), None) for row in rows]
