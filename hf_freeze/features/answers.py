"""What is returned in place of the calls of the frozen prefix of a model, and which of their outputs are stored."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import CallKey, Origin
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.partly_stored import StandIn, Whole
from hf_freeze.features.shapes import Dim, Layout


@dataclass(frozen=True)
class Stored:
    """A tensor that the rest of the model reads, row by row: column `column` of the store.

    `is_watched`: reads of what is not stored are noticed and computed, see `StandIn`; not where padding is picked, as
    no gradient reaches it. `keeps_off_padding`: the rest of the model was seen to read rows without their padding.
    """

    column: int
    layout: Layout
    dtype: torch.dtype
    device: torch.device
    is_watched: bool
    keeps_off_padding: bool

    def standing_in(self, filler: torch.Tensor, whole: Whole, batch: Batch) -> torch.Tensor:
        """Return what the rest of the model gets: `filler` has what is stored in its places."""
        if not self.is_watched:
            return filler
        return StandIn.of(filler, whole, known=partial(self.layout.known, batch), is_loose=self.keeps_off_padding)


@dataclass(frozen=True)
class Passed:
    """A tensor that came in as the `position`-th of the call's arguments and goes out as it is."""

    position: int


@dataclass(frozen=True)
class Computed:
    """A tensor that the rest reads but that has no rows, such as a position bias: the call is made to compute it."""


@dataclass(frozen=True)
class Unread:
    """A tensor of this shape that nothing reads."""

    dims: tuple[Dim, ...]
    nothing: torch.Tensor = field(compare=False)

    def standing_in(self, whole: Whole, batch: Batch) -> torch.Tensor:
        """Return a tensor of this shape for the rest of the model, computed only if something reads it after all."""
        return StandIn.of(self.nothing.expand(*(dim.at(batch.sizes) for dim in self.dims)), whole)


@dataclass(frozen=True)
class Other:
    """Anything but a tensor: flags and numbers stay as they were, objects such as a key-value cache become None."""

    value: Any


Leaf = Stored | Passed | Computed | Unread | Other


@dataclass(frozen=True)
class Answer:
    """What is returned in place of the output of one call; `given` says where its arguments come from."""

    leaves: tuple[Leaf, ...]
    paths: tuple[str, ...]
    given: Mapping[int | str, Origin]
    spec: pytree.TreeSpec = field(compare=False, repr=False)

    @cached_property
    def is_computed(self) -> bool:
        """Whether the call must be made."""
        return any(isinstance(leaf, Computed) for leaf in self.leaves)

    def refuse_others(self, key: CallKey, leaves: Sequence[Any]) -> None:
        """Raise `CacheRefused` where the call returns more or fewer values than this, or another flag or number."""
        if len(leaves) != len(self.leaves):
            raise CacheRefused(f"{key} returns {len(self.leaves)} values for some rows and {len(leaves)} for others")
        for leaf, value in zip(self.leaves, leaves, strict=True):
            if isinstance(leaf, Other) and leaf.value is not None and leaf.value != value:
                raise CacheRefused(f"{key} returns {leaf.value!r} for some rows and {value!r} for others")


@dataclass(frozen=True)
class Frontier:
    """What every call of the frozen prefix returns, and which of these tensors are stored.

    Calls are counted among those of the modules `names`; `usual` are all that were seen.
    """

    answers: Mapping[CallKey, Answer]
    names: frozenset[str]
    usual: frozenset[CallKey] = frozenset()

    @property
    def columns(self) -> dict[int, tuple[CallKey, int, Layout]]:
        """Column of the store -> the call, the tensor among its outputs, its layout."""
        return {
            leaf.column: (key, index, leaf.layout)
            for key, answer in self.answers.items()
            for index, leaf in enumerate(answer.leaves)
            if isinstance(leaf, Stored)
        }

    @property
    def leaves(self) -> dict[int, Stored]:
        """Column of the store -> what it stores."""
        return {
            leaf.column: leaf for answer in self.answers.values() for leaf in answer.leaves if isinstance(leaf, Stored)
        }

    def watched(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the modules of this model whose calls are counted."""
        return {name: module for name, module in model.named_modules() if name in self.names}

    def describe(self) -> str:
        """Name what is stored, for the log."""
        return ", ".join(
            f"{_spoken(key.name + self.answers[key].paths[index])}{layout.describe()}{str(key)[len(key.name) :]}"
            for key, index, layout in self.columns.values()
        )


def _spoken(path: str) -> str:
    """Write the place of a tensor without brackets and quotes.

    >>> _spoken("bert['pooler_output']")
    'bert.pooler_output'
    """
    return re.sub(r"\['(\w+)'\]", r".\1", path)
