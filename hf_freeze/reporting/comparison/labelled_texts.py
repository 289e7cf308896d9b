"""Two columns of a file, texts and labels, split into training, validation and test."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from pyarrow import csv

from hf_freeze.errors import FreezeError

_HELD_OUT = 0.15


def load_texts(file: str, *, text: str, label: str, rows: int | None, seed: int = 0) -> DatasetDict:
    """Read a csv, tsv, json, jsonl or parquet file, packed (.gz) or not; return `train`, `validation` and `test`.

    The columns `text` and `label` are renamed so; of rows that share a text the first is kept, and of those `rows` at
    random. Rows without a text or a label are left out. Raises `FreezeError` for what cannot be read so, for a column
    of something else than texts, for labels that are not two, and for too few rows to have both in every part.
    """
    data = _read_columns(Path(file), text=text, label=label)
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


_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BUILDERS = {"json": "json", "jsonl": "json", "parquet": "parquet"}
_LARGEST_ROW = 1 << 24  # bytes


def _read_columns(path: Path, *, text: str, label: str) -> Dataset:
    """Return the two columns, named `text` and `label`.

    In a csv or tsv file both are what is written: "None", "NA", "0012" are neither missing values nor numbers. Raises
    `FreezeError` for a file that cannot be read, a column that is missing, and one without texts or labels.
    """
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix not in {*_DELIMITERS, *_BUILDERS} or not path.is_file():
        raise FreezeError(f"{str(path)!r} is not a file that ends in one of {', '.join([*_DELIMITERS, *_BUILDERS])}.")
    try:
        data = _read_csv(path, _DELIMITERS[suffix], (text, label)) if suffix in _DELIMITERS else _load(path, suffix)
    except FreezeError:
        raise
    except Exception as error:  # readers of files raise what they like
        cause = error.__cause__ or error
        raise FreezeError(f"{str(path)!r} cannot be read as {suffix}: {type(cause).__name__}: {cause}") from error
    _check_columns(path, data.column_names, (text, label))
    data = data.select_columns([text, label])
    data = data.rename_columns({old: new for old, new in ((text, "text"), (label, "label")) if old != new})
    return _checked(data, path, text=text, label=label)


def _read_csv(path: Path, delimiter: str, columns: Sequence[str]) -> Dataset:
    reading: dict[str, Any] = {
        "read_options": csv.ReadOptions(block_size=_LARGEST_ROW),
        "parse_options": csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    }
    with csv.open_csv(path, **reading) as file:
        _check_columns(path, file.schema.names, columns)
    return Dataset(csv.read_csv(path, **reading, convert_options=_as_written(columns)))


def _as_written(columns: Sequence[str]) -> csv.ConvertOptions:
    return csv.ConvertOptions(
        include_columns=list(dict.fromkeys(columns)),
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=False,
    )


def _load(path: Path, suffix: str) -> Dataset:
    return load_dataset(_BUILDERS[suffix], data_files=str(path), split="train")


def _check_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise FreezeError(
            f"{str(path)!r} has no column {missing[0]!r}; it has {list(found)}. Name yours with --text_column and "
            "--label_column."
        )


def _checked(data: Dataset, path: Path, *, text: str, label: str) -> Dataset:
    if not len(data):
        raise FreezeError(f"{str(path)!r} has no rows.")
    texts, labels = data.features["text"], data.features["label"]
    if getattr(texts, "dtype", None) not in ("string", "large_string"):
        raise FreezeError(f"The column {text!r} of {str(path)!r} has no texts, but {texts}. Name yours: --text_column.")
    if not isinstance(labels, Value | ClassLabel):
        raise FreezeError(f"The column {label!r} of {str(path)!r} has no single labels, but {labels}.")
    return data
