"""`extract_features`: what a frozen prefix computes, as a data set, without any Trainer."""

import re
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from hf_freeze.errors import FreezeError
from hf_freeze.features.answers import Frontier
from hf_freeze.features.batches import Digesting, Source
from hf_freeze.features.check import check_still, reads_labels
from hf_freeze.features.extraction import Work, extract
from hf_freeze.features.fingerprint import fingerprint, short
from hf_freeze.features.frontier import find_frontier
from hf_freeze.features.ranks import Ranks
from hf_freeze.features.sets import FeatureSet, read_rows
from hf_freeze.features.store import KEY_COLUMNS, FeatureStore
from hf_freeze.model_inputs.inspected_model import InspectedModel, inspect_model
from hf_freeze.no_trace import random_states_kept, untouched
from hf_freeze.plan.trainable import all_but
from hf_freeze.selection.cuts import cut_at
from hf_freeze.selection.language import Selection
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.training.freezing import trainable_for_now


def extract_features(
    model: nn.Module,
    dataset: Any,
    selection: Selection = "backbone",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    collator: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 32,
    folder: str | Path | None = None,
    show_progress: bool = False,
) -> datasets.Dataset:
    """Compute what `selection`, taken as frozen, hands to the rest of the model: one pass, in eval mode.

    The model is left as it was.

    Args:
        model: The loaded model.
        dataset: A map-style data set of the model's inputs, row by row; other columns are left out.
        selection: What to take as frozen. "all" gives the model's own outputs.
        tokenizer: Pads the rows; without it they are stacked.
        collator: Makes batches instead.
        batch_size: Rows per pass, at least 2.
        folder: Where to keep the features in memory-mapped files, which another call with the same weights and rows
            reuses. By default they lie in memory.
        show_progress: Show a progress bar.

    Returns:
        A data set in the order of the rows: the column `features`, or one column per tensor, named by its place, and
        the labels. Per row it has a vector, or a list of vectors, one per position that is not padding; tensors of more
        dimensions are flattened.

    Raises:
        SelectionError: For a selection that matches nothing.
        UnsupportedSetupError: Where the selection is not a prefix of the model, or its outputs are not one per row, are
            random, or depend on the other rows of a batch.
        FreezeError: For a data set without rows.
    """
    model = unwrap(model)
    if not len(dataset):
        raise FreezeError("dataset has no rows.")
    inspected = inspect_model(model, tokenizer=tokenizer, collator=collator, threshold=None)
    labels = inspected.label_names
    keeps = all_but(selection, words := cut_at(map_model(model), [selection]))
    source = _source(inspected, dataset, _collator(inspected, tokenizer, collator))
    with ExitStack() as stack:
        stack.enter_context(trainable_for_now(model, words.every_alias(keeps)))
        if not keeps:
            model = _Around(model)
        feature_set = FeatureSet(
            "given", source, _roots(model), _forward(model), False, inspected.device, max(batch_size, 2), labels
        )
        stack.enter_context(untouched(model))
        stack.enter_context(random_states_kept(dataset, collator))
        model.eval()
        root = folder if folder is not None else stack.enter_context(tempfile.TemporaryDirectory())
        work = _computed(model, feature_set, Path(root), batch_size=batch_size, show_progress=show_progress)
        return _as_dataset(work, dataset, labels, in_memory=folder is None)


def _computed(model: nn.Module, feature_set: FeatureSet, root: Path, **how: Any) -> Work:
    """Make one pass over the rows that a store below `root` lacks, and return the store, filled."""
    frontier = find_frontier(model, feature_set.probes, feature_set.roots)
    reading = read_rows(feature_set, Ranks())
    forward, probes = feature_set.forward, feature_set.probes
    still = check_still(model, frontier, forward, batches=probes, shared=feature_set.shared)
    read = reads_labels(model, frontier, forward, batch=probes[0], labels=feature_set.labels, captured=still)
    keys = reading.keys(with_labels=read)
    dtype = torch.float32 if _has_bfloat16(frontier) else None
    parts = fingerprint(model, frontier, form={"dtype": str(dtype), "labels": read})
    store = FeatureStore(root / short(parts), parts)
    with store.locked():
        work = Work(frontier, store, keys, read, dtype, store.missing(keys), store.next_part)
        extract(model, feature_set.source, [work], forward, lengths=reading.lengths, **how)
    return work


