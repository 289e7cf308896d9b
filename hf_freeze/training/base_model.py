"""What a model was when training began, and what of it has trained since."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.training.base_files import same_in_files
from hf_freeze.training.digests import typed_digests
from hf_freeze.training.trained_file import Base

_BASES: "WeakKeyDictionary[nn.Module, Base]" = WeakKeyDictionary()


def base_of(model: nn.Module) -> Base:
    """Return the base of a model: what it was when it was first asked for, or what `load_trained` found it to be.

    A second Trainer over a model so sees what the first one trained.
    """
    model = unwrap(model)
    if model not in _BASES:
        _BASES[model] = describe(model)
    return _BASES[model]


def set_base(model: nn.Module, base: Base) -> None:
    """Remember the base of a model that something was loaded into."""
    _BASES[unwrap(model)] = base


def describe(model: nn.Module) -> Base:
    """Describe a model as it is now."""
    inner = next(transformers_models(model), None)
    name = (inner.name_or_path or None) if inner is not None else None
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())
    revision = getattr(getattr(inner, "config", None), "_commit_hash", None)
    tensors = saved_tensors(model)
    first = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), torch.empty(0))
    return Base(
        name=name,
        revision=revision,
        model_class=f"{type(model).__module__}.{type(model).__qualname__}",
        dtype=str(first.dtype).removeprefix("torch."),
        digests=typed_digests(_held(tensors, name, revision) if name else tensors),
    )


def differing(tensors: Mapping[str, torch.Tensor], base: Base) -> set[str]:
    """Name what the base does not hold, or not with these values."""
    now = typed_digests({name: tensor for name, tensor in tensors.items() if name in base.digests})
    return {name for name in tensors if name not in now or now[name] != base.digests[name]}


def saved_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers that a whole checkpoint would hold, tied weights once; under PEFT of the base."""
    model = unwrap(model)
    whole = model.state_dict().keys()
    kept = _kept_by_peft(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in whole and name not in kept}


def transformers_models(module: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the outermost models of transformers in a module, itself or in its fields."""
    if isinstance(module, PreTrainedModel):
        yield module
    else:
        for child in module.children():
            yield from transformers_models(child)


def _kept_by_peft(model: nn.Module) -> frozenset[str]:
    """Name what PEFT saves, and the originals of what it has copied, which are not in use."""
    if not isinstance(model, PeftModel):
        return frozenset()
    found = map_model(model)
    return found.roles["adapters"] | found.inactive | {name for name in found.parts if ".modules_to_save." in name}


def _held(tensors: Mapping[str, torch.Tensor], name: str, revision: str | None) -> dict[str, torch.Tensor]:
    """Leave out what loading the base again would not bring back: a new head, and what was changed since."""
    same = same_in_files(tensors, name, revision)
    # What no file holds under this name may have been loaded by another.
    marked = {key for key, tensor in tensors.items() if getattr(tensor, "_is_hf_initialized", False)}
    packed = {key for key, tensor in tensors.items() if _is_packed(tensor)}
    return {key: tensor for key, tensor in tensors.items() if key in packed or same.get(key, key in marked)}


def _is_packed(tensor: torch.Tensor) -> bool:
    """Tell what a quantizer makes of the weights that it loads; nothing else has parameters of whole numbers."""
    return isinstance(tensor, nn.Parameter) and not tensor.is_floating_point()
