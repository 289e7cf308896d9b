"""Pick a row: the one given, by index, at random, or made from a text."""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from hf_freeze.errors import FreezeError
from hf_freeze.model_inputs.inspected_model import IDS, InspectedModel

_ROWS_TO_SCAN = 64


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
    dataset: Any = None


def pick_row(inspected: InspectedModel, sample: Any, *, dataset: Any, index: int | None, seed: int) -> Row:
    """Return the row that the caller means. Raises `FreezeError` that says what to give instead."""
    if isinstance(sample, int) and not isinstance(sample, bool):
        sample, index = None, sample
    if sample is None:
        return _from_dataset(inspected, *_dataset(inspected, dataset), index=index, seed=seed)
    if isinstance(sample, str) or _is_pair(sample):
        texts = {"text": sample} if isinstance(sample, str) else dict(zip(("text", "text_pair"), sample, strict=True))
        return _tokenized(inspected, texts, Row(value=texts, origin="the text given"))
    if isinstance(sample, Mapping):
        if not sample:
            raise FreezeError("sample={} has no keys. Give a row of the data set, or {'text': ..., 'label': ...}.")
        row = Row(value=dict(sample), origin="the sample given")
        return _tokenized(inspected, row.value, row) if _is_raw_text(row.value, inspected.label_names) else row
    raise FreezeError(
        f"sample={sample!r:.80} is a {type(sample).__name__}. Give an index, a row as a dict, a text, or a pair of "
        "texts."
    )


def _is_pair(sample: Any) -> bool:
    return isinstance(sample, tuple | list) and len(sample) == 2 and all(isinstance(text, str) for text in sample)


def _is_raw_text(row: Any, labels: Collection[str]) -> bool:
    return isinstance(row, Mapping) and IDS not in row and any(True for _ in _texts(row, labels))


def _texts(row: Mapping[str, Any], labels: Collection[str]) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in row.items() if isinstance(value, str) and key not in labels)


def _dataset(inspected: InspectedModel, dataset: Any) -> tuple[Any, str]:
    """Return the data set and what to call it."""
    trainer = inspected.trainer
    if trainer is None:
        if dataset is None or isinstance(dataset, str):
            raise FreezeError(
                f"A {type(inspected.model).__name__} has no data of its own, and dataset={dataset!r} names none. Give "
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
        raise FreezeError(f"dataset={dataset!r} is not a data set of this Trainer; it has {known or 'none'}.")
    if sets[dataset] is None and dataset == "eval" and sets["train"] is not None:
        return sets["train"], "train (the Trainer has no eval set)"
    if sets[dataset] is None:
        raise FreezeError(
            f"dataset={dataset!r}: the Trainer has no {dataset}_dataset. Give dataset=the data set, or a sample."
        )
    return sets[dataset], dataset


def every_dataset(inspected: InspectedModel, dataset: Any) -> list[tuple[Any, str]]:
    """Return the data set that is meant, and those that the Trainer trains and evaluates on, each with its name."""
    found: list[tuple[Any, str]] = []
    if dataset is not None and not isinstance(dataset, str):
        found.append((dataset, "the data set given"))
    evaluated = getattr(inspected.trainer, "eval_dataset", None)
    sets = {"train": getattr(inspected.trainer, "train_dataset", None), "eval": evaluated}
    if isinstance(evaluated, Mapping) and not hasattr(evaluated, "column_names"):
        sets = {"train": sets["train"], **evaluated}
    found += [(rows, name) for name, rows in sets.items() if rows is not None]
    return [one for i, one in enumerate(found) if all(one[0] is not other[0] for other in found[:i])]


def row_at(inspected: InspectedModel, dataset: Any, index: int) -> Row:
    """Return a row by its index; texts are tokenized as for `pick_row`."""
    return _from_dataset(inspected, dataset, "", index=index, seed=0)


def _from_dataset(inspected: InspectedModel, dataset: Any, name: str, *, index: int | None, seed: int) -> Row:
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
            others=tuple(_some_rows(dataset)),
            class_names=_class_names(dataset, inspected.label_names),
            dataset=dataset,
        )
    if inspected.trainer is None and _is_raw_text(row.value, inspected.label_names):
        return _tokenized(inspected, row.value, row)
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
            "data set itself, or the row as a sample."
        )
    for row in islice(iterator, index, index + 1):
        return row
    raise FreezeError(f"The iterable data set ended before row {index}: it has no such row.")


