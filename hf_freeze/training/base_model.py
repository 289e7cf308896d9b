"""What a model was when training began, and what of it has trained since."""

from collections.abc import Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.selection.peft_support import plain_name
from hf_freeze.selection.rows import rows_named
from hf_freeze.tensor_parts import parts_of
from hf_freeze.training.base_files import same_in_files
from hf_freeze.training.digests import typed_digests
from hf_freeze.training.trained_file import Base

_BASES: "WeakKeyDictionary[nn.Module, Base]" = WeakKeyDictionary()


def base_of(model: nn.Module, known: Mapping[str, int] | None = None) -> Base:
    """Return the base of a model: what the model was at the first call, or what `load_trained` found it to be.

    In this way a second Trainer over a model sees what the first one trained. `known` as for `typed_digests`.
    """
    model = unwrap(model)
    if model not in _BASES:
        _BASES[model] = _describe(model, known)
    return _BASES[model]


def set_base(model: nn.Module, base: Base) -> None:
    """Remember the base of a model that something was loaded into."""
    _BASES[unwrap(model)] = base


def _describe(model: nn.Module, known: Mapping[str, int] | None = None) -> Base:
    """Describe a model as it is now; `known` as for `typed_digests`."""
    tensors = saved_tensors(model)
    named = {path: inner for path, inner in transformers_models(model).items() if inner.name_or_path}
    held, commits = _held(tensors, named) if named else (tensors, [None])
    first = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), torch.empty(0))
    return Base(
        name=name_of_base(model),
        revision=commits[0],
        model_class=f"{type(model).__module__}.{type(model).__qualname__}",
        dtype=str(first.dtype).removeprefix("torch."),
        digests=typed_digests(held, known),
    )


def name_of_base(model: nn.Module) -> str | None:
    """Return the folder or hub name that a model, or else the first one inside that has a name, was loaded from."""
    name = next((inner.name_or_path for inner in transformers_models(model).values() if inner.name_or_path), None)
    return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name


def base_folders(model: nn.Module) -> list[Path]:
    """Return the folders that a model, or models inside, were loaded from."""
    names = [inner.name_or_path for inner in transformers_models(unwrap(model)).values()]
    return [Path(name).resolve() for name in names if name and Path(name).is_dir()]


def is_known(model: nn.Module) -> bool:
    """Tell whether the base of a model has been asked for."""
    return unwrap(model) in _BASES


def differing(tensors: Mapping[str, torch.Tensor], base: Base, known: Mapping[str, int] | None = None) -> set[str]:
    """Name what the base does not hold, or not with these values; `known` as for `typed_digests`."""
    now = typed_digests({name: tensor for name, tensor in tensors.items() if name in base.digests}, known)
    return {name for name in tensors if name not in now or now[name] != base.digests[name]}


def saved_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers that a whole checkpoint would hold, tied weights once; under PEFT of the base."""
    model = unwrap(model)
    whole = model.state_dict().keys()
    kept = _kept_by_peft(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in whole and name not in kept}


def transformers_models(module: nn.Module, path: str = "") -> dict[str, PreTrainedModel]:
    """Return the outermost models of transformers in a module, itself or in its fields, by what is before names."""
    if isinstance(module, PreTrainedModel):
        return {path: module}
    found: dict[str, PreTrainedModel] = {}
    for name, child in module.named_children():
        found |= transformers_models(child, f"{path}{name}.")
    return found


def _kept_by_peft(model: nn.Module) -> frozenset[str]:
    """Name what PEFT saves, and the originals of what it has copied, which are not in use."""
    if not isinstance(model, PeftModel):
        return frozenset()
    found = map_model(model)
    return found.roles["adapters"] | found.inactive | {name for name in found.parts if ".modules_to_save." in name}


def _held(
    tensors: Mapping[str, torch.Tensor], models: Mapping[str, PreTrainedModel]
) -> tuple[dict[str, torch.Tensor], list[str | None]]:
    """Leave out what loading the base again would not bring back: a new head, and what was changed since.

    Returns the rest, and the commit that each of the models is of, as far as that is known.
    """
    same: dict[str, bool] = {}
    commits = []
    first_rows: dict[str, torch.Tensor] = {}
    for path, inner in models.items():
        inside = {key: plain_name(key.removeprefix(path), {}) for key in tensors if key.startswith(path)}
        own = {plain: tensors[key] for key, plain in inside.items()}
        # Before transformers 5.24, a configuration says of which commit it is.
        found, commit = same_in_files(own, str(inner.name_or_path), getattr(inner.config, "_commit_hash", None))
        same |= {key: found[plain] for key, plain in inside.items() if plain in found}
        keys = {plain: key for key, plain in inside.items()}
        longer = (rows_named(plain) for plain, is_same in found.items() if is_same and plain not in keys)
        for rows in filter(None, longer):
            key = keys[rows.matrix]
            first_rows[rows.of(key)] = tensors[key].detach()[: rows.stop]
        commits.append(commit)
    # What no file holds under this name may have been loaded by another, and be as it was then.
    marked = {key for key, tensor in tensors.items() if getattr(tensor, "_is_hf_initialized", False)}
    marked = {key for key in marked if not tensors[key]._version}
    packed = {key for key, tensor in tensors.items() if _is_packed(tensor)}
    held = {key: tensor for key, tensor in tensors.items() if key in packed or same.get(key, key in marked)}
    return {**held, **first_rows}, commits


def _is_packed(tensor: torch.Tensor) -> bool:
    """Tell whether a quantizer packed these weights: nothing else makes parameters of whole numbers, or of parts."""
    is_wrapped = parts_of(tensor)[0] is not tensor
    return isinstance(tensor, nn.Parameter) and (is_wrapped or not tensor.is_floating_point())
