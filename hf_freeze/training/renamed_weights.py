"""Weights that are saved by other names than those of the model, which the Trainer passes over when it loads them.

transformers saves some models, such as ViT, by the names of the files that they come from. Only `from_pretrained` knows
which name stands for which.
"""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import nn
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_freeze.errors import FreezeError
from hf_freeze.no_trace import random_states_kept
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.rows import tensors_of
from hf_freeze.training.planned_training import PlannedTraining
from hf_freeze.training.saved_names import can_be_renamed, lost_and_unknown, not_found
from hf_freeze.training.trained_file import refuses_loading

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class RenamedWeightsTrainerMixin(_Base):
    """Loads weights that are saved by other names as well, when it resumes and at the end of a run."""

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    _freezing: PlannedTraining

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *given: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *given)
        self._load_renamed(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._load_renamed(self.state.best_model_checkpoint)

    def _load_renamed(self, folder: str) -> None:
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            load_by_any_name(self.model, folder, trained=self._freezing.required_bound.resolved.ever_trainable)


def load_by_any_name(model: nn.Module, folder: str | os.PathLike[str], *, trained: Collection[str]) -> None:
    """Load the weights of a checkpoint as `from_pretrained` does, where some are saved by other names.

    Raises `FreezeError` where `from_pretrained` does not find one of those named in `trained` either.
    """
    inner = unwrap(model)
    lost, unknown = lost_and_unknown(inner, _saved_names(Path(folder)))
    if not (lost and unknown and can_be_renamed(inner, folder)):
        return
    cls: Any = type(inner)
    with random_states_kept():
        loaded, info = cls.from_pretrained(folder, dtype=inner.dtype, output_loading_info=True)
    missing = info["missing_keys"]
    if needed := tensors_of(trained).intersection(missing):
        raise FreezeError(not_found(folder, min(needed), unknown[0]))
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in missing}
    inner.load_state_dict(found, strict=False)


def _saved_names(folder: Path) -> list[str]:
    path, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if path.exists():
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    return list(json.loads(index.read_bytes())["weight_map"]) if index.exists() and not refuses_loading(index) else []
