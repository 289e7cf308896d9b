"""Compare a model with the files that it was loaded from."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hf_freeze.selection.rows import Rows
from hf_freeze.training.digests import as_words


def same_in_files(own: Mapping[str, torch.Tensor], name: str, commit: str | None) -> tuple[dict[str, bool], str | None]:
    """Tell for each tensor in a folder, or in a model of the hub's cache, whether it is there bit by bit as it is here.

    Tensors under another name are left out. Of a matrix that is longer here than in the files, the rows that both have
    are compared, under a name of their own. The second value is the commit of the hub in which most tensors are the
    same, among those in the cache unless `commit` is known. {} where the files are not found, as with another cache.
    """
    best: dict[str, bool] = {}
    for folder in _folders(name, commit):
        same = _same_in(folder, own)
        if not best or sum(same.values()) > sum(best.values()):
            best, commit = same, None if Path(name).is_dir() else folder.name
        if same and all(same.values()):
            break
    return best, commit


def _folders(name: str, commit: str | None) -> list[Path]:
    """Return where the files may be; of several commits in the cache, that of the default branch first."""
    if Path(name).is_dir():
        return [Path(name)]
    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    if commit:
        return [cached / "snapshots" / commit]
    default = cached / "refs" / "main"
    first = default.read_text().strip() if default.is_file() else ""
    return sorted(cached.glob("snapshots/*"), key=lambda folder: (folder.name != first, folder.name))


def _same_in(folder: Path, own: Mapping[str, torch.Tensor]) -> dict[str, bool]:
    try:
        files = [*_weight_files(folder)]
        places = {key: path for path in files for key in _keys(path)}
        keys = _matched(own, places)
        same: dict[str, bool] = {}
        for path in files:
            with _opened(path) as (_, read):
                for name in (name for name, key in keys.items() if places[key] == path):
                    same |= _same_rows(name, own[name], read(keys[name]))
    except (SafetensorError, UnpicklingError, OSError, ValueError, KeyError, RuntimeError):
        return {}
    return same


def _matched(own: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Return for names of a model the names in its files, where those of another head have more in front or less.

    >>> _matched(["bert.word.weight", "classifier.weight"], ["word.weight"])
    {'bert.word.weight': 'word.weight'}
    """
    known, without_front = {*keys}, {key.partition(".")[2]: key for key in keys}
    found: dict[str, str] = {}
    for name in own:
        shorter = name.partition(".")[2]
        if key := name if name in known else shorter if shorter in known else without_front.get(name):
            found[name] = key
    return found


def _same_rows(name: str, tensor: torch.Tensor, in_file: torch.Tensor) -> dict[str, bool]:
    """Tell whether a tensor is as in a file, and of one that was made longer whether its first rows are."""
    count = len(in_file) if in_file.dim() == 2 == tensor.dim() else 0
    if 0 < count < len(tensor):
        return {name: False, Rows(name, 0, count).name: _equal(tensor[:count], in_file)}
    return {name: _equal(tensor, in_file)}


def _equal(tensor: torch.Tensor, in_file: torch.Tensor) -> bool:
    return in_file.shape == tensor.shape and torch.equal(as_words(in_file.to(tensor)), as_words(tensor))


def _keys(path: Path) -> list[str]:
    with _opened(path) as (keys, _):
        return keys


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], torch.Tensor]]]:
    """Yield the names in a file, and a function that reads one of them."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            yield [*file.keys()], file.get_tensor
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield [*tensors], tensors.__getitem__


def _weight_files(folder: Path) -> Iterator[Path]:
    for whole, in_parts in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / whole).is_file():
            yield folder / whole
            return
        if (folder / in_parts).is_file():
            for shard in sorted(set(json.loads((folder / in_parts).read_bytes())["weight_map"].values())):
                yield folder / shard
            return