class _Around(nn.Module):
    """A model of which all is taken as frozen, with the rest of the world around it."""

    FIELD = "model"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def _source(inspected: InspectedModel, dataset: Any, collate: Callable[[list[Any]], Any]) -> Source:
    accepts, labels = inspected.accepts, inspected.label_names
    open_ended = inspected.takes_anything and len(accepts) == 1
    if isinstance(dataset, datasets.Dataset) and not open_ended:
        dataset = dataset.select_columns([name for name in dataset.column_names if name in {*accepts, *labels}])

    def prepare(inputs: dict[str, Any]) -> dict[str, Any]:
        return inspected.place({name: value for name, value in inputs.items() if open_ended or name in accepts})

    return Source(dataset, Digesting(collate, labels), prepare)


def _collator(
    inspected: InspectedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    given: Callable[[list[Any]], Any] | None,
) -> Callable[[list[Any]], Any]:
    if given is not None:
        return given
    collate = DataCollatorWithPadding(tokenizer) if tokenizer is not None else default_data_collator
    left_out = set(inspected.label_names) - inspected.accepts
    # Features need no label, and the default collator takes `label_ids` for a list.
    return lambda rows: collate([_without(row, left_out) for row in rows])


def _without(row: Any, names: Collection[str]) -> Any:
    return {name: value for name, value in row.items() if name not in names} if isinstance(row, Mapping) else row


def _forward(model: nn.Module) -> Callable[[dict[str, Any]], Any]:
    return lambda inputs: model(**inputs)


def _roots(model: nn.Module) -> Callable[[dict[str, Any]], list[torch.Tensor]]:
    """Return everything that the model returns, but for padding."""

    def roots(inputs: dict[str, Any]) -> list[torch.Tensor]:
        mask = inputs.get("attention_mask")
        leaves, _ = torch.utils._pytree.tree_flatten(model(**inputs))
        found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        if mask is None or mask.dim() != 2:
            return found
        return [_without_padding(tensor, mask) for tensor in found]

    return roots


def _without_padding(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if tensor.shape[:2] != mask.shape:
        return tensor
    return tensor * mask.reshape(*mask.shape, *[1] * (tensor.dim() - 2)).to(tensor.dtype)


def _has_bfloat16(frontier: Frontier) -> bool:
    return any(leaf.dtype is torch.bfloat16 for leaf in frontier.leaves.values())


def _as_dataset(work: Work, dataset: Any, labels: Sequence[str], *, in_memory: bool) -> datasets.Dataset:
    files = [datasets.Dataset.from_file(str(path), in_memory=in_memory) for path in work.store.files()]
    rows = datasets.concatenate_datasets(files)
    halves = [np.asarray(rows.with_format("numpy")[name]) for name in KEY_COLUMNS]
    places = {key: place for place, key in enumerate(zip(*(half.tolist() for half in halves), strict=True))}
    rows = rows.remove_columns(KEY_COLUMNS).rename_columns(
        {f"feature{number}": name for number, name in enumerate(_names(work.frontier))}
    )
    rows = rows.select([places[tuple(key)] for key in work.keys.tolist()])
    for name in labels:
        if name in (dataset.column_names if hasattr(dataset, "column_names") else dataset[0]):
            rows = rows.add_column(name, [_plain(dataset[row][name]) for row in range(len(dataset))])
    return rows


def _names(frontier: Frontier) -> Sequence[str]:
    columns = frontier.columns.values()
    if len(columns) == 1:
        return ["features"]
    places = [f"{key.name}{frontier.answers[key].paths[index]}" for key, index, _ in columns]
    return [re.sub(r"\['?(\w+)'?\]", r".\1", place).removeprefix(f"{_Around.FIELD}.") for place in places]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
