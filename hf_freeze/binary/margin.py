"""From a model's outputs to margins: the score of each row, which is compared with the threshold.

The margin is `z1 - z0` for two logits and the logit itself for one, in float32. Unlike a probability it keeps its
resolution in the tails, where rare classes are decided.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hf_freeze.binary.result import check_class_id, short
from hf_freeze.errors import FreezeError

Head: TypeAlias = Literal["auto", "logits", "probability"]

_HEADS = ("auto", "logits", "probability")
_ROWS_TO_JUDGE = 32
_ROUNDING = 1e-6  # of a probability in float32
_ROUNDING_OF_A_SUM = 4e-3  # of two probabilities in bfloat16


def binary_margin(logits: Any, *, positive: int = 1, head: Head = "auto") -> Any:
    """Return one margin per row: how far the positive class is ahead of the other, in logit units.

    Args:
        logits: The outputs, of shape (n, 2), (n, 1) or (n,), or of tokens (n, T, 2) or (n, T, 1): a torch tensor, a
            numpy array or nested lists of numbers. A dict or a `ModelOutput` gives its "logits", a tuple its first
            array of one or two dimensions (else the first of tokens), and a list of arrays is read as a list of
            batches. Half precision is upcast before the subtraction.
        positive: Id of the positive class, 0 or 1.
        head: "auto" expects logits and refuses values that are clearly probabilities: 32 rows or more, of two columns
            that sum to one, or of one column that stays in [0, 1] and spreads over more than half of it. "logits"
            skips that check. "probability" reads the values as probabilities (of both classes, which sum to one, or of
            class 1) and returns their log-odds.

    Returns:
        (n,) float32, of tokens (n * T,): a torch tensor on the same device for a torch tensor, otherwise a numpy array.

    Raises:
        FreezeError: For any other number of columns, values that are not real numbers, and probabilities where logits
            are expected.

    >>> binary_margin([[0.0, 2.0], [1.5, 0.5]])
    array([ 2., -1.], dtype=float32)
    """
    margin, seen = read_margin(logits, positive=positive, head=head)
    refuse_probabilities([seen], head=head)
    return margin


class ValueRange(NamedTuple):
    """The range of the values of some rows, by which probabilities can be told from logits.

    `off_one` is how far the two values of a row are from summing to 1, at most; 0 for a single column. `binary` says
    that every value is 0 or 1.
    """

    n_rows: int
    n_columns: int
    low: float
    high: float
    off_one: float
    binary: bool


def read_margin(logits: Any, *, positive: int, head: Head) -> tuple[Any, ValueRange]:
    """Return the margins as `binary_margin` does, and the range of the values, for `refuse_probabilities` to judge."""
    check_head(head)
    check_class_id(positive)
    if is_batches(logits):
        parts = [read_margin(batch, positive=positive, head=head) for batch in logits]
        return _concatenate([margin for margin, _ in parts]), _joined([seen for _, seen in parts])
    columns = _two_dimensional(take_logits(logits))
    seen = _range_of(columns)
    if head == "probability":
        _require_probabilities(seen)
        columns = _log_odds_columns(columns)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite margins are valid, and NaN has a message of its own
        margin = columns[:, 1] - columns[:, 0] if columns.shape[1] == 2 else columns[:, 0]
        margin = margin if positive == 1 else -margin
        return margin.float() if isinstance(margin, torch.Tensor) else margin.astype(np.float32), seen


def check_head(head: Any) -> None:
    """Raise `FreezeError` unless this is one of the ways to read a model's outputs."""
    if not (isinstance(head, str) and head in _HEADS):
        raise FreezeError(f"Unknown head={short(head)}. Give one of {', '.join(map(repr, _HEADS))}.")


def refuse_probabilities(ranges: Sequence[ValueRange], *, head: Head) -> None:
    """Raise `FreezeError` when the rows of all these batches together are clearly not logits, and head is "auto"."""
    seen = _joined(ranges)
    if head != "auto" or seen.n_rows < _ROWS_TO_JUDGE or not _within_unit(seen.low, seen.high):
        return
    one_column = seen.n_columns == 1
    if not (seen.high - seen.low > 0.5 if one_column else seen.off_one < _ROUNDING_OF_A_SUM):
        return
    if seen.binary and one_column:
        raise FreezeError(
            f"All {seen.n_rows} rows are 0 or 1: these are class ids, not logits. Does preprocess_logits_for_metrics "
            'take the argmax? Pass the logits, or say head="logits" if they are logits after all.'
        )
    sums, last_layer = ("", "sigmoid") if one_column else (" and sum to one", "softmax")
    raise FreezeError(
        f"All {seen.n_rows} rows lie between {seen.low:.3g} and {seen.high:.3g}{sums}: these are probabilities, not "
        f"logits. Does the model end in a {last_layer}, or does preprocess_logits_for_metrics apply one? Say "
        'head="probability", or head="logits" if they are logits after all.'
    )


