"""What features depend on, as a short text: with any of it changed, they are other features."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
import xxhash
from torch import nn

from hf_freeze.features.answers import Frontier
from hf_freeze.tensor_parts import parts_of

_OF_THE_TASK = {
    "_name_or_path",
    "architectures",
    "decision_threshold",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "torch_dtype",
    "transformers_version",
}
"""What a configuration says of heads and files, on which frozen features do not depend.

The type is that of the weights, which are digested with theirs; saving notes it, on the process that saves.
"""

_VERSION = 3


def fingerprint(model: nn.Module, frontier: Frontier, *, form: Mapping[str, Any]) -> dict[str, str]:
    """Digest the frozen weights, the modules that hold them, what is stored of them, and the form of storage.

    Rows do not count: each lies under a digest of its own.
    """
    modules = frontier.watched(model)
    config = getattr(model, "config", None)
    described: dict[str, Any] = config.to_dict() if isinstance(config, transformers.PretrainedConfig) else {}
    structure = {
        "config": _of_the_features(described),
        "modules": {key.name: repr(modules[key.name]) for key in sorted(frontier.answers)},
        "settings": {key.name: _settings(modules[key.name]) for key in sorted(frontier.answers)},
        "versions": [torch.__version__, transformers.__version__],
    }
    stored = {str(column): [str(key), index, repr(layout)] for column, (key, index, layout) in frontier.columns.items()}
    return {
        "weights": _digest_weights(model, frontier),
        "structure": _digest(structure),
        "stored": _digest(stored),
        "form": _digest({"version": _VERSION, **form}),
    }


def _of_the_features(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _of_the_features(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _OF_THE_TASK
    }


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return what modules hold beside weights and buffers, such as a scale, and how attention is computed."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_") and (held := _plain(value)) is not None:
                found[f"{name}.{key}"] = held
        if isinstance(config := getattr(part, "config", None), transformers.PretrainedConfig):
            found[f"{name}.attention"] = getattr(config, "_attn_implementation", None)
    return found


def _plain(value: Any) -> Any:
    """Return what says which number, text or tensor this is, or collection of them; None of any other object."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        digest = hashlib.sha256()
        _update(digest, value)
        return digest.hexdigest()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return None


def short(parts: Mapping[str, str]) -> str:
    """Name a folder after all of them."""
    return _digest(parts)[:32]


def _digest_weights(model: nn.Module, frontier: Frontier) -> str:
    """Digest every frozen parameter, and every buffer of the frozen prefix, bit by bit."""
    digest = xxhash.xxh3_128()
    modules = frontier.watched(model)
    prefix = {id(part) for key in frontier.answers for part in modules[key.name].modules()}
    for name, module in model.named_modules():
        tensors = [*((n, p) for n, p in module.named_parameters(recurse=False) if not p.requires_grad)]
        tensors += module.named_buffers(recurse=False) if id(module) in prefix else []
        for own, tensor in tensors:
            digest.update(f"{name}.{own} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in parts_of(tensor):
                digest.update(_bytes(part))
    return digest.hexdigest()


def digest_data(dataset: Any) -> str:
    """Digest the rows of a map-style data set, as they are before they are collated."""
    digest = hashlib.sha256()
    if isinstance(dataset, datasets.Dataset):
        digest.update(json.dumps([dataset.format["type"], str(dataset.features)]).encode())
        for table in dataset.with_format("arrow").iter(batch_size=1000):
            digest.update(_serialized(table))
    else:
        for row in range(len(dataset)):
            _update(digest, dataset[row])
    return digest.hexdigest()


def _serialized(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata().combine_chunks())
    return sink.getvalue()


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _update(digest: "hashlib._Hash", value: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, Mapping):
        for key in value:
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif hasattr(value, "tobytes"):
        digest.update(value.tobytes())  # an image
    elif isinstance(value, list) and value and all(type(part) in (int, float) for part in value):
        digest.update(np.asarray(value).tobytes())
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for part in value:
            _update(digest, part)
    else:
        digest.update(repr(value).encode())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
