"""Which row: given, by index, at random, or made from a text."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from hf_freeze.debugging.subject import IDS, Subject
from hf_freeze.errors import FreezeError

ROWS_TO_SCAN = 64


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. `untruncated`: tokens in the whole text, where that is known; `others`: some rows of its data set."""

    value: Any
    origin: str
    index: int | None = None
    seed: int | None = None
    untruncated: int | None = None
    others: tuple[Mapping[str, Any], ...] = ()
    class_names: tuple[str, ...] = ()


def pick_row(subject: Subject, sample: Any, *, dataset: Any, index: int | None, seed: int) -> Row:
    """Return the row that the caller means. Raises `FreezeError` that says what to give instead."""
    if isinstance(sample, int) and not isinstance(sample, bool):
        sample, index = None, sample
    if sample is None:
        return _from_dataset(subject, *_dataset(subject, dataset), index=index, seed=seed)
    if isinstance(sample, str) or _is_pair(sample):
        texts = {"text": sample} if isinstance(sample, str) else dict(zip(("text", "text_pair"), sample, strict=True))
        return _tokenized(subject, texts, Row(value=texts, origin="the text given"))
    if isinstance(sample, Mapping):
        if not sample:
            raise FreezeError("sample={} has no keys. Give a row of the data set, or {'text': ..., 'label': ...}.")
        row = Row(value=dict(sample), origin="the sample given")
        return _tokenized(subject, row.value, row) if _is_raw_text(row.value, subject.label_names) else row
    raise FreezeError(
        f"sample={sample!r:.80} is a {type(sample).__name__}. Give an index, a row as a dict, a text, or a pair of "
        "texts."
    )


def _is_pair(sample: Any) -> bool:
    return isinstance(sample, (tuple, list)) and len(sample) == 2 and all(isinstance(text, str) for text in sample)


def _is_raw_text(row: Any, labels: Collection[str]) -> bool:
    return isinstance(row, Mapping) and IDS not in row and any(True for _ in _texts(row, labels))


def _texts(row: Mapping[str, Any], labels: Collection[str]) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in row.items() if isinstance(value, str) and key not in labels)


def _dataset(subject: Subject, dataset: Any) -> tuple[Any, str]:
    """Return the data set and what to call it."""
    trainer = subject.trainer
    if trainer is None:
        if dataset is None or isinstance(dataset, str):
            raise FreezeError(
                f"A {type(subject.model).__name__} comes without data, and dataset={dataset!r} names none. Give "
                "dataset=the data set, or a sample: a row as a dict, or a text together with tokenizer=."
            )
        return dataset, "the data set given"
    if not isinstance(dataset, str):
        return dataset, "the data set given"
    sets = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    if isinstance(trainer.eval_dataset, Mapping) and not hasattr(trainer.eval_dataset, "column_names"):
        sets.update(trainer.eval_dataset)
        sets.update({f"eval_{name}": rows for name, rows in trainer.eval_dataset.items()})
        sets["eval"] = next(iter(trainer.eval_dataset.values()), None)
    if dataset not in sets:
        known = sorted(name for name, rows in sets.items() if rows is not None)
        raise FreezeError(f"dataset={dataset!r} is no data set of this Trainer; it has {known or 'none'}.")
    if sets[dataset] is None and dataset == "eval" and sets["train"] is not None:
        return sets["train"], "train (the Trainer has no eval set)"
    if sets[dataset] is None:
        raise FreezeError(
            f"dataset={dataset!r}: the Trainer has no {dataset}_dataset. Give dataset=the data set, or a sample."
        )
    return sets[dataset], dataset


def _from_dataset(subject: Subject, dataset: Any, name: str, *, index: int | None, seed: int) -> Row:
    if hasattr(dataset, "keys") and not hasattr(dataset, "column_names"):
        raise FreezeError(f"dataset= is a dict of {sorted(dataset.keys())}. Give one of its sets.")
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        row = Row(value=_first_of(dataset, index or 0), origin=name, index=index or 0)
    else:
        count = len(dataset)
        if count == 0:
            raise FreezeError(f"The data set ({name}) has no rows. Was everything filtered out?")
        if index is not None and not -count <= index < count:
            raise FreezeError(
                f"index={index} is out of range: the data set ({name}) has {count} rows, 0 to {count - 1}."
            )
        drawn = random.Random(seed).randrange(count) if index is None else index % count
        row = Row(
            value=dataset[drawn],
            origin=f"{name}, {count:,} rows",
            index=drawn,
            seed=seed if index is None else None,
            others=tuple(_some_rows(dataset, subject.label_names)),
            class_names=_class_names(dataset, subject.label_names),
        )
    if subject.trainer is None and _is_raw_text(row.value, subject.label_names):
        return _tokenized(subject, row.value, row)
    return row


