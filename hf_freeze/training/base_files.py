"""What the files of a base hold, held against a model that was loaded from them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME


def same_in_files(own: Mapping[str, torch.Tensor], name: str, revision: str | None) -> dict[str, bool]:
    """Tell of each tensor that a folder or a model of the hub's cache holds whether it holds it with these values.

    What it holds under another name is left out. {} where the files are not known, as in a cache of another place.
    """
    try:
        files = [*_weight_files(name, revision)]
        places = {key: path for path in files for key in _keys(path)}
        keys = matched(own, places)
        same: dict[str, bool] = {}
        for path in files:
            with _opened(path) as (_, read):
                here = (name for name, key in keys.items() if places[key] == path)
                same |= {name: _equal(own[name], read(keys[name])) for name in here}
    except (SafetensorError, UnpicklingError, OSError, ValueError, KeyError, RuntimeError):
        return {}
    return same


def matched(own: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Return for names of a model the names in its files, where those of another head have more in front or less.

    >>> matched(["bert.word.weight", "classifier.weight"], ["word.weight"])
    {'bert.word.weight': 'word.weight'}
    """
    known, without_front = {*keys}, {key.partition(".")[2]: key for key in keys}
    found: dict[str, str] = {}
    for name in own:
        shorter = name.partition(".")[2]
        if key := name if name in known else shorter if shorter in known else without_front.get(name):
            found[name] = key
    return found


def _equal(tensor: torch.Tensor, in_file: torch.Tensor) -> bool:
    return in_file.shape == tensor.shape and torch.equal(in_file.to(tensor), tensor)


def _keys(path: Path) -> list[str]:
    with _opened(path) as (keys, _):
        return keys


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """Yield the names in a file, and what reads one of them."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            yield [*file.keys()], file.get_tensor
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield [*tensors], tensors.__getitem__


def _weight_files(name: str, revision: str | None) -> Iterator[Path]:
    for whole, in_parts in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if path := _file(name, whole, revision):
            yield path
            return
        if index := _file(name, in_parts, revision):
            for shard in sorted(set(json.loads(index.read_bytes())["weight_map"].values())):
                yield index.parent / shard
            return


def _file(name: str, file: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None
