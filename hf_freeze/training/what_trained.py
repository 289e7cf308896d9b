"""Which tensors of a model have trained so far, whatever trains at the moment."""

from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path

import torch
from torch import nn

from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.base_model import base_of, differing, is_known, saved_tensors
from hf_freeze.training.load_trained import going_back, put
from hf_freeze.training.trained_file import read_trained


class WhatTrained:
    """Names what a checkpoint must hold, and goes back to an earlier one.

    Every checkpoint holds what trains from the start. What begins to train later is missing in the earlier ones: to go
    back to one of them is to go back to its values in the base, of which a copy is kept on the CPU.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self._names: set[str] = set()
        self._base_values: dict[str, torch.Tensor] = {}

    def begin(self, names: Set[str], *, known: Mapping[str, int]) -> None:
        """Note what trains from the start, and what is not as in the base any more.

        Any buffer may begin to move at any time: the values of all are kept. `known` as for `typed_digests`.
        """
        tensors, parameters = saved_tensors(self.model), dict(self.model.named_parameters())
        self._names |= tensors.keys() & names
        # The weights have just been read where the base had yet to be described.
        described = is_known(self.model)
        base = base_of(self.model, known)
        self._names |= self._differing(tensors, known) if described else tensors.keys() - base.digests.keys()
        self._keep(tensors.keys() - parameters.keys())

    def add(self, names: Set[str]) -> None:
        """Note what is about to train."""
        new = saved_tensors(self.model).keys() & names - self._names
        self._keep(new)
        self._names |= new

    def tensors(self, *, also: Set[str], frozen_is_proved: bool) -> dict[str, torch.Tensor]:
        """Return all that trained, and whatever else is not as in the base: statistics, or what the base lacks.

        Parameters `also` train from the start. Where it is proved that the frozen ones are what they were at `begin`,
        they are not read again.
        """
        tensors = saved_tensors(self.model)
        self._names |= tensors.keys() & also
        proved = dict(self.model.named_parameters()) if frozen_is_proved else {}
        others = self._differing({name: tensor for name, tensor in tensors.items() if name not in proved})
        return {name: tensor for name, tensor in tensors.items() if name in self._names or name in others}

    def load(self, folder: str | Path, *, from_start: Collection[str]) -> None:
        """Put the model into the state that `folder` holds; every checkpoint of the run holds what is `from_start`.

        Raises `FreezeError`, the model being as it was, where that cannot be.
        """
        trained = read_trained(folder)
        base_values = going_back(self.model, trained, folder, base_values=self._base_values)
        self._keep(name for name in trained.tensors if name not in from_start)
        put(self.model, trained, base_values)

    def _differing(self, tensors: Mapping[str, torch.Tensor], known: Mapping[str, int] | None = None) -> set[str]:
        others = {name: tensor for name, tensor in tensors.items() if name not in self._names}
        return differing(others, base_of(self.model), known)

    def _keep(self, names: Iterable[str]) -> None:
        tensors = saved_tensors(self.model)
        new = [name for name in names if name not in self._base_values]
        self._base_values |= {name: tensors[name].detach().cpu().clone() for name in new}
