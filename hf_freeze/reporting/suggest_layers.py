"""How much of a model may stay frozen: a linear probe at every depth (Alain and Bengio, 2016), from one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding, default_data_collator

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.features.batches import Source
from hf_freeze.features.extraction import by_length
from hf_freeze.features.sets import row_lengths
from hf_freeze.reporting.depth_features import DepthFeatures, depth_features, find_depths, keep_what_the_model_takes
from hf_freeze.reporting.suggestion import DepthScore, LayerSuggestion
from hf_freeze.selection.model_map import map_model

_SHRINKAGE = 0.1  # LogisticRegression's C, on standardised features: there are often as many of them as rows


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
    scoring: str | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> LayerSuggestion:
    """Probe the features at every depth of a model, and say from which depth on they suffice for these labels.

    One pass of up to `max_rows` rows of `dataset` through the model, as it is and in eval mode, collects what a head
    would read before the layers and after each: the mean over real tokens and, if the model's own head reads the first
    or the last token alone, that token. At each depth a logistic regression is cross-validated over the same `folds`.

    dataset: tokenised rows with a label each; training rows, not those that anything is judged on later.
    collator: as in the Trainer; by default rows are padded by `tokenizer`, or taken to be of one length without one.
    stack: which layers, where a model has several stacks: "encoder", "decoder", as in `encoder.layers[0]`.
    scoring: any of scikit-learn's; "average_precision" for two classes and "accuracy" for more.

    Raises `FreezeError` for fewer than `folds` rows of a class, `SelectionError` where the stack is not clear.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise UnsupportedSetupError("suggest_layers takes rows by number: an iterable data set has none.")
    depths = find_depths(model, stack)
    source = Source(dataset, partial(_collate, model, collator, tokenizer), partial(_to_device, model))
    began = time.perf_counter()
    batches = _batches(dataset, max_rows=max_rows, batch_size=batch_size, seed=seed)
    features = depth_features(model, depths, source, batches, show_progress=show_progress)
    extracted = time.perf_counter()
    scoring = scoring or ("average_precision" if len(np.unique(features.labels)) == 2 else "accuracy")
    scores = _scores(features, folds=folds, scoring=scoring, seed=seed)
    return LayerSuggestion(
        scores=scores,
        layers=depths.layers,
        scoring=scoring,
        reads=features.reads,
        rows=len(features.labels),
        extraction_seconds=extracted - began,
        probe_seconds=time.perf_counter() - extracted,
        has_embeddings=bool(map_model(model).roles["embeddings"]),
        prefix=depths.prefix,
        below=depths.below,
    )


def _batches(dataset: Any, *, max_rows: int, batch_size: int, seed: int) -> list[list[int]]:
    """Choose rows at random, and put those of like length together."""
    rows = np.random.default_rng(seed).permutation(len(dataset))[:max_rows]
    lengths = row_lengths(dataset)
    rows = rows[by_length([lengths[row] for row in rows])]
    return [rows[start : start + batch_size].tolist() for start in range(0, len(rows), batch_size)]


def _collate(model: nn.Module, collator: Any, tokenizer: Any, rows: list[Any]) -> dict[str, Any]:
    if collator is None:
        rows = [keep_what_the_model_takes(model, row) for row in rows]
        collator = default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer)
    return dict(collator(rows))


def _to_device(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _scores(features: DepthFeatures, *, folds: int, scoring: str, seed: int) -> tuple[DepthScore, ...]:
    """Cross-validate a linear probe at every depth, on the same folds."""
    # scikit-learn takes half a second to import, and nothing else here needs it.
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    _refuse_rare_classes(features.labels, folds)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=_SHRINKAGE, max_iter=1000))
    return tuple(
        DepthScore(
            depth=depth,
            folds=tuple(map(float, cross_val_score(probe, values, features.labels, cv=splits, scoring=scoring))),
        )
        for depth, values in enumerate(features.values)
    )


def _refuse_rare_classes(labels: NDArray[np.int64], folds: int) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if folds < 2 or len(classes) < 2 or counts.min() < folds:
        found = ", ".join(f"{count} of class {label}" for label, count in zip(classes, counts, strict=True))
        raise FreezeError(
            f"A probe in {folds} folds needs two classes, and {max(folds, 2)} rows of each; found {found}."
        )
