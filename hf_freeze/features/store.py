"""Features on disk: one folder per frontier, in parts of a few hundred rows, memory-mapped when read.

Rows are found by the digests of what the model was given. Every part is an Arrow file of `datasets`, and beside it a
JSON file with the checksum of both, written last and each under a temporary name first: what is there is whole. Nothing
is unpickled.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import xxhash
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock, Timeout

from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.row_digests import Keys
from hf_freeze.whole_files import whole_file, write_text

logger = logging.getLogger(__name__)

_PART = re.compile(r"part-(\d+)\.(?:arrow|json)")
PART_ROWS = 256
KEY_COLUMNS = ("digest", "digest_2")
RESIDENT_BYTES = 1 << 30
"""Features of up to this size are read into memory as a whole."""


@dataclass
class Column:
    """One stored tensor for some rows, concatenated: `values` is (positions in all, *rest), or (rows, *rest)."""

    values: torch.Tensor
    lengths: torch.Tensor | None = None

    def last(self, rows: int) -> torch.Tensor:
        """Return the values of the last rows."""
        return self.values[-rows if self.lengths is None else -int(self.lengths[-rows:].sum()) :]


@dataclass(frozen=True)
class _ColumnType:
    """What a column holds: per row, or per position of a row, a tensor of shape `rest`."""

    rest: tuple[int, ...]
    keeps_positions: bool
    dtype: torch.dtype


class FeatureStore:
    """A folder of features that lie under the digests of their rows."""

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self.description = dict(description)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from writing here; wait where one is."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock")
            try:
                lock.acquire(timeout=1)
            except Timeout:
                logger.warning("Another run computes the features in %s; waiting for it.", self.folder)
                lock.acquire()
        except OSError as error:
            raise CacheRefused(f"its folder {str(self.folder)!r} cannot be written to ({error})") from error
        try:
            yield
        finally:
            lock.release()

    def holds(self, keys: Keys) -> bool:
        """Tell whether all rows seem to be there; checksums are not verified."""
        return not len(self._absent(keys, [part for part in self._numbers() if self._are_files(part)]))

    def missing(self, keys: Keys) -> list[int]:
        """Return the places in `keys` of the first of each row that is not there; delete what is damaged or left over.

        Call it only while holding the lock.
        """
        try:
            for unfinished in self.folder.glob(".*.tmp"):  # of processes that were killed
                unfinished.unlink()
            whole = [part for part in self._numbers() if self._is_whole(part)]
        except OSError as error:
            raise CacheRefused(f"{str(self.folder)!r} could not be written to ({error})") from error
        absent = self._absent(keys, whole)
        _, first = np.unique(keys[absent], axis=0, return_index=True)
        return sorted(absent[first].tolist())

    @property
    def next_part(self) -> int:
        """The number of the next part to write."""
        return max(self._numbers(), default=-1) + 1

    def write(self, part: int, keys: Keys, columns: Sequence[Column]) -> None:
        """Write a part. Raises `CacheRefused` where the disk does not take it; nothing half written stays."""
        path, note = self._paths(part)
        content: dict[str, Any] = {
            "columns": [
                [list(column.values.shape[1:]), column.lengths is not None, str(column.values.dtype)[6:]]
                for column in columns
            ],
        }
        try:
            self._describe()
            with whole_file(path) as unfinished:
                _write_arrow(unfinished, keys, columns)
                content["checksum"] = _checksum(unfinished, content)
            write_text(note, json.dumps(content))
        except (OSError, pa.ArrowException) as error:
            raise CacheRefused(f"{str(self.folder)!r} could not be written to ({error})") from error

    def discard(self, parts: Iterable[int]) -> None:
        """Delete parts."""
        for part in parts:
            for file in reversed(self._paths(part)):
                file.unlink(missing_ok=True)

    def read(self, keys: Keys, device: torch.device) -> "Features":
        """Open the parts that hold any of these rows. Raises `CacheRefused` where a row is missing."""
        tables, types, found, unread = [], [], [], ""
        for part in self._numbers():
            try:
                table, note = self._table(part), json.loads(self._paths(part)[1].read_text())
                held = _keys(table)
                if _contained(keys, held).any():
                    types = [_ColumnType(tuple(rest), at, getattr(torch, dtype)) for rest, at, dtype in note["columns"]]
                    tables.append(table)
                    found.append(held)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
                # Another run may be writing it just now, for rows of its own.
                unread = f" (part {part} cannot be read: {error})"
        if not tables:
            raise CacheRefused(f"{str(self.folder)!r} holds none of its rows{unread}")
        columns = []
        for index, type_ in enumerate(types):
            flat = [_flat(table.column(f"feature{index}"), positions=type_.keeps_positions) for table in tables]
            counts = np.concatenate([count for _, count in flat])
            columns.append(_ColumnReader(type_, [values for values, _ in flat], counts, device))
        features = Features(np.concatenate(found), columns)
        if features.places(keys) is None:
            raise CacheRefused(f"{str(self.folder)!r} does not hold all of its rows{unread}")
        return features

    def files(self) -> list[Path]:
        """Return the Arrow file of each part."""
        return [self._paths(part)[0] for part in self._numbers()]

    def _numbers(self) -> list[int]:
        paths = self.folder.glob("part-*.*") if self.folder.is_dir() else []
        found = (_PART.fullmatch(path.name) for path in paths)
        return sorted({int(match[1]) for match in found if match})

    def _paths(self, part: int) -> tuple[Path, Path]:
        return self.folder / f"part-{part:05d}.arrow", self.folder / f"part-{part:05d}.json"

    def _are_files(self, part: int) -> bool:
        return all(path.is_file() for path in self._paths(part))  # opening a pipe would wait for who writes to it

    def _table(self, part: int) -> pa.Table:
        return Dataset.from_file(str(self._paths(part)[0])).data.table

    def _absent(self, keys: Keys, parts: Iterable[int]) -> npt.NDArray[np.int64]:
        held = [np.empty((0, 2), np.int64)]
        for part in parts:
            with suppress(OSError, ValueError, KeyError, pa.ArrowException):
                held.append(_keys(self._table(part)))
        return np.flatnonzero(~_contained(keys, np.concatenate(held)))

    def _is_whole(self, part: int) -> bool:
        path, note = self._paths(part)
        try:
            content = json.loads(note.read_text()) if self._are_files(part) else {}
            if content.pop("checksum") == _checksum(path, content):
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        logger.warning("%s is damaged; its features are computed again.", path)
        self.discard([part])
        return False

    def _describe(self) -> None:
        path = self.folder / "features.json"
        if not path.exists():
            write_text(path, json.dumps(self.description, indent=2, default=str))


class Features:
    """Stored features, by the digests of their rows."""

    def __init__(self, keys: Keys, columns: "list[_ColumnReader]") -> None:
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._keys = keys[self._order]
        self._sorted = np.ascontiguousarray(self._keys[:, 0])
        self._columns = columns

    def places(self, keys: Keys) -> torch.Tensor | None:
        """Return where these rows are, or None if any of them is not there."""
        found = np.minimum(self._sorted.searchsorted(keys[:, 0]), len(self._keys) - 1)
        return None if np.count_nonzero(self._keys[found] != keys) else torch.from_numpy(self._order[found])

    def absent(self, keys: Keys) -> int:
        """Return how many of these rows are not there."""
        return int((~_contained(keys, self._keys)).sum())

    def rows(self, column: int, places: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return a column for these rows: (rows, *rest), or, with the mask of their positions, (rows, length, *rest).

        Padding repeats the nearest position that is none. Raises `CacheRefused` where rows have other lengths than
        when they were stored.
        """
        return self._columns[column].take(places, mask)