def _first_of(dataset: Any, index: int) -> Any:
    if not isinstance(dataset, Iterable):
        raise FreezeError(
            f"dataset={type(dataset).__name__} has neither rows by index nor an iterator. Give a datasets.Dataset, a "
            "torch data set, a list of rows or an iterable data set."
        )
    iterator = iter(dataset)
    if iterator is dataset:
        raise FreezeError(
            f"dataset={type(dataset).__name__} is an iterator, which would lose the row that is looked at. Give the "
            "data "
            "set itself, or the row as a sample."
        )
    for row in islice(iterator, index, index + 1):
        return row
    raise FreezeError(f"The iterable data set ended before row {index}: it has no such row.")


def _some_rows(dataset: Any, labels: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """Return rows spread over a data set that is cheap to read: token ids and labels alone."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None and hasattr(dataset, "select_columns"):
        dataset = dataset.select_columns([name for name in columns if name == IDS or name in labels])
    elif not isinstance(dataset, (list, tuple)):
        return
    step = max(len(dataset) // ROWS_TO_SCAN, 1)
    for index in range(0, min(len(dataset), step * ROWS_TO_SCAN), step):
        if isinstance(row := dataset[index], Mapping):
            yield {key: value for key, value in row.items() if key == IDS or key in labels}


def _class_names(dataset: Any, labels: Collection[str]) -> tuple[str, ...]:
    features = getattr(dataset, "features", None) or {}
    for name in labels:
        if hasattr(features.get(name), "names"):
            return tuple(features[name].names)
    return ()


def _tokenized(subject: Subject, value: Mapping[str, Any], row: Row) -> Row:
    """Turn the texts of a row into token ids."""
    tokenizer = subject.tokenizer
    given = dict(_texts(value, subject.label_names))
    if tokenizer is None:
        raise FreezeError(
            f"A text was given ({next(iter(given.values()))!r:.60}), and no tokenizer was found to read it with. Give "
            "tokenizer=, or a row of token ids."
        )
    named = [given[name] for name in ("text", "text_pair") if name in given]
    texts = named if "text" in given else list(given.values())[:2]
    limit = _limit(subject)
    whole = len(tokenizer(*texts, verbose=False)[IDS])
    encoded = dict(tokenizer(*texts, truncation=limit is not None, max_length=limit))
    rest = {key: item for key, item in value.items() if not isinstance(item, str) or key in subject.label_names}
    rest = {key: _label_id(subject, item) if key in subject.label_names else item for key, item in rest.items()}
    return Row(**{**vars(row), "value": {**rest, **encoded}, "untruncated": whole})


def _label_id(subject: Subject, label: Any) -> Any:
    """Return the id of a label that was given by its name."""
    known = {str(name): int(i) for name, i in (getattr(subject.config, "label2id", None) or {}).items()}
    return known.get(label, label) if isinstance(label, str) else label


def _limit(subject: Subject) -> int | None:
    """Return how many tokens fit: as the tokenizer was last told, as it was built, and as the model has positions."""
    backend = getattr(subject.tokenizer, "backend_tokenizer", None)
    truncation = getattr(backend, "truncation", None) or {}
    limits = [truncation.get("max_length"), getattr(subject.tokenizer, "model_max_length", None), positions(subject)]
    found = [limit for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(found) if found else None


def positions(subject: Subject) -> int | None:
    """Return the number of positions that the model has, where they are learned and so cannot be exceeded."""
    config = getattr(subject.config, "get_text_config", lambda: subject.config)()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Embedding) and limit <= module.num_embeddings <= limit + 2:
            offset = (module.padding_idx or -1) + 1 if module.num_embeddings == limit else 0
            if module is not subject.input_embedding:
                return limit - offset
    return None


def length_of(row: Any) -> int | None:
    """Return the number of token ids in a row, padding included."""
    ids: Any = row.get(IDS) if isinstance(row, Mapping) else None
    return len(ids) if isinstance(ids, Sequence) or getattr(ids, "ndim", 0) == 1 else None
