"""Digests of rows as the model gets them, so that equal digests mean equal features, whatever made the rows.

A row is all that the inputs hold for it, bit by bit, without its padding: digests are the same in every batch. Labels
are digested apart from the rest, as most models read them behind the frozen part. What has no rows counts for every
row.
"""

import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from hf_freeze.label_columns import IGNORED_LABEL

WIDTH = 5
"""Columns of `read_as`: two of the inputs, two of the labels, the length."""

_MASK = "attention_mask"
_ODD = np.int64(-7046029254386353131)
_UNKNOWN_TO_NUMPY = {torch.bfloat16}
_PADDED = ("input_ids", "token_type_ids", "inputs_embeds", "input_values", "input_features", "bbox")
"""Names, or their ends, of inputs that nobody reads where they are masked: their padding may be any value."""

_NEVER_READ = ("position_ids", _MASK)

_hash = xxhash.xxh3_128_digest

Keys = npt.NDArray[np.int64]


@dataclass
class _Span:
    """Where rows of `length` positions begin and end; what is `outside` is padding, and None where there is none."""

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    length: int
    outside: npt.NDArray[np.bool_] | None


def row_count(inputs: Mapping[str, Any]) -> int:
    """Return the number of rows of a batch: the length of its first tensor. Raises `ValueError` where there is none."""
    for value in inputs.values():
        if isinstance(value, torch.Tensor) and value.dim():
            return len(value)
    raise ValueError(f"the batch, of {sorted(inputs)}, holds no tensor with rows")


def digest_rows(
    inputs: Mapping[str, Any], labels: Collection[str] = ("labels",), *, set_number: int = 0
) -> torch.Tensor:
    """Digest the rows of a collated batch, of int64.

    An input that is as wide as the mask may be so by chance, and its zeros no padding. So there are the `WIDTH` columns
    of `read_as`, in which such inputs have a fixed width; two of the inputs in which they are padded with the rest; the
    number of positions in front that are padding; and the number of the data set.
    """
    rows = row_count(inputs)
    flat = dict(_leaves(inputs))
    spans = _spans_of_masks(flat, rows)
    lengths = [span.stops - span.starts for span in spans.values()]
    fixed = of_labels = padded = np.zeros((rows, 2), np.int64)
    for name in [name for name in flat if name in labels]:
        span = _span_of_labels(flat[name])
        of_labels = of_labels + _digest(name, flat.pop(name), rows, span)
        lengths += [] if span is None else [span.stops]
    for name, value, span in _interleaved(flat, spans):
        found = _digest(name, value, rows, span)
        padded = padded + found
        fixed = fixed + (_digest(name, value, rows, None) if span is not None and name in flat else found)
    digests = np.empty((rows, WIDTH + 4), np.int64)
    digests[:, :2], digests[:, 2:4], digests[:, WIDTH : WIDTH + 2] = fixed, of_labels, padded
    digests[:, WIDTH - 1] = lengths[0] if len(lengths) == 1 else np.max(lengths, axis=0) if lengths else 0
    digests[:, -2] = sum(span.starts for span in spans.values())
    digests[:, -1] = set_number
    return torch.from_numpy(digests)


def read_as(digests: Keys, *, fixed_widths: bool) -> Keys:
    """Return digests, (rows, `WIDTH`), in which inputs as wide as the mask count as of fixed width, or as padded."""
    return digests[:, :WIDTH] if fixed_widths else digests[:, [WIDTH, WIDTH + 1, *range(2, WIDTH)]]


def padded_in_front(digests: Keys) -> int:
    """Return how many rows have padding in front."""
    return int(np.count_nonzero(digests[:, -2]))


def set_number_of(digests: Keys) -> int:
    """Return the number of the data set that a batch comes from."""
    return int(digests[0, -1])


def keys_of(digests: Keys, *, with_labels: bool) -> Keys:
    """Return what tells rows apart, (rows, 2)."""
    keys: Keys = digests[:, :2] ^ (digests[:, 2:4] * _ODD) if with_labels else np.ascontiguousarray(digests[:, :2])
    return keys


