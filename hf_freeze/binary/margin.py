"""Logits to margins, and labels to classes: the two readings that everything else in this room starts from.

The margin is `z1 - z0` for two logits and the logit itself for one, in float32. It is the score that thresholds
live on: unlike a probability it keeps its resolution in the tails, where rare classes are decided.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hf_freeze.binary.result import check_class_id, short
from hf_freeze.errors import FreezeError

Head: TypeAlias = Literal["auto", "logits", "probability"]

IGNORED_LABEL = -100
"""The label id that the Trainer and torch's losses leave out."""

_HEADS = ("auto", "logits", "probability")
ROWS_TO_JUDGE = 32
"""From this many rows on, values are judged to be logits or probabilities."""


def binary_margin(logits: Any, *, positive: int = 1, head: Head = "auto") -> Any:
    """Return one float32 margin per row: how far the positive class is ahead of the other.

    `logits` has the shape (n, 2), (n, 1) or (n,), as a torch tensor, a numpy array or nested lists of numbers. A
    dict or a `ModelOutput` gives its "logits", a tuple its first array of at most two dimensions, a list of arrays is a
    list of batches. Half precision is upcast before the subtraction. Torch in, torch out (same device); else numpy.

    `positive` is the id of the positive class. With `head="probability"` the values are probabilities (of both classes,
    or of class 1) and the margin is their log-odds. `head="auto"` expects logits and refuses what are plainly
    probabilities: 32 rows or more, of two columns that sum to one, or of one column that stays in [0, 1] and spreads
    over more than half of it. `head="logits"` trusts the values.

    Raises `FreezeError` for more than two columns, for no column, and for probabilities where logits are expected.

    >>> binary_margin([[0.0, 2.0], [1.5, 0.5]])
    array([ 2., -1.], dtype=float32)
    """
    margin, seen = read_margin(logits, positive=positive, head=head)
    if head == "auto":
        refuse_probabilities([seen])
    return margin


class ValueRange(NamedTuple):
    """What tells probabilities from logits: where the values lie, and how far the two of a row are from adding up to 1.

    `off_one` is 0 for a single column. `binary` says that every value is 0 or 1.
    """

    n_rows: int
    n_columns: int
    low: float
    high: float
    off_one: float
    binary: bool


def read_margin(logits: Any, *, positive: int, head: Head) -> tuple[Any, ValueRange]:
    """Return the margins as `binary_margin` does, and what there is to judge whether they came from probabilities."""
    check_head(head)
    check_class_id(positive)
    if _is_batches(logits):
        parts = [read_margin(batch, positive=positive, head=head) for batch in logits]
        return _concatenate([margin for margin, _ in parts]), _joined([seen for _, seen in parts])
    columns = _two_dimensional(take_logits(logits))
    seen = _range_of(columns)
    if head == "probability":
        columns = _log_odds_columns(columns)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite margins are read, NaN is reported by its own name
        margin = columns[:, 1] - columns[:, 0] if columns.shape[1] == 2 else columns[:, 0]
        margin = margin if positive == 1 else -margin
        return margin.float() if isinstance(margin, torch.Tensor) else margin.astype(np.float32), seen


def check_head(head: Any) -> None:
    """Raise `FreezeError` for a reading of the model's outputs that does not exist."""
    if not (isinstance(head, str) and head in _HEADS):
        raise FreezeError(f"head={short(head)} is not known. Give one of {', '.join(map(repr, _HEADS))}.")


def binary_labels(
    labels: Any, *, positive: int = 1, label2id: Mapping[str, int] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows are of the positive class, and which rows count (their label is not -100).

    Takes bool, 0/1, 0.0/1.0 or (with `label2id`) strings, of shape (n,), (n, 1) or one-hot (n, 2); a list of arrays is
    a list of batches. Raises `FreezeError` that names the values found when they are anything else.
    """
    if _is_batches(labels):
        parts = [binary_labels(batch, positive=positive, label2id=label2id) for batch in labels]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    values = _label_ids(_array(take_logits(labels), "Labels"), label2id)
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
            f"Labels must be 0 or 1 (or {IGNORED_LABEL} to leave a row out), but {_shown(strange)} occur. "
            "Map them to 0 and 1, or give names together with id2label."
        )
    return values == positive, counted


def as_numpy(values: Any) -> NDArray[Any]:
    """Return `values` as a numpy array; a bfloat16 tensor, which numpy does not know, as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float().numpy() if values.is_floating_point() else values.numpy())
    return np.asarray(values)