def as_numpy(values: Any) -> NDArray[Any]:
    """Return `values` as a numpy array; a bfloat16 tensor, a type that numpy lacks, as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float().numpy() if values.is_floating_point() else values.numpy())
    return np.asarray(values)


def read_array(values: Any, what: str) -> NDArray[Any]:
    """Return `values` as a numpy array. Raises `FreezeError`, with the name of `what` they are, where that fails."""
    if np.ma.is_masked(values):
        n_masked = int(np.ma.getmaskarray(values).sum())
        raise FreezeError(f"{what} are a masked array, and {n_masked} of its values are masked. Leave those rows out.")
    try:
        return as_numpy(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged rows; tensors without values
        raise FreezeError(f"{what} of type {type(values).__name__} cannot be read as an array: {error}") from error


def is_batches(values: Any) -> bool:
    """Return whether this is a list of batches: of arrays, or of what holds arrays."""
    return isinstance(values, list) and any(isinstance(v, tuple | Mapping) or getattr(v, "ndim", 0) for v in values)


def take_logits(output: Any) -> Any:
    """Pick the logits out of what a model returned: "logits" by name, else the first array of one or two dimensions.

    Where there is none, the first of three dimensions with a last one of 1 or 2 has those of tokens.
    """
    if isinstance(output, Mapping):
        if output.get("logits") is not None:
            return output["logits"]
        output = tuple(output.values())
    if not isinstance(output, tuple):
        return output
    for value in output:
        if 1 <= getattr(value, "ndim", 0) <= 2:
            return value
    for value in output:
        if is_of_tokens(value):
            return value
    found = [tuple(getattr(value, "shape", ())) or type(value).__name__ for value in output]
    raise FreezeError(f"None of {found} is an array of one or two dimensions. Pass the logits themselves.")


def is_of_tokens(logits: Any) -> bool:
    """Return whether this is an array of one or two logits per token, (n, T, 1) or (n, T, 2)."""
    return getattr(logits, "ndim", 0) == 3 and logits.shape[2] in (1, 2)


def _two_dimensional(values: Any) -> Any:
    """Return floating-point columns (n, 1) or (n, 2), of float32 at least."""
    columns: Any
    if isinstance(values, torch.Tensor):
        if values.is_meta or values.is_nested or values.is_quantized or values.layout != torch.strided:
            kind = "nested" if values.is_nested else "quantized" if values.is_quantized else values.layout
            raise FreezeError(f"Logits on {values.device} ({kind}) cannot be read. Give a dense tensor of numbers.")
        _refuse_dtype("b" if values.dtype == torch.bool else "c" if values.is_complex() else "f", values.dtype)
        columns = values.detach() if values.dtype == torch.float64 else values.detach().float()
    else:
        columns = _as_numbers(read_array(values, "Logits"))
        _refuse_dtype(columns.dtype.kind, columns.dtype)
        columns = columns if columns.dtype == "float64" else columns.astype(np.float32)
    if columns.ndim == 1:
        columns = columns[:, None]
    if is_of_tokens(columns):
        columns = columns.reshape(-1, columns.shape[2])
    if columns.ndim != 2 or columns.shape[1] not in (1, 2):
        raise FreezeError(
            f"Logits of shape {tuple(columns.shape)} are not binary. A binary head gives (n, 2), (n, 1) or (n,), "
            "or that of tokens (n, T, 2) or (n, T, 1); "
            "a single threshold cannot separate more than two classes."
        )
    return columns


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


def _require_probabilities(seen: ValueRange) -> None:
    if seen.low < -_ROUNDING or seen.high > 1.0 + _ROUNDING:
        raise FreezeError(
            f'head="probability" expects values in [0, 1], but they run from {seen.low:.7g} to {seen.high:.7g}.'
        )
    if seen.off_one > _ROUNDING_OF_A_SUM:
        raise FreezeError(
            f'head="probability" expects two values to sum to one, but a sum is off by {seen.off_one:.4g}. '
            "Pass the column of class 1 alone if the classes are judged one by one."
        )


def _log_odds_columns(probabilities: Any) -> Any:
    two = probabilities.shape[1] == 2
    if isinstance(probabilities, torch.Tensor):
        both = probabilities.double().clip(0.0, 1.0)
        return (both if two else torch.cat([1.0 - both, both], dim=1)).log()
    both = probabilities.astype(np.float64).clip(0.0, 1.0)
    with np.errstate(divide="ignore"):  # a probability of zero is a margin of minus infinity
        return np.log(both if two else np.concatenate([1.0 - both, both], axis=1))


def _range_of(columns: Any) -> ValueRange:
    n_rows, n_columns = columns.shape
    if not n_rows:
        return ValueRange(0, n_columns, 0.0, 0.0, 0.0, True)
    low, high = float(columns.min()), float(columns.max())
    if not _within_unit(low, high):  # these are logits, and the rest does not matter
        return ValueRange(n_rows, n_columns, low, high, 0.0, False)
    off_one = float(abs(columns.sum(1) - 1.0).max()) if n_columns == 2 else 0.0
    return ValueRange(n_rows, n_columns, low, high, off_one, bool(((columns == 0) | (columns == 1)).all()))


def _within_unit(low: float, high: float) -> bool:
    """Return whether values from `low` to `high` could be probabilities; those that are NaN could not."""
    return low >= -_ROUNDING and high <= 1.0 + _ROUNDING


def _joined(ranges: Sequence[ValueRange]) -> ValueRange:
    filled = [seen for seen in ranges if seen.n_rows] or list(ranges)
    if len({seen.n_columns for seen in filled}) > 1:
        raise FreezeError("Some batches of logits have one column and others have two. Give all of them in one form.")
    return ValueRange(
        n_rows=sum(seen.n_rows for seen in filled),
        n_columns=max(seen.n_columns for seen in filled),
        low=float(np.min([seen.low for seen in filled])),  # numpy's, as Python's loses NaN
        high=float(np.max([seen.high for seen in filled])),
        off_one=max(seen.off_one for seen in filled),
        binary=all(seen.binary for seen in filled),
    )


def _concatenate(margins: Sequence[Any]) -> Any:
    if all(isinstance(margin, torch.Tensor) for margin in margins):
        return torch.cat([margin.to(margins[0].device) for margin in margins])
    return np.concatenate([as_numpy(margin) for margin in margins])
