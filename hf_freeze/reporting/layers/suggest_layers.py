"""How much of a model may stay frozen: a linear probe at every depth (Alain and Bengio, 2016), from one pass."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from hf_freeze.errors import FreezeError
from hf_freeze.features.batches import Source
from hf_freeze.features.extraction import by_length
from hf_freeze.no_trace import random_states_kept
from hf_freeze.reporting.layers.class_labels import Labels
from hf_freeze.reporting.layers.depth_features import depth_features, find_reader
from hf_freeze.reporting.layers.labelled_batches import LabelledBatches, refuse_unfit_dataset
from hf_freeze.reporting.layers.layer_outputs import find_depths
from hf_freeze.reporting.layers.linear_probes import (
    Scoring,
    probe_scores,
    refuse_scoring_of_other_classes,
    refuse_unknown_scoring,
)
from hf_freeze.reporting.layers.suggestion import LayerSuggestion
from hf_freeze.selection.model_map import map_model

_SAMPLE = 16  # rows: two would often have the labels of their column by chance, where a collator makes its own


@random_states_kept()
def suggest_layers(
    model: nn.Module,
    dataset: Any,
    *,
    collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    tokenizer: Any = None,
    stack: str | None = None,
    max_rows: int = 2000,
    batch_size: int = 32,
    folds: int = 5,
    scoring: Scoring | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> LayerSuggestion:
    """Probe the features at every depth of a model, and say from which depth on they suffice for these labels.

    One pass of up to `max_rows` rows of `dataset` through the model, as it is and in eval mode, collects what a head
    would read before the layers and after each: the mean over real tokens and, if the model's own head reads the first
    or the last token alone, that token. At each depth a logistic regression is cross-validated over the same `folds`.

    Args:
        model: The model, loaded.
        dataset: Rows with one label each, in `labels`, `label` or `label_ids`: a number 0, 1, 2, ..., a bool or a text,
            which the model never sees. Training rows, not those that anything is judged on later.
        collator: As in the Trainer. By default rows are padded by `tokenizer`, or without one taken to be of one
            length.
        tokenizer: Also reads rows that are texts.
        stack: Which layers, where a model has several stacks: "encoder", "decoder", as in `encoder.layers[0]`.
        max_rows: Rows to take, at random.
        batch_size: Rows that go through the model at once.
        folds: Parts of the cross-validation, at least 2.
        scoring: Any of scikit-learn's that gives a number for these classes, or a callable. By default
            "average_precision" for two classes, of the one whose label sorts last, and "accuracy" for more.
        seed: Of the choice of rows and folds.
        show_progress: Show a bar while rows go through the model.

    Returns:
        The score at every depth, the depth that suffices, and a plan. `print(suggest_layers(...))` is a table.

    Raises:
        FreezeError: For arguments out of range, rows that cannot be made a batch, fewer than two classes or `folds`
            rows of a class, a scorer that does not fit the classes, and features that are not numbers.
        UnsupportedSetupError: For labels that are not classes (a regression, several in a row), and for layers whose
            output does not keep the rows apart.
        SelectionError: Where the stack is not clear.

    All but the features are checked before the pass, the labels where they can be read without the rest of the rows.
    """
    _refuse_arguments(model, max_rows=max_rows, batch_size=batch_size, folds=folds, seed=seed)
    refuse_unknown_scoring(scoring)
    refuse_unfit_dataset(dataset)
    depths = find_depths(model, stack)
    batches = LabelledBatches(model, collator, tokenizer)
    source = Source(dataset, batches, batches.to_device)
    rows = _rows(dataset, max_rows=max_rows, seed=seed)
    sample = [rows[index] for index in np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE), dtype=int)]
    first = source.batch(sample).inputs()
    batches.first_row_reaches_the_model(dataset[rows[0]])
    ahead = batches.labels_ahead(dataset, rows, sample, first)
    if ahead is not None:
        _fitting(ahead, scoring, folds)
    began = time.perf_counter()
    reader = find_reader(model, depths, source, rows)
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    features = depth_features(model, depths, reader, source, parts, show_progress=show_progress)
    extracted = time.perf_counter()
    labels = batches.classes.named(features.numbers.tolist())
    scoring = _fitting(labels, scoring, folds)
    scores = probe_scores(features.values, labels.ids, folds=folds, scoring=scoring, seed=seed)
    return LayerSuggestion(
        scores=scores,
        layers=depths.layers,
        scoring=scoring if isinstance(scoring, str) else getattr(scoring, "__name__", str(scoring)),
        reads=reader.reads,
        rows=len(labels.ids),
        extraction_seconds=extracted - began,
        probe_seconds=time.perf_counter() - extracted,
        has_embeddings=bool(map_model(model).roles["embeddings"]),
        prefix=depths.prefix,
        below=depths.below,
    )


def _refuse_arguments(model: Any, **numbers: Any) -> None:
    if not isinstance(model, nn.Module):
        raise FreezeError(f"model={model!r:.80} is a {type(model).__name__}. Give the loaded model.")
    for name, least in (("max_rows", 1), ("batch_size", 1), ("folds", 2), ("seed", 0)):
        value = numbers[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise FreezeError(f"{name}={value!r} is not a whole number of at least {least}.")


def _fitting(labels: Labels, scoring: Scoring | None, folds: int) -> Scoring:
    """Return the scorer for these classes. Raises `FreezeError` where they, or a scorer that was given, do not do."""
    labels.refuse_rare(folds)
    if scoring is None:
        return "average_precision" if len(labels.names) == 2 else "accuracy"
    refuse_scoring_of_other_classes(scoring, len(labels.names))
    return scoring


def _rows(dataset: Any, *, max_rows: int, seed: int) -> list[int]:
    """Choose rows at random, and sort them by length, the longest first."""
    rows = np.random.default_rng(seed).permutation(len(dataset))[:max_rows]
    lengths = _row_lengths(dataset)
    chosen: list[int] = rows[by_length([lengths[row] for row in rows])].tolist()
    return chosen


def _row_lengths(dataset: Any) -> list[int]:
    """Return the length of each row's longest one-dimensional value, 0 where there is none."""
    if hasattr(dataset, "with_format") and hasattr(dataset, "column_names"):
        rows = dataset.with_format(None)
        columns = [name for name in dataset.column_names if _is_flat(rows[0][name])] if len(rows) else []
        if not columns:
            return [0] * len(rows)
        return [max(map(len, values)) for values in zip(*(rows[name] for name in columns), strict=True)]
    if not len(dataset) or not isinstance(dataset[0], Mapping):
        return [0] * len(dataset)
    columns = [name for name, value in dataset[0].items() if _is_flat(value)]
    if not columns:
        return [0] * len(dataset)
    rows = (dataset[row] for row in range(len(dataset)))
    return [max(len(row[name]) for name in columns) for row in rows]


def _is_flat(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return not value or isinstance(value[0], int | float)
    return getattr(value, "ndim", None) == 1
