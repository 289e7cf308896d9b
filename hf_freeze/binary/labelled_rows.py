"""The rows of one evaluation in the form that everything else needs: a margin and a class each.

Labels become classes here: which of the two is the positive one, by id or by name, and which rows count at all.
"""

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_freeze.binary.margin import (
    Head,
    ValueRange,
    as_numpy,
    is_batches,
    is_of_tokens,
    read_array,
    read_margin,
    take_logits,
)
from hf_freeze.binary.result import ThresholdResult, check_class_id, short
from hf_freeze.errors import FreezeError
from hf_freeze.label_columns import IGNORED_LABEL

_LIGHTEST, _HEAVIEST = 1e-30, 1e30  # their squares and sums are still numbers


@dataclass(frozen=True, eq=False)
class EvaluatedRows:
    """`margin` (n,) float32 and `positive` (n,) bool of the rows that count; `n_ignored` more do not.

    `ranges`: the values that the margins were computed from, summed up batch by batch for `refuse_probabilities`.
    `weight` (n,) float64, above 0; None where every row counts once.
    """

    margin: NDArray[np.float32]
    positive: NDArray[np.bool_]
    n_ignored: int
    ranges: tuple[ValueRange, ...]
    weight: NDArray[np.float64] | None = None

    @property
    def n_nan(self) -> int:
        """Number of rows whose margin is NaN."""
        return int(np.isnan(self.margin).sum())

    @property
    def n_pos(self) -> int:
        """Number of positive rows."""
        return int(self.positive.sum())

    @property
    def n_neg(self) -> int:
        """Number of negative rows."""
        return len(self.positive) - self.n_pos


def read_rows(
    logits: Any,
    labels: Any,
    sample_weight: Any = None,
    *,
    positive: int = 1,
    head: Head = "auto",
    label2id: Mapping[str, int] | None = None,
) -> EvaluatedRows:
    """Reduce a model's outputs and their labels, in any form that `binary_margin` and `binary_labels` read.

    Rows labelled -100 do not count, nor do those of weight 0. With head="auto" the outputs are taken for logits:
    `refuse_probabilities` judges all batches of a set together. Logits of tokens (n, T, 2) take labels (n, T), and each
    token that is not labelled -100 is a row; it weighs what its text does, or has a weight of its own (n, T).
    """
    logits, labels, sample_weight, n_left_out = _tokens_as_rows(logits, labels, sample_weight)
    read, seen = read_margin(logits, positive=positive, head=head)
    margin = as_numpy(read)
    is_positive, counted = binary_labels(labels, positive=positive, label2id=label2id)
    if len(margin) != len(is_positive):
        raise FreezeError(f"{len(margin)} scores but {len(is_positive)} labels: give one label per score.")
    weight = None
    if sample_weight is not None:
        weight = _row_weights(sample_weight, counted)
        counted &= weight > 0
    n_ignored = len(counted) - int(counted.sum())
    if n_ignored:
        margin, is_positive = margin[counted], is_positive[counted]
        weight = None if weight is None else weight[counted]
    return EvaluatedRows(margin, is_positive, n_ignored + n_left_out, (seen,), weight)


def _tokens_as_rows(logits: Any, labels: Any, weight: Any) -> tuple[Any, Any, Any, int]:
    """Return logits, labels and weights of the tokens that count, and how many do not; other rows as they are.

    Tokens that do not count are left out before anything looks at their logits: where the Trainer joins batches of
    different lengths, it pads them with -100.
    """
    if is_batches(logits) and is_batches(labels) and len(logits) == len(labels):
        weights = weight if isinstance(weight, list) and len(weight) == len(labels) else [None] * len(labels)
        parts = [_tokens_as_rows(*each) for each in zip(logits, labels, weights, strict=True)]
        read = [part[2] for part in parts]
        left_out = sum(part[3] for part in parts)
        return [part[0] for part in parts], [part[1] for part in parts], read if weights is weight else weight, left_out
    if is_batches(logits) or not is_of_tokens(taken := take_logits(logits)):
        return logits, labels, weight, 0
    tokens, ids = as_numpy(taken), read_array(take_logits(labels), "Labels")
    if ids.shape != tokens.shape[:2]:
        raise FreezeError(
            f"Logits of shape {tokens.shape} are those of tokens, but the labels have shape {ids.shape}. Give one "
            f"label per token, {tokens.shape[:2]}, and {IGNORED_LABEL} for those that do not count."
        )
    counts = ids != IGNORED_LABEL
    if weight is not None:
        weight = read_array(weight, "Weights")
        if weight.shape in (ids.shape[:1], (len(ids), 1)):  # of texts
            weight = np.broadcast_to(weight.reshape(-1, 1), ids.shape)
        weight = weight[counts] if weight.shape == ids.shape else weight
    return tokens[counts], ids[counts], weight, int(ids.size - counts.sum())