def _some_rows(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Return the token ids of rows spread over a data set, where they lie ready to be read."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None and hasattr(dataset, "select_columns"):
        dataset = dataset.with_format(None).select_columns([name for name in columns if name == IDS])
    elif not isinstance(dataset, list | tuple):
        return
    step = max(len(dataset) // _ROWS_TO_SCAN, 1)
    for index in range(0, min(len(dataset), step * _ROWS_TO_SCAN), step):
        if isinstance(row := dataset[index], Mapping):
            yield {key: value for key, value in row.items() if key == IDS}


def _class_names(dataset: Any, labels: Collection[str]) -> tuple[str, ...]:
    features = getattr(dataset, "features", None) or {}
    for name in labels:
        if hasattr(features.get(name), "names"):
            return tuple(features[name].names)
    return ()


def _tokenized(inspected: InspectedModel, value: Mapping[str, Any], row: Row) -> Row:
    """Turn the texts of a row into token ids."""
    tokenizer = inspected.tokenizer
    given = dict(_texts(value, inspected.label_names))
    if tokenizer is None:
        raise FreezeError(
            f"A text was given ({next(iter(given.values()))!r:.60}), and no tokenizer was found to read it with. Give "
            "tokenizer=, or a row of token ids."
        )
    named = [given[name] for name in ("text", "text_pair") if name in given]
    texts = named if "text" in given else list(given.values())[:2]
    limit = _limit(inspected)
    whole = len(tokenizer(*texts, verbose=False)[IDS])
    encoded = dict(tokenizer(*texts, truncation=limit is not None, max_length=limit))
    rest = {key: item for key, item in value.items() if not isinstance(item, str) or key in inspected.label_names}
    rest = {key: _label_id(inspected, item) if key in inspected.label_names else item for key, item in rest.items()}
    return Row(**{**vars(row), "value": {**rest, **encoded}, "untruncated": whole})


def _label_id(inspected: InspectedModel, label: Any) -> Any:
    """Return the id of a label that was given by its name."""
    known = {str(name): int(i) for name, i in (getattr(inspected.config, "label2id", None) or {}).items()}
    return known.get(label, label) if isinstance(label, str) else label


def _limit(inspected: InspectedModel) -> int | None:
    """Return how many tokens fit: as the tokenizer was last set, as it was built, and as the model has positions."""
    backend = getattr(inspected.tokenizer, "backend_tokenizer", None)
    truncation = getattr(backend, "truncation", None) or {}
    limits = [
        truncation.get("max_length"),
        getattr(inspected.tokenizer, "model_max_length", None),
        positions(inspected),
    ]
    found = [limit for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(found) if found else None


def positions(inspected: InspectedModel) -> int | None:
    """Return the number of positions that the model has, where they are learned and so cannot be exceeded."""
    config = getattr(inspected.config, "get_text_config", lambda: inspected.config)()
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    for module in inspected.model.modules():
        if isinstance(module, torch.nn.Embedding) and limit <= module.num_embeddings <= limit + 2:
            offset = (module.padding_idx or -1) + 1 if module.num_embeddings == limit else 0
            if module is not inspected.input_embedding:
                return limit - offset
    return None


def length_of(row: Any) -> int | None:
    """Return the number of token ids in a row, padding included."""
    ids: Any = row.get(IDS) if isinstance(row, Mapping) else None
    return len(ids) if isinstance(ids, Sequence) or getattr(ids, "ndim", 0) == 1 else None