class _ColumnReader:
    def __init__(
        self,
        type_: _ColumnType,
        chunks: list[npt.NDArray[Any]],
        lengths: npt.NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self.type = type_
        self._lengths = torch.from_numpy(lengths)
        self._starts = self._lengths.cumsum(0) - self._lengths
        tensors = [_as_tensor(chunk, type_) for chunk in chunks]
        bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if bytes_ <= _room(device):
            tensors = [torch.cat(tensors).to(device)]
        self._chunks = tensors
        self._bounds = torch.tensor([0, *(len(tensor) for tensor in tensors)]).cumsum(0)

    def take(self, places: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if not self.type.keeps_positions:
            return self._elements(places)
        assert mask is not None
        mask = mask.cpu()
        if not torch.equal(mask.sum(1), self._lengths[places]):
            raise CacheRefused("rows have other lengths than when their features were stored")
        inside = (mask.cumsum(1) - 1).clamp(min=0)
        return self._elements(self._starts[places, None] + inside)

    def _elements(self, index: torch.Tensor) -> torch.Tensor:
        if len(self._chunks) == 1:
            held = self._chunks[0]
            # A tenth of the time of `held[index]`.
            return held.index_select(0, index.to(held.device).flatten()).view(*index.shape, *self.type.rest)
        values = torch.empty((*index.shape, *self.type.rest), dtype=self.type.dtype)
        chunk = torch.bucketize(index, self._bounds[1:], right=True)
        for number in set(chunk.flatten().tolist()):
            here = chunk == number
            values[here] = self._chunks[number][index[here] - self._bounds[number]]
        return values


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return RESIDENT_BYTES


def _write_arrow(path: Path, keys: Keys, columns: Sequence[Column]) -> None:
    arrays: dict[str, pa.Array] = {name: pa.array(half) for name, half in zip(KEY_COLUMNS, keys.T, strict=True)}
    for index, column in enumerate(columns):
        flat = pa.array(_as_numpy(column.values).reshape(-1))
        values = pa.FixedSizeListArray.from_arrays(flat, max(column.values[0].numel(), 1))
        if column.lengths is not None:
            offsets = np.concatenate([[0], column.lengths.numpy().cumsum()])
            values = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)
        arrays[f"feature{index}"] = values
    table = pa.table(arrays)
    with ArrowWriter(path=str(path), schema=table.schema) as writer:
        writer.write_table(table, writer_batch_size=len(keys))
        writer.finalize()


def _flat(column: pa.ChunkedArray, *, positions: bool) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    values, counts = [], []
    for chunk in column.chunks:
        counts.append(
            np.diff(chunk.offsets.to_numpy()).astype(np.int64) if positions else np.ones(len(chunk), np.int64)
        )
        inner = chunk.flatten() if positions else chunk
        values.append(inner.flatten().to_numpy(zero_copy_only=False))
    return (values[0] if len(values) == 1 else np.concatenate(values)), np.concatenate(counts)


_AS_INTEGERS = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}
"""What Arrow has no type for, read as."""


def _as_numpy(values: torch.Tensor) -> npt.NDArray[Any]:
    values = values.detach().cpu().contiguous()
    return values.view(_AS_INTEGERS.get(values.dtype, values.dtype)).numpy()


def _as_tensor(chunk: npt.NDArray[Any], type_: _ColumnType) -> torch.Tensor:
    with warnings.catch_warnings():
        # Memory-mapped for reading; nobody writes to it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        values = torch.from_numpy(chunk)
    return values.view(type_.dtype).view(-1, *type_.rest)


def _checksum(path: Path, note: Mapping[str, Any]) -> str:
    digest = xxhash.xxh3_128(json.dumps(note, sort_keys=True).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _keys(table: pa.Table) -> Keys:
    return np.stack([table.column(name).to_numpy() for name in KEY_COLUMNS], axis=1)


def _contained(keys: Keys, held: Keys) -> npt.NDArray[np.bool_]:
    if not len(held):
        return np.zeros(len(keys), bool)
    held = held[np.argsort(held[:, 0], kind="stable")]
    found = np.searchsorted(held[:, 0], keys[:, 0]).clip(max=len(held) - 1)
    same: npt.NDArray[np.bool_] = (held[found] == keys).all(axis=1)
    return same
