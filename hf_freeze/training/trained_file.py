"""The file of a checkpoint that holds what trained, and no more: `trained.safetensors`.

One file, so that it is whole or absent: the tensors by the names that they have in the unwrapped model, and in its
header a description of the base that they belong to, with a digest of every tensor that the file leaves out. Checksums
cover each tensor, with its type and shape, and the description.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_freeze.errors import FreezeError
from hf_freeze.training.checkpoint import write_tensors
from hf_freeze.training.digests import typed_digests
from hf_freeze.whole_files import write_text

TRAINED_NAME = "trained.safetensors"
RESERVED_NAME = "__metadata__"  # in the header of a safetensors file
_FORMAT = 1

# transformers looks for the shards that an index names, and names the one that is missing.
_NOT_WHOLE = "only what trained is in this folder: write the whole model with 'hf-freeze merge FOLDER OUT'"


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that training began with: where it came from, and a digest of every tensor that it holds.

    `name` and `revision` are those of `from_pretrained`; None for a model without a name. `digests` leaves out what no
    base holds, such as a new head; in a file, also what the file holds.
    """

    name: str | None
    revision: str | None
    model_class: str
    dtype: str
    digests: Mapping[str, int] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a checkpoint holds: tensors that trained, and the base that lacks them."""

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    base: Base
    plan: Mapping[str, Any] | None = None


def write_trained(trained: Trained, folder: Path) -> Path:
    """Write the file into `folder`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.tensors.items()}
    left_out = {name: _hex(value) for name, value in trained.base.digests.items() if name not in tensors}
    base = {**asdict(trained.base), "digests": left_out}
    described = {
        "format": _FORMAT,
        "plan": trained.plan,
        "base": base,
        "checksums": _checksums(tensors),
        "config": _sha256_of(folder / CONFIG_NAME),
    }
    text = json.dumps(described, separators=(",", ":"))
    path, metadata = folder / TRAINED_NAME, {"hf_freeze": text, "sha256": _sha256(text)}
    write_tensors(tensors, path, metadata)
    return path


def read_base(folder: str | os.PathLike[str]) -> Base:
    """Read the description alone. Raises `FreezeError` where it cannot be read."""
    path = Path(folder) / TRAINED_NAME
    try:
        with safe_open(path, framework="pt") as file:
            return _base(_described(file.metadata() or {}, path))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error


def read_trained(folder: str | os.PathLike[str]) -> Trained:
    """Read the file. Raises `FreezeError` where it is missing or cut off, and for the first tensor that was damaged."""
    path = Path(folder) / TRAINED_NAME
    try:
        with safe_open(path, framework="pt") as file:
            described = _described(file.metadata() or {}, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    written, now = described["checksums"], _checksums(tensors)
    for name in sorted(written.keys() | now.keys()):
        if written.get(name) != now.get(name):
            raise _unreadable(path, f"{name!r} is not what was written")
    return Trained(tensors=tensors, base=_base(described), plan=described["plan"])


def refuse_changed_config(folder: str | os.PathLike[str]) -> None:
    """Raise `FreezeError` where the configuration is not the one that was saved: it would build another model.

    Earlier versions did not note which one that was.
    """
    path, config = Path(folder) / TRAINED_NAME, Path(folder) / CONFIG_NAME
    with safe_open(path, framework="pt") as file:
        saved = _described(file.metadata() or {}, path).get("config")
    if saved is not None and saved != _sha256_of(config):
        raise FreezeError(
            f"{str(config)!r} {'is not what was saved' if config.exists() else 'is missing'}: it would build another "
            "model. Put the file back; to change the configuration, change that of the merged model."
        )


def holds_trained_only(folder: str | os.PathLike[str]) -> bool:
    """Tell whether the folder holds what trained and not the whole model, nor a PEFT adapter."""
    folder = Path(folder)
    if not (folder / TRAINED_NAME).is_file() or (folder / ADAPTER_CONFIG_NAME).is_file():
        return False
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    return not (folder / SAFE_WEIGHTS_NAME).exists() and (not index.exists() or refuses_loading(index))


def refuse_loading(folder: str | os.PathLike[str]) -> None:
    """Make `from_pretrained` on this folder fail and say what to do; it would silently begin with fresh weights."""
    index = Path(folder) / SAFE_WEIGHTS_INDEX_NAME
    write_text(index, json.dumps({"metadata": {"total_size": 0}, "weight_map": {"-": _NOT_WHOLE}}))


def refuses_loading(index: Path) -> bool:
    """Tell whether this index is one that `refuse_loading` wrote."""
    try:
        return _NOT_WHOLE in json.loads(index.read_bytes())["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _described(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    text = metadata.get("hf_freeze", "")
    if metadata.get("sha256") != _sha256(text):
        raise _unreadable(path, "its description is not what was written")
    described: dict[str, Any] = json.loads(text)
    if described["format"] != _FORMAT:
        raise FreezeError(
            f"{str(path)!r} has format {described['format']!r}, and this version of hf_freeze reads {_FORMAT}. "
            "Install a newer one."
        )
    return described


def _base(described: Mapping[str, Any]) -> Base:
    values = {one.name: described["base"][one.name] for one in fields(Base)}
    return Base(**{**values, "digests": {name: _signed(value) for name, value in values["digests"].items()}})


def _unreadable(path: Path, why: str) -> FreezeError:
    return FreezeError(f"{str(path)!r} cannot be read: {why}. Go back to another checkpoint.")


def _checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: _hex(value) for name, value in typed_digests(tensors).items()}


def _sha256_of(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hex(digest: int) -> str:
    return f"{digest % 2**64:016x}"


def _signed(digest: str) -> int:
    value = int(digest, 16)
    return value - 2**64 if value >= 2**63 else value
