"""A few rows of a data set as the model gets them: drawn by number, transformed and collated."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from hf_freeze.features.batches import ROWS
from hf_freeze.features.untouched import random_states_kept, seed_all

_ROWS = 8


def row_numbers(count: int) -> list[int]:
    """Return the numbers of a few rows, spread over all of them."""
    few = min(_ROWS, count)
    return [index * (count - 1) // max(few - 1, 1) for index in range(few)]


def collated(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return a few rows as one batch, what is random about them drawn by one seed."""
    rows: Any = loader.dataset
    numbers = row_numbers(len(rows))
    with random_states_kept():
        seed_all(0)
        drawn = rows.__getitems__(numbers) if hasattr(rows, "__getitems__") else [rows[number] for number in numbers]
        batch = dict(loader.collate_fn(drawn))
    batch.pop(ROWS, None)
    return batch