def join_rows(batches: Sequence[EvaluatedRows]) -> EvaluatedRows:
    """Put batches together, in order."""
    weights = [batch.weight for batch in batches if batch.weight is not None]
    return EvaluatedRows(
        np.concatenate([batch.margin for batch in batches]),
        np.concatenate([batch.positive for batch in batches]),
        sum(batch.n_ignored for batch in batches),
        tuple(seen for batch in batches for seen in batch.ranges),
        np.concatenate(weights) if weights else None,
    )


def labels_and_weights(labels: Any, column: str | None) -> tuple[Any, Any]:
    """Take labels and row weights apart, where a `column` of weights was gathered with the labels."""
    if column is None:
        return labels, None
    if isinstance(labels, tuple | list) and len(labels) == 2 and all(np.ndim(part) for part in labels):
        return labels[0], labels[1]
    raise FreezeError(
        f"sample_weight={column!r}, but the evaluation gives no weights beside the labels. Set "
        f'label_names=["labels", {column!r}] in the TrainingArguments, or train with a FreezeTrainer.'
    )


def _row_weights(sample_weight: Any, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return a weight per row; rows that do not count anyway may have any."""
    if is_batches(sample_weight):
        sample_weight = np.concatenate([read_array(batch, "Weights").reshape(-1) for batch in sample_weight])
    read = read_array(sample_weight, "Weights")
    try:
        if read.dtype.kind == "c":
            raise TypeError("they are complex")
        weight = read.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise FreezeError(f"sample_weight={short(sample_weight)} are not numbers: {error}.") from error
    if weight.shape not in ((len(counted),), (len(counted), 1)):
        raise FreezeError(f"sample_weight of shape {weight.shape} for {len(counted)} rows: give one weight per row.")
    weight = weight.reshape(-1)
    if len(weight) and counted.all() and weight.min() >= _LIGHTEST and weight.max() <= _HEAVIEST:
        return weight
    strange = weight[counted & ~((weight == 0) | ((weight >= _LIGHTEST) & (weight <= _HEAVIEST)))]
    if strange.size:
        raise FreezeError(
            f"Weights must be 0 or between {_LIGHTEST:g} and {_HEAVIEST:g}, but sample_weight has {_listed(strange)}."
        )
    return np.where(counted, weight, 0.0)


def binary_labels(
    labels: Any, *, positive: int = 1, label2id: Mapping[str, int] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows are of the positive class, and which rows count: those whose label is not -100.

    Takes bool, 0/1, 0.0/1.0 or (with `label2id`) strings, of shape (n,), (n, 1) or one-hot (n, 2); a list of arrays is
    read as a list of batches. Raises `FreezeError` that names the values found when they are anything else.
    """
    if is_batches(labels):
        parts = [binary_labels(batch, positive=positive, label2id=label2id) for batch in labels]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    values = _label_ids(read_array(take_logits(labels), "Labels"), label2id)
    if values.ndim == 2 and values.shape[1] == 2:
        values = _from_one_hot(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise FreezeError(f"Labels of shape {values.shape} are not binary labels. Give (n,), (n, 1) or one-hot (n, 2).")
    if values.dtype == np.bool_:
        return values == bool(positive), np.ones(len(values), dtype=bool)
    counted = values != IGNORED_LABEL
    strange = np.unique(values[counted & (values != 0) & (values != 1)])
    if strange.size:
        raise FreezeError(
            f"Labels must be 0 or 1 (or {IGNORED_LABEL} to leave a row out), but they include {_listed(strange)}. "
            "Map them to 0 and 1, or give names together with id2label."
        )
    return values == positive, counted


def _label_ids(labels: NDArray[Any], label2id: Mapping[str, int] | None) -> NDArray[Any]:
    if labels.dtype == object and all(isinstance(value, numbers.Real | np.bool_) for value in labels.ravel()):
        numbers_read = [float(value) if abs(value) < 1e9 else np.inf for value in labels.ravel()]
        labels = np.array(numbers_read).reshape(labels.shape)
    if labels.dtype.kind in "biuf":
        return labels
    if labels.dtype == object and any(value is None for value in labels.ravel()):
        raise FreezeError(f"A label is None. Give every row a label, or {IGNORED_LABEL} to leave it out.")
    if labels.ndim == 0 or labels.dtype.kind not in "OSU":
        raise FreezeError(f"Labels must be an array of numbers or names, not {short(labels.tolist())}.")
    if label2id is None:
        raise FreezeError(
            f"The labels are names ({_listed(np.unique(labels.astype(str)))}). Give id2label, or map them to 0 and 1."
        )
    if len(label2id) < 2:
        raise FreezeError(f"Both classes are called {next(iter(label2id))!r}. Give labels as ids, 0 or 1.")
    unknown = sorted({str(name) for name in labels.ravel()} - set(label2id))
    if unknown:
        raise FreezeError(f"Unknown labels: {_listed(unknown)}. The names of the classes are {sorted(label2id)}.")
    ids = [float(label2id[str(name)]) for name in labels.ravel()]
    return np.asarray(ids, dtype=np.float64).reshape(labels.shape)


def _from_one_hot(rows: NDArray[Any]) -> NDArray[Any]:
    ignored = (rows == IGNORED_LABEL).all(axis=1)
    one_hot = ((rows == 0) | (rows == 1)).all(axis=1) & (rows.sum(axis=1) == 1)
    if not (ignored | one_hot).all():
        first = rows[~(ignored | one_hot)][0].tolist()
        raise FreezeError(f"Labels of shape {rows.shape} must be one-hot, but one row is {first}.")
    return np.where(ignored, float(IGNORED_LABEL), rows[:, 1])


def _listed(values: Any) -> str:
    first = ", ".join(str(value) for value in list(values)[:5])
    return first if len(values) <= 5 else f"{first} and {len(values) - 5} more"


@dataclass(frozen=True)
class PositiveLabel:
    """The positive class as the user named it, and the names of both classes if they are known."""

    positive: int | str = 1
    id2label: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        """Raise `FreezeError` unless this names one of two classes, as soon as that can be known."""
        if not isinstance(self.positive, str):
            check_class_id(self.positive)
        if self.id2label is not None:
            if not isinstance(self.id2label, Mapping) or sorted(map(str, self.id2label)) != ["0", "1"]:
                raise FreezeError(f"id2label={short(self.id2label)} must name two classes, 0 and 1.")
            names = list(self.id2label.values())
            if not all(isinstance(name, str) for name in names):
                raise FreezeError(f"id2label={short(self.id2label)} must have strings as names.")
            if isinstance(self.positive, str) and self.positive not in names:
                raise FreezeError(f"positive={self.positive!r} is not one of the classes {names}.")
            if isinstance(self.positive, str) and names[0] == names[1]:
                raise FreezeError(f"Both classes are called {self.positive!r}. Give positive= as an id, 0 or 1.")

    @property
    def id(self) -> int:
        """Id of the positive class. Raises `FreezeError` while only its name is known."""
        known = self.known_id
        if known is None:
            raise FreezeError(
                f"positive={self.positive!r} is a name, but the names of the classes are unknown. Give id2label, or "
                "call prepare(model) with a model whose config has them."
            )
        return known

    @property
    def known_id(self) -> int | None:
        """Id of the positive class, or None while only its name is known."""
        if not isinstance(self.positive, str):
            return int(self.positive)
        return None if self.label2id is None else self.label2id[self.positive]

    @property
    def label2id(self) -> dict[str, int] | None:
        """Ids by name, or None while the names are unknown."""
        return None if self.id2label is None else {name: int(i) for i, name in self.id2label.items()}

    def check(self, result: ThresholdResult) -> None:
        """Raise `FreezeError` when a threshold was tuned with the other class as the positive one."""
        if self.known_id not in (None, result.positive):
            raise FreezeError(
                f"The threshold was tuned with positive={result.positive!r}, but positive={self.positive!r} was given."
            )

    def with_names_from(self, config: Any) -> "PositiveLabel":
        """Return this label with the names in a model's config; names that the user gave stay.

        Raises `FreezeError` when the config has more than two classes, or lacks the name.
        """
        n_labels = getattr(config, "num_labels", None)
        if isinstance(n_labels, int) and n_labels > 2:
            raise FreezeError(f"The model has {n_labels} labels, but a threshold needs a head of one or two logits.")
        names = getattr(config, "id2label", None)
        if self.id2label is not None or not isinstance(names, Mapping) or sorted(map(str, names)) != ["0", "1"]:
            return self
        return replace(self, id2label={int(i): str(name) for i, name in names.items()})
