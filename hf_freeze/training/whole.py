"""Is a checkpoint whole? A run that is killed while it saves leaves a folder that looks like any other."""

import json
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.serialization import get_crc32_options
from transformers import PreTrainedConfig, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from hf_freeze.errors import FreezeError
from hf_freeze.selection.model_map import unwrap
from hf_freeze.selection.rows import tensors_of
from hf_freeze.training.beside_model import BESIDE_NAME
from hf_freeze.training.saved_names import can_be_renamed, lost_and_unknown, not_found
from hf_freeze.training.snapshot import STAGE_BEST_NAME
from hf_freeze.training.thawed_base import THAWED_NAME
from hf_freeze.training.trained_file import TRAINED_NAME, refuses_loading

_WEIGHTS = (".safetensors", ".bin")
_BESIDE_THE_WEIGHTS = (STAGE_BEST_NAME, THAWED_NAME, BESIDE_NAME, TRAINING_ARGS_NAME)


def require_whole(folder: str | os.PathLike[str], *, optimizer: bool) -> None:
    """Raise `FreezeError` when a file of the checkpoint is missing, cut off or unreadable; name the newest whole one.

    With `optimizer`, its state and that of the scheduler must be there, without which both would silently start anew.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FreezeError(f"There is no checkpoint {str(folder)!r} to resume from.")
    found = next(_defects(folder, optimizer=optimizer), None)
    if found is None:
        return
    others = sorted(folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=_step_of, reverse=True)
    whole = next((path for path in others if path != folder and not any(_defects(path, optimizer=optimizer))), None)
    instead = (
        f"The newest whole one is {str(whole)!r}: resume from that one by its name, or delete the other."
        if whole
        else "No other checkpoint beside it is whole."
    )
    raise FreezeError(f"The checkpoint {str(folder)!r} is not whole: {found} {instead}")


def require_fitting(
    folder: str | os.PathLike[str], model: nn.Module, *, trained: Collection[str] = frozenset()
) -> None:
    """Raise `FreezeError` when the saved weights are of another model: names unknown to this one load nothing.

    Nor may one of `trained` be saved by another name that `from_pretrained` cannot be asked for.
    """
    path = Path(folder) / SAFE_WEIGHTS_NAME
    if not path.exists():
        return
    own = {name: tuple(tensor.shape) for name, tensor in unwrap(model).state_dict().items()}
    with safe_open(path, framework="pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    for name in saved:
        if name in own and own[name] != saved[name]:
            raise FreezeError(
                f"{str(path)!r} holds {name!r} of shape {saved[name]}, and this model has it as {own[name]}. Resume "
                "with the model that the run was begun with."
            )
    # sentence-transformers saves an encoder by the names that it has inside the whole.
    if not own.keys() & saved.keys() and _ends_of(own).isdisjoint(saved.items()):
        raise FreezeError(
            f"{str(path)!r} holds no weight of this {type(unwrap(model)).__name__}; its first is "
            f"{next(iter(saved), '-')!r}. Resume with the model that the run was begun with."
        )
    if own.keys() & saved.keys():
        _refuse_renamed(path, saved, model, trained)


def _refuse_renamed(path: Path, saved: Collection[str], model: nn.Module, trained: Collection[str]) -> None:
    lost, unknown = lost_and_unknown(model, saved)
    needed = tensors_of(trained).intersection(lost)
    if unknown and needed and not can_be_renamed(model, path.parent):
        raise FreezeError(not_found(path, min(needed), unknown[0]))


def _step_of(folder: Path) -> int:
    step = folder.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _ends_of(shapes: Mapping[str, tuple[int, ...]]) -> set[tuple[str, tuple[int, ...]]]:
    """Return each name without its first parts, with the shape of what it names."""
    parts = {name: name.split(".") for name in shapes}
    return {(".".join(parts[name][cut:]), shape) for name, shape in shapes.items() for cut in range(len(parts[name]))}


def _defects(folder: Path, *, optimizer: bool) -> Iterator[str]:
    """Yield a sentence for each file that is missing or cannot be read."""
    problem = _state_problem(folder / TRAINER_STATE_NAME)
    if problem:
        yield problem
    if problem := _config_problem(folder / CONFIG_NAME):
        yield problem
    weights = [path for path in folder.rglob("*") if path.suffix in _WEIGHTS]
    # FSDP, DeepSpeed and several adapters leave folders.
    in_parts = any(path.is_dir() for path in folder.iterdir())
    beside = {*_BESIDE_THE_WEIGHTS, *([TRAINED_NAME] if (folder / ADAPTER_CONFIG_NAME).exists() else [])}
    if not in_parts and all(path.name in beside for path in weights):
        yield "it has no file of weights, such as 'model.safetensors'."
    for index in folder.glob("*.index.json"):
        if not refuses_loading(index):
            yield from _missing_shards(index)
        elif not (folder / TRAINED_NAME).exists():
            yield f"{TRAINED_NAME!r} is missing. Was the run killed while it saved?"
    for path in sorted([*weights, *folder.glob("*.pt"), *folder.glob("*.pth")]):
        if problem := _unreadable(path):
            yield f"{path.name!r} cannot be read ({problem}). Was the run killed while it saved?"
    if lost := _lost_by_a_process(folder):
        yield f"{lost!r} is missing. Was one of the processes killed while it saved?"
    if optimizer and not has_optimizer(folder):
        yield (
            f"{OPTIMIZER_NAME!r} or {SCHEDULER_NAME!r} is missing. A run with save_only_model=True saves neither; "
            "a FreezeTrainer with ignore_plan_change=True resumes without them, with a new optimizer."
        )


def has_optimizer(folder: str | os.PathLike[str]) -> bool:
    """Tell whether the state of the optimizer and that of the scheduler are there."""
    return all((Path(folder) / name).exists() for name in (OPTIMIZER_NAME, SCHEDULER_NAME))


def lost_random_states(folder: str | os.PathLike[str], args: TrainingArguments) -> Path | None:
    """Return the file with the random states of this process where the checkpoint lacks it, or else None."""
    name = f"rng_state_{args.process_index}.pth" if args.world_size > 1 else "rng_state.pth"
    path = Path(folder) / name
    return path if path.parent.is_dir() and not path.exists() else None


def _lost_by_a_process(folder: Path) -> str | None:
    """Name the random states that a process did not come to write; the main one writes the rest without it.

    Several processes wrote them where one has a number; each node may have a folder of its own.
    """
    numbers = {int(path.stem.rpartition("_")[2]) for path in folder.glob("rng_state_[0-9]*.pth")}
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or "1"  # not every launcher gives both
    if numbers == {0} and int(here) > 1:
        return "rng_state_1.pth"
    expected = range(min(numbers, default=0), max(numbers, default=0))
    return next((f"rng_state_{number}.pth" for number in expected if number not in numbers), None)


def _state_problem(path: Path) -> str | None:
    """Say what is wrong with `trainer_state.json`, None when nothing is."""
    if not path.exists():
        return f"{path.name!r}, which is written last, is missing. Was the run killed while it saved?"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))  # the Trainer reads no other encoding
    except OSError as error:
        return f"{path.name!r} cannot be read ({error.strerror})."
    except (ValueError, RecursionError) as error:
        return f"{path.name!r} is not readable as JSON ({error}). Was the run killed while it saved?"
    if not isinstance(values, dict):
        return f"{path.name!r} holds {_shown(values)}, not the fields of a TrainerState."
    if unknown := sorted(values.keys() - {field.name for field in fields(TrainerState)}):
        return f"{path.name!r} has the field {unknown[0]!r}, which this version of transformers does not know."
    # The Trainer compares the second with that of this run, and fails where there is none.
    if lost := [name for name in ("global_step", "train_batch_size") if name not in values]:
        return f"{path.name!r} has no {lost[0]!r}."
    for name, (kinds, what) in _FIELDS.items():
        if name not in values:
            continue
        unlimited = name in _FINITE and isinstance(values[name], float) and not math.isfinite(values[name])
        if unlimited or not _is_one_of(values[name], kinds):
            return f"{path.name!r} has {name}={_shown(values[name])}, which is not {what}."
    return _problem_of_log(values.get("log_history") or [], path.name)


def _config_problem(path: Path) -> str | None:
    """Say what is wrong with a configuration, which the Trainer reads before it loads weights."""
    if not path.exists():
        return None
    try:
        PreTrainedConfig.from_json_file(path)
    except Exception as error:  # transformers raises errors of many kinds
        return f"{path.name!r} cannot be read ({type(error).__name__}: {error})."
    return None


def _problem_of_log(log: list[Any], name: str) -> str | None:
    for entry in log:
        if not isinstance(entry, dict) or not is_count(entry.get("step", 0)):
            return f"{name!r} has {_shown(entry)} in log_history, which is not what was logged at a step."
    return None


_COUNT, _NUMBER, _OPTIONAL = (int,), (int, float), (int, float, None)
_FIELDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "global_step": (_COUNT, "a count of steps"),
    "max_steps": (_COUNT, "a count of steps"),
    "num_train_epochs": (_COUNT, "a count of epochs"),
    "logging_steps": (_COUNT, "a count of steps"),
    "eval_steps": (_COUNT, "a count of steps"),
    "save_steps": (_COUNT, "a count of steps"),
    "epoch": (_OPTIONAL, "a number"),
    "total_flos": (_NUMBER, "a number"),
    "num_input_tokens_seen": (_COUNT, "a count"),
    "train_batch_size": (_COUNT, "a count"),
    "best_metric": (_OPTIONAL, "a number"),
    "best_global_step": ((int, None), "a step"),
    "best_model_checkpoint": ((str, None), "a folder"),
    "log_history": ((list, None), "a list"),
    "stateful_callbacks": ((dict, None), "an object with a state for each callback"),
}
_FINITE = ("epoch", "total_flos")


def _is_one_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    if value is None:
        return None in kinds
    if isinstance(value, bool) or not isinstance(value, tuple(kind for kind in kinds if kind)):
        return False
    return not isinstance(value, int) or 0 <= value < 2**63 or float in kinds


def _missing_shards(index: Path) -> Iterator[str]:
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"{index.name!r} cannot be read ({type(error).__name__}: {error})."
        return
    for shard in sorted(shards):
        if not (index.parent / shard).exists():
            yield f"{shard!r}, which {index.name!r} names, is missing."


def _unreadable(path: Path) -> str | None:
    """Look only at the header of weights: reading all of them would take as long as loading them.

    States, such as the optimizer's, are read in full: torch checks no checksums when it loads them.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return None
        with zipfile.ZipFile(path) as parts:
            if any(part.header_offset for part in parts.infolist()[:1]):  # which Python forgives, and torch does not
                return "it does not begin with what was written"
            checked = path.suffix not in _WEIGHTS and get_crc32_options()
            damaged = parts.testzip() if checked else None
            return damaged and f"{damaged!r} inside is not what was written"
    except (SafetensorError, zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
        return str(error) or type(error).__name__


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def is_count(value: Any) -> bool:
    """Tell whether a value read from JSON is a count."""
    return _is_one_of(value, _COUNT)
