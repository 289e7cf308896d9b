"""Batches of a data set by row number, as the model gets them."""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.row_digests import Keys, digest_rows, keys_of, read_as, row_count
from hf_freeze.label_columns import IGNORED_LABEL

ROWS = "hf_freeze_rows"
"""The key under which a batch carries the digests of its rows, and the number of its set."""


@dataclass(frozen=True)
class Batch:
    """Model inputs, with what tells rows and lengths, and the digests of the rows where they were taken."""

    tensors: Mapping[str, Any]
    digests: Keys | None = None

    def inputs(self) -> dict[str, Any]:
        """Return a copy, which a model may pop entries from."""
        return dict(self.tensors)

    def keys(self, *, with_labels: bool) -> Keys | None:
        """Return what tells the rows apart, (rows, 2), where their digests were taken."""
        return None if self.digests is None else keys_of(self.digests, with_labels=with_labels)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return row_count(self.tensors)

    @cached_property
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
        """Find where the input `name`, (rows, length), is not padding."""
        value: torch.Tensor = self.tensors[name]
        if "attention_mask" in name:
            return value != 0
        if name == "labels":
            return value != IGNORED_LABEL
        raise CacheRefused(f"the inputs have no attention mask that tells the rows of {name!r} from their padding")

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How many positions of each row are not padding, (inputs with a mask, rows)."""
        names = [name for name in self.sizes if name]
        known = [name for name in names if _has_mask(name)]
        kept = [self.mask(name) for name in known] or [self.tensors[name] != 0 for name in names]  # a guess
        masks = [mask.sum(1).cpu().numpy() for mask in kept]
        return np.stack(masks) if masks else np.zeros((1, self.rows), np.int64)

    @property
    def padded_on_the_left(self) -> bool:
        """Whether a mask begins with padding."""
        masks = [name for name in self.sizes if "attention_mask" in name]
        return any(bool((~self.mask(name)[:, :1] & self.mask(name).any(1, keepdim=True)).any()) for name in masks)


def _has_mask(name: str) -> bool:
    return "attention_mask" in name or name == "labels"


@dataclass(frozen=True)
class Digesting:
    """A collator that adds, under `ROWS`, the digests of the rows and the number of the data set.

    A batch that cannot be digested is left as it is: no features are used for it.
    """

    collate: Callable[[list[Any]], Any]
    labels: Collection[str] = ("labels",)
    number: int = 0

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        if not isinstance(batch, Mapping):
            return batch
        try:
            digests = digest_rows(batch, self.labels, set_number=self.number)
            if not isinstance(batch, MutableMapping):
                return {**batch, ROWS: digests}
            batch[ROWS] = digests
        except Exception:  # whatever a batch holds or refuses to hold, the run without features could go on
            pass
        return batch


@dataclass(frozen=True)
class _OnCopies:
    """A collator that gets copies of the rows, since some collators take entries out of rows or write into them."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, rows: list[Any]) -> Any:
        with suppress(Exception):  # of rows that cannot be copied, such as open files
            rows = [copy.deepcopy(row) for row in rows]  # one by one: the same row may be there twice
        return self.collate(rows)


def without_digests(batch: Mapping[str, Any]) -> tuple[Any, Keys | None]:
    """Return a batch without its digests, in its own type where that can drop a key, and the digests."""
    found = batch.get(ROWS)
    if found is None:
        return batch, None
    digests: Keys = found.numpy(force=True)
    try:
        del batch[ROWS]  # type: ignore[attr-defined]  # of a mapping that cannot, as `ModelOutput`, a copy is made
    except Exception:
        return {name: value for name, value in batch.items() if name != ROWS}, digests
    return batch, digests


@dataclass
class Source:
    """A map-style data set, and how its rows become model inputs; `fixed_widths` as for `read_as`."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    prepare: Callable[[dict[str, Any]], dict[str, Any]]
    workers: int = 0
    fixed_widths: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def held(self) -> object:
        """What may hold random generators beside the data set: the user's own collator."""
        return getattr(self.collate, "collate", self.collate)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yield the rows of each list of row numbers as one batch."""
        for batch in self.collated(batches):
            yield replace(batch, tensors=self.prepare(batch.inputs()))

    def collated(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yield the same, where they were collated: not on the model's device."""
        loader: Iterable[Any] = DataLoader(
            self.dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists will do
            # Of `datasets`, every reading makes rows anew.
            collate_fn=self.collate if isinstance(self.dataset, Dataset) else _OnCopies(self.collate),
            num_workers=self.workers,
        )
        for rows, collated in zip(batches, loader, strict=False):
            if not isinstance(collated, Mapping):
                raise CacheRefused(f"its batches are not mappings but {type(collated).__name__}")
            inputs, digests = without_digests(dict(collated))
            if digests is not None and len(digests) != len(rows):
                raise CacheRefused(f"its collator makes {len(digests)} rows out of {len(rows)}")
            yield Batch(inputs, None if digests is None else read_as(digests, fixed_widths=self.fixed_widths))

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return these rows as one batch."""
        return next(self.batches([list(map(int, rows))]))
