"""Read a column of texts and one of labels from a file, as they are written there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Value, load_dataset
from pyarrow import csv

from hf_freeze.errors import FreezeError

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_BUILDERS = {"json": "json", "jsonl": "json", "parquet": "parquet"}
_LARGEST_ROW = 1 << 24  # bytes


def read_columns(path: Path, *, text: str, label: str) -> Dataset:
    """Return the two columns, named `text` and `label`.

    In a csv or tsv file both are what is written: "None", "NA", "0012" are no missing values and no numbers. Raises
    `FreezeError` for a file that cannot be read, a column that is not there, and texts that are none.
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