def _leaves(inputs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            value = value.contiguous().view(torch.int16) if value.dtype in _UNKNOWN_TO_NUMPY else value
            yield f"{prefix}{name}", value.numpy(force=True)
        else:
            yield f"{prefix}{name}", value


def _spans_of_masks(flat: Mapping[str, Any], rows: int) -> dict[str, _Span]:
    """Prefix of a name, such as `decoder_` -> where the rows of the inputs with this prefix begin and end."""
    spans = {}
    for name, value in flat.items():
        prefix = name.removesuffix(_MASK)
        if prefix == name or not isinstance(value, np.ndarray) or value.ndim != 2 or len(value) != rows:
            continue
        # `global_attention_mask` tells no padding: nothing else has its prefix.
        if prefix and not any(other.startswith(prefix) for other in flat if other != name):
            continue
        spans[prefix] = _span_of_mask(value != 0)
    return spans


def _span_of_mask(kept: npt.NDArray[np.bool_]) -> _Span:
    rows, length = kept.shape
    starts, stops = np.zeros(rows, np.int64), np.full(rows, length, np.int64)
    count = np.count_nonzero(kept)
    if count == kept.size:
        return _Span(starts, stops, length, None)
    if np.count_nonzero(kept[:, 0]) == rows:
        stops -= kept[:, ::-1].argmax(axis=1)
    else:
        some = kept.any(axis=1)
        if (some & ~kept[:, -1]).any():
            stops -= kept[:, ::-1].argmax(axis=1)
        else:
            starts = kept.argmax(axis=1)
        stops[~some] = 0
    if count == (stops - starts).sum():  # no hole within
        return _Span(starts, stops, length, ~kept)
    places = np.arange(length)
    return _Span(starts, stops, length, (places < starts[:, None]) | (places >= stops[:, None]))


def _span_of(name: str, value: Any, spans: Mapping[str, _Span]) -> _Span | None:
    """Return where an input is not padding; None where none of it is sure to be."""
    prefix = max((prefix for prefix in spans if name.startswith(prefix)), key=len, default=None)
    if prefix is None or not isinstance(value, np.ndarray) or (name.startswith("decoder_") and not prefix):
        return None
    span = spans[prefix]
    if value.shape[:2] != (len(span.starts), span.length):
        return None
    if span.outside is None or name.endswith(_NEVER_READ):
        return span
    padding = value[span.outside]
    # Another input may be as long as the mask by chance, and be read there: only zeros are no loss whatever they mean.
    fill = padding[:1] if _is_padded(name) else 0
    return None if np.count_nonzero(padding != fill) else span


def _is_padded(name: str) -> bool:
    return name.endswith(_PADDED + _NEVER_READ)


def _interleaved(flat: Mapping[str, Any], spans: Mapping[str, _Span]) -> Iterator[tuple[str, Any, _Span | None]]:
    """Yield the inputs with their spans; those of one span and type as one, which takes one hash for a row of all."""
    together: dict[tuple[int, Any], list[str]] = {}
    for name, value in flat.items():
        span = _span_of(name, value, spans)
        if span is None or value.ndim != 2 or not _is_padded(name):
            yield name, value, span
        else:
            together.setdefault((id(span), value.dtype), []).append(name)
    known = {id(span): span for span in spans.values()}
    for (key, _), names in together.items():
        names.sort()
        yield str(names), _stacked([flat[name] for name in names]), known[key]


def _stacked(values: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Do what `np.stack(values, axis=2)` does, in half of its time."""
    together = np.empty((*values[0].shape, len(values)), values[0].dtype)
    for place, value in enumerate(values):
        together[:, :, place] = value
    return together


def _span_of_labels(value: Any) -> _Span | None:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "i" or not value.shape[1]:
        return None
    kept = value != IGNORED_LABEL
    stops = np.where(kept.any(axis=1), kept.shape[1] - kept[:, ::-1].argmax(axis=1), 0)
    return _Span(np.zeros(len(kept), np.int64), stops, kept.shape[1], None)


def _digest(name: str, value: Any, rows: int, span: _Span | None) -> Keys:
    """Digest an input: (rows, 2), or (1, 2) for one that is not per row. Digests of all inputs are added up."""
    if isinstance(value, np.ndarray) and value.ndim and len(value) == rows and value.dtype.kind in "biufc":
        shape = value.shape[1 if span is None else 2 :]
        seed = _seed(f"{name} {value.dtype.str} {shape}")
        content, width = np.ascontiguousarray(value).tobytes(), value.nbytes // rows
        if span is None:
            found = [_hash(content[row * width : row * width + width], seed) for row in range(rows)]
        else:
            of_position, first = width // max(span.length, 1), np.arange(rows) * width
            begins, ends = first + span.starts * of_position, first + span.stops * of_position
            pieces = zip(begins.tolist(), ends.tolist(), strict=True)
            found = [_hash(content[begin:end], seed) for begin, end in pieces]
    elif isinstance(value, list | tuple) and len(value) == rows:
        seed = _seed(f"{name} list")
        found = [_hash(_bytes_of(part), seed) for part in value]
    else:
        found = [_hash(_bytes_of(value), _seed(f"{name} shared"))]
    return np.frombuffer(b"".join(found), np.int64).reshape(-1, 2)


@cache
def _seed(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        value = dict(_leaves({"": value}))[""]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return f"{value.dtype} {value.shape};".encode() + value.tobytes()
    if isinstance(value, list | tuple) and any(isinstance(part, torch.Tensor | list | tuple) for part in value):
        parts = [_bytes_of(part) for part in value]
        return b"".join(b"%d:%s" % (len(part), part) for part in parts)
    return pickle.dumps(value)
