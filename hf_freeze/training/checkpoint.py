"""What a checkpoint needs beside the Trainer's own files.

The plan's fingerprint travels in `trainer_state.json`, with the state of `FreezeCallback`.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_freeze.errors import FreezeError
from hf_freeze.training.digests import digests
from hf_freeze.whole_files import whole_file


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; tensors that share memory are written each."""
    on_cpu: dict[str, torch.Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        on_cpu[name] = own.clone() if place in places else own
        places.add(place)
    with whole_file(path) as unfinished:
        save_file(on_cpu, unfinished, metadata)


def write_checked(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file as `write_tensors` does, with digests that `read_checked` verifies."""
    write_tensors(tensors, path, {"digests": json.dumps(digests(tensors))})


def read_checked(path: Path) -> dict[str, torch.Tensor]:
    """Read what `write_checked` wrote. Raises `FreezeError` for a file that is cut off or has changed since."""
    try:
        with safe_open(path, framework="pt") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            written = json.loads((file.metadata() or {}).get("digests", "null"))
    except (SafetensorError, ValueError) as error:
        raise FreezeError(f"{str(path)!r} cannot be read: {error}. Go back to an earlier checkpoint.") from error
    if written is not None and written != digests(saved):  # earlier versions wrote none
        raise FreezeError(f"{str(path)!r} has changed since it was written. Go back to an earlier checkpoint.")
    return saved


def read_callback_state(folder: str | os.PathLike[str], name: str) -> Mapping[str, Any] | None:
    """Return the state that callback `name` left in the checkpoint `folder`, or None."""
    return callback_state(read_state(folder), name)


def has_state(folder: str | os.PathLike[str]) -> bool:
    """Tell whether the Trainer left its state in this folder."""
    return (Path(folder) / TRAINER_STATE_NAME).is_file()


def read_state(folder: str | os.PathLike[str]) -> TrainerState:
    """Read the `TrainerState` of the checkpoint `folder`."""
    state: TrainerState = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
    return state


def callback_state(state: TrainerState, name: str) -> Mapping[str, Any] | None:
    """Return the state that callback `name` left in the checkpoint that `state` was read from, or None."""
    callbacks: Any = state.stateful_callbacks
    found: Mapping[str, Any] | None = callbacks.get(name)
    return found


def saved_part(state: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what `FreezeCallback` saved beside its settings; {} for None."""
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
    """Return the folder of the checkpoint that the Trainer wrote, or would write, at this step."""
    folder, name = Path(str(args.output_dir)), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    # A trial of a hyperparameter search has a folder of its own, but callbacks are not told its name.
    of_trials = folder.glob(f"*/{name}") if state.is_hyper_param_search else ()
    return max(of_trials, key=lambda written: written.stat().st_mtime, default=folder / name)
