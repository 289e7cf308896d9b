"""Count the rows of each class: read from the column of labels, and checked against what reaches the model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hf_freeze.errors import PlanError
from hf_freeze.label_columns import IGNORED_LABEL, label_values, values_in

_ROWS_HELD = 8
"""In how many rows a column of labels must agree with what the collator makes."""


def count_classes(
    dataset: Any, names: Sequence[str], *, ids: Mapping[str, int], collate: Callable[[list[Any]], Any]
) -> dict[int, int]:
    """Count the rows of each class, all rows, -100 left out; of labels per token, the tokens.

    A column counts only if it says of a few rows what `collate` makes of them; else every row is made. `ids` are the
    numbers of labels that are given by name.

    Raises:
        PlanError: For a data set without a length, without labels, or with labels that are not whole numbers.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise PlanError(
            f'class_weights="balanced" counts the labels of train_dataset, and {type(dataset).__name__} has no rows by '
            "number. Give the weights as a list or by name."
        )

    def label_at(row: int) -> list[Any]:
        batch = collate([dataset[row]])
        if not isinstance(batch, Mapping) or batch.get("labels") is None:
            raise PlanError(
                'class_weights="balanced" counts labels, and the batches of train_dataset have none under "labels". '
                "Give the weights as a list or by name."
            )
        return _kept(batch["labels"], ids)

    rows = range(0, len(dataset), max(len(dataset) // _ROWS_HELD, 1))
    made = {row: label_at(row) for row in rows}
    for column in label_values(dataset, names):
        if len(column) == len(dataset) and all(_kept(column[row], ids) == made[row] for row in rows):
            return _whole(Counter(value for entry in column for value in _kept(entry, ids)))
    return _whole(Counter(value for row in range(len(dataset)) for value in label_at(row)))


def _kept(label: Any, ids: Mapping[str, int]) -> list[Any]:
    """Return the values of a label that enter the loss; names as their numbers."""
    return [value for value in values_in(label, ids) if value != IGNORED_LABEL]


def _whole(counts: Counter[Any]) -> dict[int, int]:
    odd = next((value for value in counts if not isinstance(value, int | float) or value != int(value)), None)
    if odd is not None:
        raise PlanError(
            f'class_weights="balanced" counts classes, and train_dataset has the label {odd!r}, which is not a '
            "class id. Give the weights as a list or by name."
        )
    whole: Counter[int] = Counter()
    for value, count in counts.items():
        whole[int(value)] += count
    return dict(whole)
