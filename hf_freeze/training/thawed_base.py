"""Under PEFT, which saves adapters only, the base weights that train: in the file of checkpoints of what trained."""

import os
from collections.abc import Collection
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hf_freeze.errors import FreezeError
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.rows import tensors_of
from hf_freeze.training.base_model import base_of, differing, saved_tensors
from hf_freeze.training.load_trained import load_trained
from hf_freeze.training.trained_file import TRAINED_NAME, Trained, write_trained

THAWED_NAME = "thawed_base.safetensors"  # of earlier versions: the tensors alone


def save_thawed(model: nn.Module, folder: str | os.PathLike[str], ever_trainable: Collection[str]) -> Path | None:
    """Write the base weights that train beside PEFT's adapter, which is all that PEFT saves; whole or not at all.

    Args:
        model: The model; for one without PEFT nothing is written.
        folder: The folder of the adapter.
        ever_trainable: Names of what trains, as `ResolvedPlan.ever_trainable` has them.

    Returns:
        The file, or None where PEFT saves everything that trains.
    """
    if not thawed_tensors(model, ever_trainable):
        return None
    base, own, parameters = base_of(model), saved_tensors(model), dict(unwrap(model).named_parameters())
    # Any buffer may move, and PEFT saves none. A matrix of which rows train is saved whole.
    trained = tensors_of(ever_trainable)
    at_rest = {name: tensor for name, tensor in own.items() if name in parameters and name not in trained}
    left_out = at_rest.keys() - differing(at_rest, base)
    tensors = {name: tensor for name, tensor in own.items() if name not in left_out}
    return write_trained(Trained(tensors=tensors, base=base), Path(folder))


def load_thawed(
    model: nn.Module, folder: str | os.PathLike[str], *, needed: Collection[str] | None = None
) -> list[str]:
    """Load the base weights that trained beside a PEFT adapter.

    For use after `PeftModel.from_pretrained(base, folder)`, which loads the adapter only.

    Args:
        model: The model with its adapter.
        folder: The folder of the adapter.
        needed: Names of what trained; where base weights are among them, the file must be there.

    Returns:
        The names of the weights that were loaded, [] when the folder has none.

    Raises:
        FreezeError: When the file cannot be read, does not fit the model, or is missing although it is needed, and
            when the base is not the one that the adapter was trained on.
    """
    path, earlier = Path(folder) / TRAINED_NAME, Path(folder) / THAWED_NAME
    if path.exists() and isinstance(unwrap(model), PeftModel):
        return load_trained(model, folder)
    if earlier.exists():
        return _load_earlier(model, earlier)
    if needed and thawed_tensors(model, needed):
        raise FreezeError(
            f"{str(path)!r} is missing: PEFT saved the adapter only, and the base weights that trained are lost. "
            "Was the checkpoint written by a Trainer without FreezeCallback or FreezeTrainer?"
        )
    return []


def thawed_tensors(model: nn.Module, ever_trainable: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the base weights of a PEFT model that train; {} for any other model."""
    model = unwrap(model)
    if not isinstance(model, PeftModel):
        return {}
    own, trained = saved_tensors(model), tensors_of(ever_trainable)
    return {name: own[name] for name, _ in model.named_parameters() if name in own and name in trained}


def _load_earlier(model: nn.Module, path: Path) -> list[str]:
    own = {**dict(unwrap(model).named_parameters()), **dict(unwrap(model).named_buffers())}
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise FreezeError(f"{str(path)!r} cannot be read: {error}. Go back to an earlier checkpoint.") from error
    if unknown := [name for name, tensor in saved.items() if name not in own or own[name].shape != tensor.shape]:
        raise FreezeError(
            f"{str(path)!r} holds {unknown[0]!r} of shape {tuple(saved[unknown[0]].shape)}, which this model does not "
            "have. Load the adapter onto the base model that it was trained on first."
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
    return list(saved)