def _is_batches(values: Any) -> bool:
    return isinstance(values, list) and any(isinstance(v, (tuple, Mapping)) or getattr(v, "ndim", 0) for v in values)


def take_logits(output: Any) -> Any:
    """Pick the logits out of what a model returned: "logits" by name, else the first array of one or two dimensions."""
    if isinstance(output, Mapping):
        if output.get("logits") is not None:
            return output["logits"]
        output = tuple(output.values())
    if not isinstance(output, tuple):
        return output
    for value in output:
        if 1 <= getattr(value, "ndim", 0) <= 2:
            return value
    found = [tuple(getattr(value, "shape", ())) or type(value).__name__ for value in output]
    raise FreezeError(f"None of {found} is an array of one or two dimensions. Pass the logits themselves.")


def _two_dimensional(values: Any) -> Any:
    """Return floating-point columns (n, 1) or (n, 2), of float32 at least."""
    columns: Any
    if isinstance(values, torch.Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise FreezeError(f"Logits on {values.device} of layout {values.layout} cannot be read. Give dense values.")
        _refuse_dtype("b" if values.dtype == torch.bool else "c" if values.is_complex() else "f", values.dtype)
        columns = values.detach() if values.dtype == torch.float64 else values.detach().float()
    else:
        columns = _as_numbers(_array(values, "Logits"))
        _refuse_dtype(columns.dtype.kind, columns.dtype)
        columns = columns if columns.dtype == "float64" else columns.astype(np.float32)
    if columns.ndim == 1:
        columns = columns[:, None]
    if columns.ndim != 2 or columns.shape[1] not in (1, 2):
        raise FreezeError(
            f"Logits of shape {tuple(columns.shape)} are not binary. A binary head gives (n, 2), (n, 1) or (n,); "
            "more than two classes have no single threshold."
        )
    return columns


def _array(values: Any, what: str) -> NDArray[Any]:
    try:
        return as_numpy(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged rows; tensors without values
        raise FreezeError(f"{what} of type {type(values).__name__} cannot be read as an array: {error}") from error


def _as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array of Python objects as floats, if they are numbers; any other array as it is."""
    if values.dtype != object:
        return values
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FreezeError(f"Logits must be numbers, but {short(values.tolist())} is not: {error}") from error


def _refuse_dtype(kind: str, dtype: Any) -> None:
    if kind == "b":
        raise FreezeError("Logits of True and False are labels already. Give the model's outputs.")
    if kind not in "iuf":
        raise FreezeError(f"Logits must be real numbers, not {dtype}.")


def _range_of(columns: Any) -> ValueRange:
    n_rows, n_columns = columns.shape
    if not n_rows:
        return ValueRange(0, n_columns, 0.0, 0.0, 0.0, True)
    low, high = float(columns.min()), float(columns.max())
    if not (low >= 0.0 and high <= 1.0):  # nothing more to know of logits; written so that NaN comes here as well
        return ValueRange(n_rows, n_columns, low, high, 0.0, False)
    off_one = float(abs(columns.sum(1) - 1.0).max()) if n_columns == 2 else 0.0
    return ValueRange(n_rows, n_columns, low, high, off_one, bool(((columns == 0) | (columns == 1)).all()))


def _joined(ranges: Sequence[ValueRange]) -> ValueRange:
    filled = [seen for seen in ranges if seen.n_rows] or list(ranges)
    return ValueRange(
        n_rows=sum(seen.n_rows for seen in filled),
        n_columns=max(seen.n_columns for seen in filled),
        low=float(np.min([seen.low for seen in filled])),  # numpy's, as Python's loses NaN
        high=float(np.max([seen.high for seen in filled])),
        off_one=max(seen.off_one for seen in filled),
        binary=all(seen.binary for seen in filled),
    )


def refuse_probabilities(ranges: Sequence[ValueRange]) -> None:
    """Raise `FreezeError` when the rows of all these batches together are plainly no logits."""
    seen = _joined(ranges)
    if seen.n_rows < ROWS_TO_JUDGE or not (seen.low >= 0.0 and seen.high <= 1.0):
        return
    one_column = seen.n_columns == 1
    # 4e-3 is what rounding to bfloat16 leaves of a sum of one.
    if not (seen.high - seen.low > 0.5 if one_column else seen.off_one < 4e-3):
        return
    if seen.binary and one_column:
        raise FreezeError(
            f"All {seen.n_rows} rows are 0 or 1: these are class ids, not logits. Does preprocess_logits_for_metrics "
            'take the argmax? Hand over the logits, or say head="logits" if they are logits after all.'
        )
    sign, last_layer = ("", "sigmoid") if one_column else (" and sum to one", "softmax")
    raise FreezeError(
        f"All {seen.n_rows} rows lie between {seen.low:.3g} and {seen.high:.3g}{sign}: these are probabilities, not "
        f"logits. Does the model end in a {last_layer}, or preprocess_logits_for_metrics make them? Say "
        'head="probability", or head="logits" if they are logits after all.'
    )


def _log_odds_columns(probabilities: Any) -> Any:
    low, high = (float(probabilities.min()), float(probabilities.max())) if len(probabilities) else (0.0, 0.0)
    if low < 0.0 or high > 1.0:
        raise FreezeError(f'head="probability" expects values in [0, 1], but they run from {low:.4g} to {high:.4g}.')
    two = probabilities.shape[1] == 2
    if isinstance(probabilities, torch.Tensor):
        both = probabilities.double()
        return (both if two else torch.cat([1.0 - both, both], dim=1)).log()
    both = probabilities.astype(np.float64)
    with np.errstate(divide="ignore"):  # a probability of zero is a margin of minus infinity
        return np.log(both if two else np.concatenate([1.0 - both, both], axis=1))


def _label_ids(labels: NDArray[Any], label2id: Mapping[str, int] | None) -> NDArray[Any]:
    if labels.dtype == object and all(isinstance(value, (numbers.Real, np.bool_)) for value in labels.ravel()):
        labels = np.array([float(value) if abs(value) < 1e9 else np.inf for value in labels.ravel()]).reshape(
            labels.shape
        )
    if labels.dtype.kind in "biuf":
        return labels
    if labels.dtype == object and any(value is None for value in labels.ravel()):
        raise FreezeError("There is a label that is None. Give every row a label, or -100 to leave it out.")
    if label2id is None:
        raise FreezeError(
            f"Labels {_shown(np.unique(labels.astype(str)))} are names. Give id2label, or map them to 0 and 1."
        )
    unknown = sorted({str(name) for name in labels.ravel()} - set(label2id))
    if unknown:
        raise FreezeError(f"Labels {_shown(unknown)} are not among {sorted(label2id)}.")
    ids = [float(label2id[str(name)]) for name in labels.ravel()]
    return np.asarray(ids, dtype=np.float64).reshape(labels.shape)


def _from_one_hot(rows: NDArray[Any]) -> NDArray[Any]:
    ignored = (rows == IGNORED_LABEL).all(axis=1)
    one_hot = ((rows == 0) | (rows == 1)).all(axis=1) & (rows.sum(axis=1) == 1)
    if not (ignored | one_hot).all():
        raise FreezeError(
            f"Labels of shape {rows.shape} are not one-hot: row {rows[~(ignored | one_hot)][0].tolist()} occurs."
        )
    return np.where(ignored, float(IGNORED_LABEL), rows[:, 1])


def _concatenate(margins: Sequence[Any]) -> Any:
    if isinstance(margins[0], torch.Tensor):
        return torch.cat(list(margins))
    return np.concatenate(margins)


def _shown(values: Any) -> str:
    shown = [str(value) for value in list(values)[:5]]
    return ", ".join(shown) + (", ..." if len(values) > 5 else "")
