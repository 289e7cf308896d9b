"""The best weights of a stage, kept in memory until a plateau ends the stage, and in its checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.plan.resolved import ResolvedPlan
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.norms import is_norm

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
    """Write a snapshot into a checkpoint folder, under a temporary name that is renamed when it is whole."""
    if not snapshot:
        return
    path = Path(folder) / STAGE_BEST_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(dict(snapshot), unfinished)
    unfinished.replace(path)


def load_snapshot(folder: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the snapshot of a checkpoint; {} when its stage had none."""
    path = Path(folder) / STAGE_BEST_NAME
    return dict(load_file(path)) if path.exists() else {}


def _changing(model: nn.Module) -> dict[str, torch.Tensor]:
    model = unwrap(model)
    statistics = {id(buffer) for module in filter(is_norm, model.modules()) for buffer in module.buffers()}
    buffers = {name: buffer for name, buffer in model.named_buffers() if id(buffer) in statistics}
    return {name: p for name, p in model.named_parameters() if p.requires_grad} | buffers
