"""Batches of a data set by row number, as the model gets them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from hf_freeze.features.errors import CacheRefused

ROWS = "hf_freeze_rows"
"""The key under which a batch carries the numbers of its rows."""


@dataclass(frozen=True)
class Batch:
    """Model inputs, with what tells rows and lengths."""

    tensors: Mapping[str, Any]

    def inputs(self) -> dict[str, Any]:
        """Return a copy that may be popped from."""
        return dict(self.tensors)

    @property
    def rows(self) -> int:
        """The number of rows."""
        for value in self.tensors.values():
            if isinstance(value, torch.Tensor) and value.dim():
                return len(value)
        raise CacheRefused(f"the batch, of {sorted(self.tensors)}, holds no tensor with rows")

    @property
    def sizes(self) -> dict[str, int]:
        """`rows`, and per input of two dimensions its length; those that have a mask come first."""
        lengths = {
            name: value.shape[1]
            for name, value in self.tensors.items()
            if isinstance(value, torch.Tensor) and value.dim() == 2 and not value.is_floating_point()
        }
        first = sorted(lengths, key=lambda name: (name != "attention_mask", not _has_mask(name)))
        return {"": self.rows} | {name: lengths[name] for name in first}

    def mask(self, name: str) -> torch.Tensor:
        """Where the input `name`, (rows, length), is not padding."""
        value: torch.Tensor = self.tensors[name]
        if "attention_mask" in name:
            return value != 0
        if name == "labels":
            return value != -100
        raise CacheRefused(f"the inputs have no attention mask that tells the rows of {name!r} from their padding")


def _has_mask(name: str) -> bool:
    return "attention_mask" in name or name == "labels"


@dataclass
class Source:
    """A map-style data set, and how its rows become model inputs."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yield the rows of each list of row numbers as one batch."""
        loader: Iterable[Any] = DataLoader(
            self.dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
            collate_fn=self.collate,
            num_workers=self.workers,
        )
        for collated in loader:
            collated = dict(collated)
            collated.pop(ROWS, None)
            yield Batch(self.prepare(collated))

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return these rows as one batch."""
        return next(self.batches([list(map(int, rows))]))


class Numbered(Dataset[Any]):
    """A data set whose rows know their numbers."""

    def __init__(self, dataset: Any, number: int) -> None:
        self.dataset = dataset
        self.number = number

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> "NumberedRow":
        return NumberedRow(self.dataset[row], (self.number, int(row)))

    def __getitems__(self, rows: list[int]) -> list["NumberedRow"]:
        if hasattr(self.dataset, "__getitems__"):
            values = self.dataset.__getitems__(rows)
        else:
            values = [self.dataset[row] for row in rows]
        return [NumberedRow(value, (self.number, int(row))) for value, row in zip(values, rows, strict=True)]


class NumberedRow(dict[str, Any]):
    """A row, and the (data set, row) that it is."""

    def __init__(self, values: Mapping[str, Any], number: tuple[int, int]) -> None:
        super().__init__(values)
        self.number = number


class NumberingCollator:
    """A collator that hands the numbers of the rows on, (rows, 2) under `ROWS`."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate([dict(row) if isinstance(row, NumberedRow) else row for row in rows])
        if all(isinstance(row, NumberedRow) for row in rows) and isinstance(batch, Mapping):
            batch = {**batch, ROWS: torch.tensor([row.number for row in rows])}
        return batch
