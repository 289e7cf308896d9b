"""Texts with labels from a file, split into training, validation and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison.text_files import read_columns

_HELD_OUT = 0.15


def load_texts(file: str, *, text: str, label: str, rows: int | None, seed: int = 0) -> DatasetDict:
    """Read a csv, tsv, json, jsonl or parquet file, packed (.gz) or not; return `train`, `validation` and `test`.

    The columns `text` and `label` are renamed so; of rows that share a text the first is kept, and of those `rows` at
    random. Rows without a text or a label are left out. Raises `FreezeError` for what cannot be read so, for a column
    of something else than texts, for labels that are not two, and for too few rows to have both in every part.
    """
    data = read_columns(Path(file), text=text, label=label)
    data = _distinct(data.filter(lambda row: row["text"] not in (None, "") and row["label"] not in (None, "")))
    if not len(data):
        raise FreezeError(f"No row has both a text, in {text!r}, and a label, in {label!r}.")
    data = data.shuffle(seed=seed).select(range(len(data) if rows is None else min(rows, len(data))))
    if not isinstance(data.features["label"], ClassLabel):
        data = data.class_encode_column("label")
    names = data.features["label"].names
    if len(names) != 2:
        count = f"{len(names)} value{'s' * (len(names) != 1)} in {len(data)} different texts"
        raise FreezeError(f"The column {label!r} has {count}, {names[:6]}; a comparison needs two.")
    try:
        return _split(data, seed)
    except ValueError as error:
        raise FreezeError(
            f"{_counted(data, names)}: too few to have both labels in a training, a validation and a "
            f"test set ({error}). Give more rows."
        ) from error


def _distinct(data: Dataset) -> Dataset:
    first: dict[str, int] = {}
    for index, text in enumerate(data["text"]):
        first.setdefault(text, index)
    return data.select(sorted(first.values()))


def _counted(data: Dataset, names: Sequence[str]) -> str:
    counts = Counter(data["label"])
    return f"{len(data)} rows, {', '.join(f'{counts[index]} of them {name!r}' for index, name in enumerate(names))}"


def _split(data: Dataset, seed: int) -> DatasetDict:
    """Split by label. Raises `ValueError` where that leaves a part without one of the labels."""
    parts = DatasetDict(train=data)
    for part, share in (("test", _HELD_OUT), ("validation", _HELD_OUT / (1 - _HELD_OUT))):
        both = parts["train"].train_test_split(share, seed=seed, stratify_by_column="label")
        parts["train"], parts[part] = both["train"], both["test"]
    if poor := [part for part, rows in parts.items() if len(set(rows["label"])) < 2]:
        raise ValueError(f"the part {poor[0]!r} has one label only")
    return parts
