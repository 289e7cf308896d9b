"""What a checkpoint needs beside the Trainer's own files.

The plan's fingerprint travels in `trainer_state.json`, with the state of `FreezeCallback`. Under PEFT, which saves
adapters only, the base weights that trained are saved next to them.
"""

import difflib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_freeze.errors import FreezeError
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.whole_files import whole_file

THAWED_NAME = "thawed_base.safetensors"


def save_thawed(model: nn.Module, folder: str | os.PathLike[str], ever_trainable: Collection[str]) -> Path | None:
    """Write the base weights that train beside PEFT's adapter, which is all that PEFT saves; whole or not at all.

    Args:
        model: The model; for one without PEFT nothing is written.
        folder: The folder of the adapter.
        ever_trainable: Names of what trains, as `ResolvedPlan.ever_trainable` has them.

    Returns:
        The file, or None where PEFT saves everything that trains.
    """
    tensors = thawed_tensors(model, ever_trainable)
    if not tensors:
        return None
    path = Path(folder) / THAWED_NAME
    write_tensors(tensors, path)
    return path


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    with whole_file(path) as unfinished:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, unfinished, metadata)


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
        FreezeError: When the file cannot be read, does not fit the model, or is missing although it is needed.
    """
    path = Path(folder) / THAWED_NAME
    if not path.exists():
        if needed and thawed_tensors(model, needed):
            raise FreezeError(
                f"{str(path)!r} is missing: PEFT saved the adapter only, and the base weights that trained are lost. "
                "Was the checkpoint written by a Trainer without FreezeCallback or FreezeTrainer?"
            )
        return []
    model = unwrap(model)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise FreezeError(f"{str(path)!r} cannot be read: {error}. Go back to an earlier checkpoint.") from error
    if unknown := [name for name, tensor in saved.items() if name not in own or own[name].shape != tensor.shape]:
        raise FreezeError(
            f"{str(path)!r} holds {unknown[0]!r} of shape {tuple(saved[unknown[0]].shape)}, which this model has not. "
            "Load the adapter onto the base model that it was trained on first."
        )
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
    return list(saved)


def thawed_tensors(model: nn.Module, ever_trainable: Collection[str]) -> dict[str, torch.Tensor]:
    """Base weights of a PEFT model that train, and the buffers beside them; {} for any other model."""
    model = unwrap(model)
    if not isinstance(model, PeftModel):
        return {}
    model_map = map_model(model)
    kept_by_peft = model_map.roles["adapters"] | {name for name in model_map.parts if ".modules_to_save." in name}
    names = [name for name in model_map.parts if name in ever_trainable and name not in kept_by_peft]
    owners = {name.rpartition(".")[0] for name in names}
    buffers = {name: buffer for name, buffer in model.named_buffers() if name.rpartition(".")[0] in owners}
    by_name = dict(model.named_parameters())
    return {name: by_name[name] for name in names} | buffers


def read_callback_state(folder: str | os.PathLike[str], name: str) -> Mapping[str, Any] | None:
    """The state that callback `name` left in the checkpoint `folder`, or None."""
    return callback_state(read_state(folder), name)


def has_state(folder: str | os.PathLike[str]) -> bool:
    """Whether the Trainer left its state in this folder."""
    return (Path(folder) / TRAINER_STATE_NAME).is_file()


def read_state(folder: str | os.PathLike[str]) -> TrainerState:
    """Read the `TrainerState` of the checkpoint `folder`."""
    state: TrainerState = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
    return state


def callback_state(state: TrainerState, name: str) -> Mapping[str, Any] | None:
    """The state that callback `name` left in the checkpoint that `state` was read from, or None."""
    callbacks: Any = state.stateful_callbacks
    found: Mapping[str, Any] | None = callbacks.get(name)
    return found


def saved_part(state: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What `FreezeCallback` saved beside its settings; {} for None."""
    saved: Mapping[str, Any] = state["attributes"]["saved"] if state else {}
    return saved


def plan_difference(
    saved: Mapping[str, Any] | None, current: Mapping[str, Any], folder: str | os.PathLike[str]
) -> str | None:
    """Say how the plan or the groups that a checkpoint was written under differ from this run's; None if they do not.

    `saved` and `current` are states of `FreezeCallback`. Optimizer state is stored by position: under other groups,
    moments would land on the wrong weights. Two spellings of one plan are no difference.
    """
    if saved is None:
        return (
            f"The checkpoint {str(folder)!r} was written without a freeze plan: its optimizer groups are not those of "
            f"this run. {_WAY_OUT}"
        )
    before, now = _layout(saved), _layout(current)
    if before == now:
        return None
    difference = "\n".join(
        difflib.unified_diff(_lines(saved), _lines(current), "checkpoint", "this run", lineterm="", n=1)
    )
    return (
        f"The checkpoint {str(folder)!r} was written under another plan than this run's. {_WAY_OUT} "
        f"The difference:\n{difference}"
    )


_WAY_OUT = (
    "Resume with the plan that it was written with, start anew from its weights with from_pretrained, or resume a "
    "FreezeTrainer with ignore_plan_change=True: weights and step are taken over, the optimizer's state is not."
)


def _layout(state: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    saved = saved_part(state)
    return saved["fingerprint"], saved["groups"]


def _lines(state: Mapping[str, Any]) -> list[str]:
    plan, (_, groups) = state["args"]["plan"], _layout(state)
    return json.dumps({**plan, "groups": groups}, indent=1, sort_keys=True).splitlines()


def folder_of(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint that the Trainer wrote, or would write, at this step."""
    folder, name = Path(str(args.output_dir)), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    # A trial of a hyperparameter search has a folder of its own, whose name callbacks are not told.
    of_trials = folder.glob(f"*/{name}") if state.is_hyper_param_search else ()
    return max(of_trials, key=lambda written: written.stat().st_mtime, default=folder / name)
