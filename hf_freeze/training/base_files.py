"""What the files of a base hold, read off their headers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def shapes_in_files(name: str, revision: str | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a folder or a model of the hub's cache holds; {} where that is unknown."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in _weight_files(name, revision):
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}
    return shapes


def of_other_shape(own: Mapping[str, tuple[int, ...]], in_files: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Name the tensors of a model that its files hold in another shape, as embeddings that were resized.

    The files of a model without the head, or of one with another, have the same names with more in front or less.

    >>> of_other_shape({"bert.word.weight": (9, 2), "bert.type.weight": (2, 2)}, {"word.weight": (8, 2)})
    {'bert.word.weight'}
    """
    without_front = {key.partition(".")[2]: shape for key, shape in in_files.items()}
    found = {}
    for name in own:
        ways = (in_files.get(name), in_files.get(name.partition(".")[2]), without_front.get(name))
        found[name] = next((shape for shape in ways if shape is not None), own[name])
    return {name for name, shape in found.items() if shape != own[name]}


def _weight_files(name: str, revision: str | None) -> Iterator[Path]:
    index = _file(name, SAFE_WEIGHTS_INDEX_NAME, revision)
    whole = _file(name, SAFE_WEIGHTS_NAME, revision)
    if whole is not None:
        yield whole
    elif index is not None:
        for shard in sorted(set(json.loads(index.read_bytes())["weight_map"].values())):
            yield index.parent / shard


def _file(name: str, file: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None
