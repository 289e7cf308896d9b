"""The best weights of a stage, kept in memory until a plateau ends the stage, and in its checkpoints."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.plan.resolved import ResolvedPlan
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.norms import is_norm
from hf_freeze.training.checkpoint import write_tensors
from hf_freeze.training.digests import digests

STAGE_BEST_NAME = "stage_best.safetensors"


def refuse_rewind(resolved: ResolvedPlan, backend: str) -> None:
    """Raise `UnsupportedSetupError` when the plan rewinds weights, for a backend where no process has them whole."""
    if any(stage.plateau and stage.plateau.restore_best for stage in resolved.timed):
        raise UnsupportedSetupError(
            f"The plan has Plateau(restore_best=True), which copies whole weights. {backend} keeps them in shards or "
            "steps copies of them. Use restore_best=False, or DistributedDataParallel."
        )


def take_snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy to the CPU what training can change now: trainable parameters, and statistics of normalisations."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _changing(model).items()}


def restore_snapshot(model: nn.Module, snapshot: Mapping[str, torch.Tensor]) -> None:
    """Copy a snapshot back into the model."""
    own = dict(unwrap(model).named_parameters()) | dict(unwrap(model).named_buffers())
    with torch.no_grad():
        for name, tensor in snapshot.items():
            own[name].copy_(tensor)


def save_snapshot(snapshot: Mapping[str, torch.Tensor], folder: str | os.PathLike[str]) -> None:
    """Write a snapshot into a checkpoint folder, whole or not at all."""
    if not snapshot:
        return
    path = Path(folder) / STAGE_BEST_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(snapshot, path, {"digests": json.dumps(digests(snapshot))})


def load_snapshot(
    folder: str | os.PathLike[str], model: nn.Module, trainable: Collection[str]
) -> dict[str, torch.Tensor]:
    """Read the snapshot of a stage that trains `trainable`.

    Raises `FreezeError` when it is missing, cannot be read, has changed since it was written, or is of other tensors.
    """
    path = Path(folder) / STAGE_BEST_NAME
    if not path.exists():
        raise FreezeError(
            f"{str(path)!r} is missing: the best weights so far, which Plateau(restore_best=True) goes back to at the "
            "end of the stage, are lost. Go back to another checkpoint."
        )
    try:
        saved = dict(load_file(path))
        with safe_open(path, framework="pt") as file:
            written = json.loads((file.metadata() or {}).get("digests", "null"))
    except (SafetensorError, ValueError) as error:
        raise FreezeError(f"{str(path)!r} cannot be read: {error}. Go back to another checkpoint.") from error
    expected = _changing(model, trainable)
    for name in sorted(saved.keys() ^ expected.keys()):
        where = "the file" if name in saved else "this stage of the model"
        raise FreezeError(f"{str(path)!r} is of another stage or model: only {where} has {name!r}.")
    for name, tensor in saved.items():
        if tensor.shape != expected[name].shape:
            raise FreezeError(
                f"{str(path)!r} holds {name!r} of shape {tuple(tensor.shape)}, and the model has it as "
                f"{tuple(expected[name].shape)}. It is of another model."
            )
    if written is not None and written != digests(saved):
        raise FreezeError(f"{str(path)!r} has changed since it was written. Go back to another checkpoint.")
    return saved


def _changing(model: nn.Module, trainable: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    model = unwrap(model)
    statistics = {id(buffer) for module in filter(is_norm, model.modules()) for buffer in module.buffers()}
    buffers = {name: buffer for name, buffer in model.named_buffers() if id(buffer) in statistics}
    named = model.named_parameters()
    return {name: p for name, p in named if (p.requires_grad if trainable is None else name in trainable)} | buffers
