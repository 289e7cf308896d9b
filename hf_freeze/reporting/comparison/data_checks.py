"""Checks of the rows of a comparison before any training: there are some, they are labelled, and the model runs."""

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import set_seed

from hf_freeze.binary.labelled_rows import PositiveLabel, binary_labels, read_rows
from hf_freeze.binary.margin import as_numpy
from hf_freeze.errors import FreezeError, UnsupportedSetupError, in_one_line
from hf_freeze.features.batches import ROWS
from hf_freeze.label_columns import label_columns
from hf_freeze.no_trace import random_states_kept, untouched
from hf_freeze.reporting.comparison.task import ComparedTrainer, Task
from hf_freeze.reporting.preview.rates import steps_per_epoch


def check_sets(sets: Mapping[str, Any]) -> None:
    """Raise `FreezeError` for no rows, `UnsupportedSetupError` for several sets in one and for rows without numbers."""
    for name, rows in sets.items():
        given = f"{name}_dataset"
        if rows is None:
            raise FreezeError(f"{given}=None: compare trains and evaluates, so it needs rows for both.")
        if isinstance(rows, Mapping):
            raise UnsupportedSetupError(
                f"{given} is a mapping of {sorted(map(str, rows))}; compare judges one set. Give one of them."
            )
        numbered = hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
        if isinstance(rows, IterableDataset | datasets.IterableDataset) or not numbered:
            raise UnsupportedSetupError(
                f"{given} is a {type(rows).__name__}, an iterable set, but compare reads rows by number. Give a list, "
                "a datasets.Dataset, or a torch Dataset with __len__ and __getitem__."
            )
        if not len(rows):
            raise FreezeError(f"{given} has no rows. Was everything filtered out?")


def check_rows(trainer: ComparedTrainer, task: Task, loaders: Mapping[str, DataLoader[Any]]) -> None:
    """Raise `FreezeError` for whatever would make a run fail or make it worthless.

    A loader that drops all rows, a run of no steps, labels that are not of two classes or only of one of them, and
    rows that the model cannot take.
    """
    args = task.args
    for name, loader in loaders.items():
        if not len(loader):
            size = args.train_batch_size if name == "train" else args.eval_batch_size
            raise FreezeError(
                f"{name}_dataset: its {len(task.sets[name])} rows do not fill one batch of {size}, and "
                "dataloader_drop_last leaves such a batch out. Take smaller batches, or dataloader_drop_last=False."
            )
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * steps_per_epoch(args, len(task.train_dataset)))
    if steps < 1:
        raise FreezeError(
            f"num_train_epochs={args.num_train_epochs} and max_steps={args.max_steps} make a run of {steps} "
            "steps: nothing would be trained. Give at least one step."
        )
    positive = PositiveLabel(task.positive).with_names_from(getattr(trainer.model, "config", None)).id
    for name, loader in loaders.items():
        _check_set(name, trainer, task.sets[name], loader, positive)


def _check_set(name: str, trainer: ComparedTrainer, rows: Any, loader: DataLoader[Any], positive: int) -> None:
    batch = collated(loader)
    sampled = next((batch[key] for key in trainer.label_names if batch.get(key) is not None), None)
    if sampled is None:
        raise FreezeError(
            f"{name}_dataset: no labels reach the model, of which compare needs {trainer.label_names}; the batch has "
            f"{sorted(batch)}. Rename the column, or name it in label_names."
        )
    labels = _all_labels(rows, trainer.label_names, sampled)
    try:
        is_positive, counted = binary_labels(labels, positive=positive)
    except FreezeError as error:
        raise FreezeError(f"{name}_dataset: {error}") from error
    classes = set(is_positive[counted].tolist())
    if len(classes) < 2 and len(counted) == len(rows):
        found = "labelled -100" if not classes else "positive" if True in classes else "negative"
        raise FreezeError(f"{name}_dataset: all {len(rows)} rows are {found}. Both classes must occur in it.")
    _check_outputs(name, trainer, batch, positive)


def _all_labels(rows: Any, names: list[str], sampled: Any) -> Any:
    """Return the labels of all rows; only those that were sampled, where transforms or the collator make new ones."""
    column = _column(rows, label_columns(given=names))
    if column is None:
        return as_numpy(sampled)
    same = as_numpy(sampled)
    raw = np.asarray([column[number] for number in _row_numbers(len(rows))])
    return np.asarray(column) if raw.shape == same.shape and (raw == same).all() else same


def _column(rows: Any, names: tuple[str, ...]) -> list[Any] | None:
    if isinstance(rows, datasets.Dataset):
        name = next((name for name in names if name in rows.column_names), None)
        return None if name is None else list(rows.with_format(None)[name])
    first = rows[0]
    name = next((name for name in names if isinstance(first, Mapping) and name in first), None)
    if name is None:
        return None
    with random_states_kept():
        values = [rows[number][name] for number in range(len(rows))]
    return [value.tolist() if hasattr(value, "tolist") else value for value in values]


def _check_outputs(name: str, trainer: ComparedTrainer, batch: dict[str, Any], positive: int) -> None:
    """Evaluate a few rows, as the run will."""
    try:
        with untouched(trainer.model):
            trainer.model.eval()
            loss, logits, labels = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
    except Exception as error:
        raise FreezeError(f"{_rejected(name, batch)}: {in_one_line(error)}") from error
    if loss is None:
        raise FreezeError(f"{_rejected(name, batch)}: it returns no loss.")
    try:
        read_rows(logits, labels, positive=positive)
    except FreezeError as error:
        raise FreezeError(f"{_rejected(name, batch)}: {error}") from error


def _rejected(name: str, batch: Mapping[str, Any]) -> str:
    shapes = [
        f"{key} ({str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)})"
        for key, value in batch.items()
        if isinstance(value, torch.Tensor)
    ]
    return f"{name}_dataset: the model cannot be trained on a batch of {', '.join(shapes)}"


_ROWS = 8


def _row_numbers(count: int) -> list[int]:
    """Return the numbers of a few rows, spread over all of them."""
    few = min(_ROWS, count)
    return [index * (count - 1) // max(few - 1, 1) for index in range(few)]


def collated(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return a few rows as one batch, what is random about them drawn by one seed."""
    rows: Any = loader.dataset
    numbers = _row_numbers(len(rows))
    with random_states_kept():
        set_seed(0)
        drawn = rows.__getitems__(numbers) if hasattr(rows, "__getitems__") else [rows[number] for number in numbers]
        batch = dict(loader.collate_fn(drawn))
    batch.pop(ROWS, None)
    return batch
