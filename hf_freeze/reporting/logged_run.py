"""What a run logged, from wherever it is kept: a trainer, its log, a checkpoint, or the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from hf_freeze.errors import FreezeError

Entries: TypeAlias = Sequence[Mapping[str, Any]]

_WANTED = "Give a trainer, its state.log_history, a checkpoint, or the output_dir of a run with checkpoints."


def logged_entries(history: Trainer | Entries | str | PathLike[str]) -> Entries:
    """Return the entries of a log, each with its step. Raises `FreezeError` for what holds none."""
    if isinstance(history, Trainer):
        return history.state.log_history
    if isinstance(history, str | PathLike):
        file = _state_file(Path(history))
        return _checked(_log_of(file), f"log_history of {str(file)!r}")
    return _checked(history, "history")


def _state_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / TRAINER_STATE_NAME).is_file():
        path = Path(get_last_checkpoint(str(path)) or path)  # type: ignore[no-untyped-call]
    return path / TRAINER_STATE_NAME


def _log_of(file: Path) -> Any:
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FreezeError(f"{str(file)!r} has no log_history: {error!r}. {_WANTED}") from error
    if not isinstance(state, dict) or "log_history" not in state:
        found = f"the keys {sorted(state)}" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise FreezeError(f"{str(file)!r} has no log_history, but {found}. {_WANTED}")
    return state["log_history"]


def _checked(entries: Any, name: str) -> Entries:
    if not isinstance(entries, Sequence):
        raise FreezeError(f"{name} is a {type(entries).__name__}: {_short(entries)}. {_WANTED}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("step"), int):
            raise FreezeError(f"{name}[{index}] is no entry of a log with its 'step': {_short(entry)}. {_WANTED}")
    return entries


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
