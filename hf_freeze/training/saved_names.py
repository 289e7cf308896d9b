"""Names by which weights are saved, beside those that the model has."""

import os
from collections.abc import Collection
from pathlib import Path

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from hf_freeze.selection.model_map import unwrap


def can_be_renamed(model: nn.Module, folder: str | os.PathLike[str]) -> bool:
    """Tell whether `from_pretrained` can be asked for the weights of `model` in `folder`."""
    return isinstance(unwrap(model), PreTrainedModel) and (Path(folder) / CONFIG_NAME).exists()


def lost_and_unknown(model: nn.Module, saved: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the parameters that are saved by none of their names, and the saved names that the model does not have."""
    own = unwrap(model).state_dict().keys()
    aliases: dict[int, list[str]] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    found = frozenset(saved)  # a file's names come as a list
    lost = [names[0] for names in aliases.values() if found.isdisjoint(names)]
    return lost, [name for name in saved if name not in own]


def not_found(folder: str | os.PathLike[str], lost: str, unknown: str) -> str:
    """Say that a weight cannot be found in a checkpoint, and what helps."""
    return (
        f"{str(folder)!r} holds no {lost!r}, which trains, but {unknown!r}, which this model does not know. "
        f"transformers {transformers.__version__} saves some models by the names of the files that they were loaded "
        "from, and does not find this one there. Use a newer version, or train with save_trained_only=True, whose "
        "checkpoints have the names of the model."
    )
