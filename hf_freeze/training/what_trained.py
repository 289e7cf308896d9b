"""Which tensors of a model have trained so far, whether or not they train now."""

from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path

import torch
from torch import nn

from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.base_model import base_of, differing, is_known, saved_tensors, set_base
from hf_freeze.training.load_trained import base_values_to_restore, copy_into
from hf_freeze.training.saved_rows import Cuts, base_in_rows, cuts_of, in_rows, names_in_rows
from hf_freeze.training.trained_file import Base, read_trained


class WhatTrained:
    """Names what a checkpoint must hold, and goes back to an earlier one.

    Every checkpoint holds what trains from the start. What begins to train later is missing in the earlier ones: to go
    back to one of them is to go back to its values in the base, of which a copy is kept on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self._names: set[str] = set()
        self._base_values: dict[str, torch.Tensor] = {}
        self._rows: frozenset[str] = frozenset()
        self._cuts: Cuts = {}

    def cut_at(self, rows: Iterable[str]) -> None:
        """Save these rows without the others of their matrices, from here on."""
        self._rows = frozenset(rows)

    def begin(self, names: Set[str], *, known: Mapping[str, int]) -> None:
        """Note what trains from the start, and what already differs from the base.

        Any buffer may begin to move at any time: the values of all are kept. `known` as for `typed_digests`.
        """
        # The weights have just been read where the base had yet to be described.
        described = is_known(self.model)
        base = self._base(known)
        tensors = self._tensors()
        self._names |= tensors.keys() & names_in_rows(names, self._cuts)
        self._names |= self._differing(tensors, known) if described else tensors.keys() - base.digests.keys()
        self._keep(tensors.keys() - self._parameter_names())

    def add(self, names: Set[str]) -> None:
        """Note what is about to train."""
        new = (self._tensors().keys() & names_in_rows(names, self._cuts)) - self._names
        self._keep(new)
        self._names |= new

    def tensors(self, *, also: Set[str], frozen_is_proved: bool) -> dict[str, torch.Tensor]:
        """Return everything that trained, and whatever else differs from the base: statistics, or what the base lacks.

        Parameters `also` train from the start. Where it is proved that the frozen ones are what they were at `begin`,
        they are not read again.
        """
        self._base()
        tensors = self._tensors()
        self._names |= tensors.keys() & names_in_rows(also, self._cuts)
        proved = self._parameter_names() if frozen_is_proved else set()
        others = self._differing({name: tensor for name, tensor in tensors.items() if name not in proved})
        return {name: tensor for name, tensor in tensors.items() if name in self._names or name in others}

    def load(self, folder: str | Path, *, from_start: Collection[str]) -> None:
        """Put the model into the state that `folder` holds; every checkpoint of the run holds what is `from_start`.

        Raises `FreezeError`, the model being as it was, where that cannot be.
        """
        self._base()
        trained = read_trained(folder)
        base_values = base_values_to_restore(self.model, trained, folder, base_values=self._base_values)
        first = names_in_rows(from_start, self._cuts)
        self._keep(name for name in trained.tensors if name not in first)
        copy_into(self.model, trained, base_values)

    def _differing(self, tensors: Mapping[str, torch.Tensor], known: Mapping[str, int] | None = None) -> set[str]:
        others = {name: tensor for name, tensor in tensors.items() if name not in self._names}
        return differing(others, self._base(), known)

    def _base(self, known: Mapping[str, int] | None = None) -> Base:
        """Return the base, described by the pieces of what is cut; `known` as for `typed_digests`."""
        base, tensors = base_of(self.model, known), saved_tensors(self.model)
        cuts = cuts_of([*self._rows, *base.digests], tensors)
        if cuts != self._cuts:
            base, self._cuts = base_in_rows(base, tensors, cuts), cuts
            set_base(self.model, base)
        return base

    def _tensors(self) -> dict[str, torch.Tensor]:
        return in_rows(saved_tensors(self.model), self._cuts)

    def _parameter_names(self) -> set[str]:
        return names_in_rows((name for name, _ in self.model.named_parameters()), self._cuts)

    def _keep(self, names: Iterable[str]) -> None:
        tensors = self._tensors()
        new = [name for name in names if name in tensors and name not in self._base_values]
        self._base_values |= {name: tensors[name].detach().cpu().clone() for name in new}
