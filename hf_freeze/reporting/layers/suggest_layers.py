"""Which layers are worth training, by one of three methods.

A linear probe at every depth (Alain and Bengio, 2016) from one pass, the gradient (Lee et al., 2022), or the spectrum
of the weights (Hartford et al., 2024).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from torch import nn

from hf_freeze.errors import FreezeError
from hf_freeze.features.batches import Source
from hf_freeze.features.extraction import by_length
from hf_freeze.no_trace import random_states_kept
from hf_freeze.reporting.layers.block_suggestion import BlockSuggestion, default_k, find_blocks
from hf_freeze.reporting.layers.class_labels import Labels
from hf_freeze.reporting.layers.depth_features import depth_features, find_reader
from hf_freeze.reporting.layers.gradient_scores import gradient_scores
from hf_freeze.reporting.layers.labelled_batches import LabelledBatches, refuse_unfit_dataset
from hf_freeze.reporting.layers.layer_outputs import find_depths
from hf_freeze.reporting.layers.linear_probes import (
    Scoring,
    probe_scores,
    refuse_scoring_of_other_classes,
    refuse_unknown_scoring,
)
from hf_freeze.reporting.layers.spectrum_scores import spectrum_scores
from hf_freeze.reporting.layers.suggestion import LayerSuggestion, ProbeSuggestion
from hf_freeze.selection.model_map import map_model

Method: TypeAlias = Literal["probe", "gradient", "spectrum"]

_SAMPLE = 16  # rows: two would often have the labels of their column by chance, where a collator makes its own


@random_states_kept()
def suggest_layers(  # noqa: PLR0913 - one door to three methods, and all but two of its arguments are optional
    model: nn.Module,
    dataset: Any = None,
    *,
    method: Method = "probe",
    k: int | None = None,
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
    """Say which layers of a model are worth training for these rows. The model is left as it was.

    `"probe"` finds the depth from which on the features suffice: one pass of up to `max_rows` rows through the model,
    in eval mode, collects what a head would read before the layers and after each: the mean over real tokens and, if
    the model's own head reads the first or the last token alone, that token. At each depth a logistic regression is
    cross-validated over the same `folds`. The plan trains what lies above.

    `"gradient"` ranks embeddings, layers, rest and head by their relative gradient norm (auto-RGN; Lee et al., 2022):
    the norm of the gradient of the model's own loss over that of the weights, averaged over batches; normalisation
    layers are left out. The best blocks may be the first or in the middle. A hint, no more: the head often comes first.

    `"spectrum"` ranks the layers by the signal-to-noise ratio of their weight matrices (Spectrum; Hartford et al.,
    2024), among those of one kind. It needs no rows, and the memory of one matrix.

    Args:
        model: The model, loaded.
        dataset: Rows with a label each. Training rows, not those that anything is judged on later. A probe takes
            classes from `labels`, `label` or `label_ids`: a number 0, 1, 2, ..., a bool or a text, which the model
            never sees; a gradient any label that the model computes its loss from. Not read for a spectrum.
        method: How to choose.
        k: How many blocks the plan of a gradient or a spectrum trains, beside the head; by default a quarter of them.
        collator: As in the Trainer. By default rows are padded by `tokenizer`, or without one taken to be of one
            length.
        tokenizer: Also reads rows that are texts.
        stack: Which layers to probe, where a model has several stacks: "encoder", "decoder", as in
            `encoder.layers[0]`. The other methods rank all.
        max_rows: Rows to take, at random.
        batch_size: Rows that go through the model at once.
        folds: Parts of the cross-validation, at least 2.
        scoring: Of probes: any of scikit-learn's that gives a number for these classes, or a callable. By default
            "average_precision" for two classes, of the one whose label sorts last, and "accuracy" for more.
        seed: Of the choice of rows and folds.
        show_progress: Show a bar while rows go through the model.

    Returns:
        The scores, and a plan: `.plan`, and for a gradient `.soft_plan`, which trains all at rates in proportion.
        `print(suggest_layers(...))` is a table.

    Raises:
        FreezeError: For arguments out of range, rows that cannot be made a batch, fewer than two classes or `folds`
            rows of a class, a scorer that does not fit the classes, and features, losses, gradients or weights that are
            not numbers.
        UnsupportedSetupError: For labels that are not classes (a regression, several in a row) and layers whose output
            does not keep the rows apart, which cannot be probed, and for weights that are integers or not loaded.
        SelectionError: Where the stack is not clear, or the blocks are not.

    All but what the model returns is checked before the pass, the labels where they can be read without the rest.
    """
    _refuse_arguments(model, max_rows=max_rows, batch_size=batch_size, folds=folds, seed=seed)
    _refuse_of_other_methods(method, k=k, stack=stack, scoring=scoring)
    rows = _Rows(dataset, collator, tokenizer, max_rows, batch_size, seed, show_progress)
    if method == "probe":
        return _probed(model, rows, stack=stack, folds=folds, scoring=scoring)
    return _ranked(model, rows, method, k)


@dataclass(frozen=True)
class _Rows:
    """The rows that a method may look at, and how they become batches."""

    dataset: Any
    collator: Callable[[list[Any]], Mapping[str, Any]] | None
    tokenizer: Any
    most: int
    batch_size: int
    seed: int
    show_progress: bool

    @cached_property
    def numbers(self) -> list[int]:
        """Rows chosen at random, sorted by length, the longest first."""
        rows = np.random.default_rng(self.seed).permutation(len(self.dataset))[: self.most]
        lengths = _row_lengths(self.dataset)
        chosen: list[int] = rows[by_length([lengths[row] for row in rows])].tolist()
        return chosen

    @property
    def batches(self) -> list[list[int]]:
        """The same, batch by batch."""
        return [self.numbers[start : start + self.batch_size] for start in range(0, len(self.numbers), self.batch_size)]


def _ranked(model: nn.Module, rows: _Rows, method: Literal["gradient", "spectrum"], k: int | None) -> BlockSuggestion:
    began, used, blocks = time.perf_counter(), 0, find_blocks(model)
    _refuse_k(k, list(blocks), method)
    if method == "gradient":
        _refuse_no_rows(rows.dataset)
        used = len(rows.numbers)
        scores = gradient_scores(
            model,
            blocks,
            rows.dataset,
            rows.batches,
            collator=rows.collator,
            tokenizer=rows.tokenizer,
            show_progress=rows.show_progress,
        )
    else:
        scores = spectrum_scores(model, blocks)
    return BlockSuggestion(
        method=method,
        scores=scores,
        k=k or default_k(len(scores)),
        has_head="head" in blocks,
        rows=used,
        seconds=time.perf_counter() - began,
    )


def _probed(
    model: nn.Module, rows: _Rows, *, stack: str | None, folds: int, scoring: Scoring | None
) -> ProbeSuggestion:
    refuse_unknown_scoring(scoring)
    refuse_unfit_dataset(rows.dataset)
    depths = find_depths(model, stack)
    batches = LabelledBatches(model, rows.collator, rows.tokenizer)
    source = Source(rows.dataset, batches, batches.to_device)
    _look_ahead(batches, source, rows, scoring=scoring, folds=folds)
    began = time.perf_counter()
    reader = find_reader(model, depths, source, rows.numbers)
    features = depth_features(model, depths, reader, source, rows.batches, show_progress=rows.show_progress)
    extracted = time.perf_counter()
    labels = batches.classes.named(features.numbers.tolist())
    scoring = _fitting(labels, scoring, folds)
    scores = probe_scores(features.values, labels.ids, folds=folds, scoring=scoring, seed=rows.seed)
    return ProbeSuggestion(
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


def _look_ahead(batches: LabelledBatches, source: Source, rows: _Rows, *, scoring: Scoring | None, folds: int) -> None:
    """Raise, before the long pass, for what a few rows, and the labels if they can be read alone, show to be wrong."""
    numbers = rows.numbers
    sample = [numbers[index] for index in np.linspace(0, len(numbers) - 1, min(len(numbers), _SAMPLE), dtype=int)]
    first = source.batch(sample).inputs()
    batches.refuse_unread(rows.dataset[numbers[0]])
    labels = batches.labels_ahead(rows.dataset, numbers, sample, first)
    if labels is not None:
        _fitting(labels, scoring, folds)


def _refuse_arguments(model: Any, **numbers: Any) -> None:
    if not isinstance(model, nn.Module):
        raise FreezeError(f"model={model!r:.80} is a {type(model).__name__}. Give the loaded model.")
    for name, least in (("max_rows", 1), ("batch_size", 1), ("folds", 2), ("seed", 0)):
        value = numbers[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise FreezeError(f"{name}={value!r} is not a whole number of at least {least}.")


def _refuse_of_other_methods(method: Any, **given: Any) -> None:
    """Raise `FreezeError` for an unknown method, and for arguments that it does not take."""
    if method not in get_args(Method):
        raise FreezeError(f"method={method!r:.80} is not known. Give one of {', '.join(map(repr, get_args(Method)))}.")
    own = ("stack", "scoring") if method == "probe" else ("k",)
    for name, value in given.items():
        if value is not None and name not in own:
            instead = "the probe finds the depth itself" if name == "k" else "it ranks the layers of every stack"
            instead = "it trains no probes" if name == "scoring" else instead
            raise FreezeError(f"{name}={value!r:.80} does not apply to method={method!r}: {instead}. Leave it out.")


def _refuse_k(k: Any, blocks: list[str], method: str) -> None:
    ranked = blocks if method == "gradient" else [block for block in blocks if block.endswith("]")]
    whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if k is not None and not (whole and 1 <= k <= len(ranked)):
        raise FreezeError(f"k={k!r} is not a whole number from 1 to {len(ranked)}, the number of blocks: {ranked}.")


def _refuse_no_rows(dataset: Any) -> None:
    if dataset is None:
        raise FreezeError(
            "dataset=None, and method='gradient' needs labelled rows. Give some, or take method='spectrum', which "
            "needs none."
        )
    refuse_unfit_dataset(dataset)


def _fitting(labels: Labels, scoring: Scoring | None, folds: int) -> Scoring:
    """Return the scorer for these classes. Raises `FreezeError` where they, or a given scorer, cannot be used."""
    labels.refuse_rare(folds)
    if scoring is None:
        return "average_precision" if len(labels.names) == 2 else "accuracy"
    refuse_scoring_of_other_classes(scoring, len(labels.names))
    return scoring


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
