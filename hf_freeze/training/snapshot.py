"""The best weights of a stage, kept in memory until a plateau ends the stage, and in its checkpoints."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.selection.norms import is_norm
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.checkpoint import read_checked, write_checked

STAGE_BEST_NAME = "stage_best.safetensors"


def refuse_rewind(resolved: ResolvedPlan, backend: str) -> None:
    """Raise `UnsupportedSetupError` when the plan rewinds weights, for a backend where no process has them whole."""
    if any(stage.plateau and stage.plateau.restore_best for stage in resolved.timed):
        raise UnsupportedSetupError(
            f"The plan has Plateau(restore_best=True), which copies whole weights. {backend} keeps them in shards or "
            "steps copies of them. Use restore_best=False, or DistributedDataParallel."
        )


def take_snapshot(bound: BoundPlan, stage: int) -> dict[str, torch.Tensor]:
    """Copy to the CPU what training can change in a stage: trainable parameters, and statistics of normalisations."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _changing(bound, stage).items()}


def restore_snapshot(bound: BoundPlan, snapshot: Mapping[str, torch.Tensor]) -> None:
    """Copy a snapshot back into the model."""
    own = bound.parameters | dict(bound.model.named_buffers())
    with torch.no_grad():
        for name, tensor in snapshot.items():
            own[name].copy_(tensor)


def save_snapshot(snapshot: Mapping[str, torch.Tensor], folder: str | os.PathLike[str]) -> None:
    """Write a snapshot into a checkpoint folder, whole or not at all."""
    if not snapshot:
        return
    path = Path(folder) / STAGE_BEST_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked(snapshot, path)


def load_snapshot(folder: str | os.PathLike[str], bound: BoundPlan, stage: int) -> dict[str, torch.Tensor]:
    """Read the snapshot of a stage.

    Raises `FreezeError` when it is missing, cannot be read, has changed since it was written, or is of other tensors.
    """
    path = Path(folder) / STAGE_BEST_NAME
    if not path.exists():
        raise FreezeError(
            f"{str(path)!r} is missing: the best weights so far, which Plateau(restore_best=True) goes back to at the "
            "end of the stage, are lost. Go back to another checkpoint."
        )
    saved = read_checked(path)
    expected = _changing(bound, stage)
    for name in sorted(saved.keys() ^ expected.keys()):
        where = "the file" if name in saved else "this stage of the model"
        raise FreezeError(f"{str(path)!r} belongs to another stage or model: only {where} has {name!r}.")
    for name, tensor in saved.items():
        if tensor.shape != expected[name].shape:
            raise FreezeError(
                f"{str(path)!r} holds {name!r} of shape {tuple(tensor.shape)}, and the model has it as "
                f"{tuple(expected[name].shape)}. It belongs to another model."
            )
    return saved


def _changing(bound: BoundPlan, stage: int) -> dict[str, torch.Tensor]:
    model, trainable = bound.model, bound.resolved.names[stage]
    statistics = {id(buffer) for module in filter(is_norm, model.modules()) for buffer in module.buffers()}
    buffers = {name: buffer for name, buffer in model.named_buffers() if id(buffer) in statistics}
    return {name: tensor for name, tensor in bound.parameters.items() if name in trainable} | buffers
