"""Features on disk: one folder per data set and frontier, in parts of a few hundred rows, memory-mapped when read.

Every part is an Arrow file of `datasets`, and beside it a JSON file with its checksum, written last and each under a
temporary name first: what is there is whole. Nothing is unpickled.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

logger = logging.getLogger(__name__)

PART_ROWS = 256
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
class ColumnType:
    """What a column holds: per row, or per position of a row, a tensor of shape `rest`."""

    rest: tuple[int, ...]
    keeps_positions: bool
    dtype: torch.dtype


class FeatureStore:
    """The folder of the features of `order`, which lists all rows of a data set."""

    def __init__(self, folder: Path, order: npt.NDArray[np.int64], description: Mapping[str, Any]) -> None:
        self.folder = folder
        self.order = order
        self.description = dict(description)

    @property
    def parts(self) -> int:
        """How many parts there are when all is stored."""
        return -(-len(self.order) // PART_ROWS)

    @property
    def files(self) -> list[Path]:
        """The Arrow file of each part."""
        return [self._paths(part)[0] for part in range(self.parts)]

    def rows_of(self, part: int) -> npt.NDArray[np.int64]:
        """Return the row numbers that a part holds."""
        return self.order[part * PART_ROWS : (part + 1) * PART_ROWS]

    @property
    def seems_complete(self) -> bool:
        """Whether all parts are there, by their names."""
        return all(note.exists() for _, note in map(self._paths, range(self.parts)))

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

    def missing(self) -> list[int]:
        """Return the parts that are not there, or not as they were written; the latter are deleted."""
        return [part for part in range(self.parts) if not self._is_whole(part)]

    def write(self, part: int, columns: Sequence[Column]) -> None:
        """Write a part. Raises `CacheRefused` where the disk does not take it; nothing half written stays."""
        path, note = self._paths(part)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._describe()
            _write_arrow(temporary, self.rows_of(part), columns)
            content = {
                "checksum": _checksum(temporary),
                "columns": [
                    [list(column.values.shape[1:]), column.lengths is not None, str(column.values.dtype)[6:]]
                    for column in columns
                ],
            }
            temporary.replace(path)
            _write_text(note, json.dumps(content))
        except (OSError, pa.ArrowException) as error:
            raise CacheRefused(f"{str(self.folder)!r} could not be written to ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, device: torch.device) -> "Features":
        """Open all parts. Raises `CacheRefused` where one is missing."""
        types: list[ColumnType] = []
        chunks: list[list[npt.NDArray[Any]]] = []
        lengths: list[list[npt.NDArray[np.int64]]] = []
        for part in range(self.parts):
            path, note = self._paths(part)
            try:
                types = [
                    ColumnType(tuple(rest), positions, getattr(torch, dtype))
                    for rest, positions, dtype in json.loads(note.read_text())["columns"]
                ]
                table = Dataset.from_file(str(path)).data.table
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                raise CacheRefused(f"part {part} of {str(self.folder)!r} cannot be read ({error})") from error
            for index in range(len(types)):
                values, counts = _flat(table.column(f"feature{index}"), positions=types[index].keeps_positions)
                for sink, value in ((chunks, values), (lengths, counts)):
                    sink.extend([] for _ in range(index + 1 - len(sink)))
                    sink[index].append(value)
        return Features(
            self.order,
            [
                _ColumnReader(type_, values, np.concatenate(counts), device)
                for type_, values, counts in zip(types, chunks, lengths, strict=True)
            ],
        )

    def _paths(self, part: int) -> tuple[Path, Path]:
        return self.folder / f"part-{part:05d}.arrow", self.folder / f"part-{part:05d}.json"

    def _is_whole(self, part: int) -> bool:
        path, note = self._paths(part)
        if not note.exists():
            return False
        try:
            if json.loads(note.read_text())["checksum"] == _checksum(path):
                return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        logger.warning("%s is damaged; its features are computed again.", path)
        for file in (note, path):
            file.unlink(missing_ok=True)
        return False

    def _describe(self) -> None:
        path = self.folder / "features.json"
        if not path.exists():
            _write_text(path, json.dumps(self.description, indent=2, default=str))


class Features:
    """Stored features, by row number."""

    def __init__(self, order: npt.NDArray[np.int64], columns: "list[_ColumnReader]") -> None:
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        self._place = torch.from_numpy(place)
        self._columns = columns

    @property
    def types(self) -> list[ColumnType]:
        """What each column holds."""
        return [column.type for column in self._columns]

    def rows(self, column: int, rows: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return a column for these rows: (rows, *rest), or, with the mask of their positions, (rows, length, *rest).

        Padding repeats the nearest position that is none. Raises `CacheRefused` where rows have other lengths than
        when they were stored.
        """
        reader = self._columns[column]
        return reader.take(self._place[rows.cpu()], mask)


class _ColumnReader:
    def __init__(
        self,
        type_: ColumnType,
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
            return self._chunks[0][index.to(self._chunks[0].device)]
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


def _write_arrow(path: Path, rows: npt.NDArray[np.int64], columns: Sequence[Column]) -> None:
    arrays: dict[str, pa.Array] = {"row": pa.array(rows)}
    for index, column in enumerate(columns):
        flat = pa.array(_as_numpy(column.values).reshape(-1))
        values = pa.FixedSizeListArray.from_arrays(flat, max(column.values[0].numel(), 1))
        if column.lengths is not None:
            offsets = np.concatenate([[0], column.lengths.numpy().cumsum()])
            values = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), values)
        arrays[f"feature{index}"] = values
    table = pa.table(arrays)
    with ArrowWriter(path=str(path), schema=table.schema) as writer:
        writer.write_table(table, writer_batch_size=len(rows))
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


def _as_tensor(chunk: npt.NDArray[Any], type_: ColumnType) -> torch.Tensor:
    with warnings.catch_warnings():
        # Memory-mapped for reading; nobody writes to it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        values = torch.from_numpy(chunk)
    return values.view(type_.dtype).view(-1, *type_.rest)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
