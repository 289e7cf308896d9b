"""What a model was when training began, and what of it has trained since."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.training.digests import digests
from hf_freeze.training.trained_file import Base

_BASES: "WeakKeyDictionary[nn.Module, Base]" = WeakKeyDictionary()


def base_of(model: nn.Module) -> Base:
    """Return the base of a model: what it was when it was first asked for, or what `load_trained` found it to be.

    A second Trainer over a model so sees what the first one trained.
    """
    model = unwrap(model)
    if model not in _BASES:
        _BASES[model] = _described(model)
    return _BASES[model]


def set_base(model: nn.Module, base: Base) -> None:
    """Remember the base of a model that something was loaded into."""
    _BASES[unwrap(model)] = base


def saved_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers that a whole checkpoint would hold, tied weights once; under PEFT of the base only.

    Raises `UnsupportedSetupError` for a model that keeps something other than tensors.
    """
    model = unwrap(model)
    whole = model.state_dict()
    if other := next((name for name, value in whole.items() if not isinstance(value, torch.Tensor)), None):
        raise UnsupportedSetupError(
            f"save_trained_only=True saves tensors, and {other!r} of this {type(model).__name__} is none."
        )
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
    if not isinstance(model, PeftModel):
        return frozenset()
    words = map_model(model)
    return words.roles["adapters"] | {name for name in words.parts if ".modules_to_save." in name}


def _described(model: nn.Module) -> Base:
    inner = next(transformers_models(model), None)
    name = (inner.name_or_path or None) if inner is not None else None
    if name is not None and Path(name).is_dir():
        name = str(Path(name).resolve())
    tensors = saved_tensors(model)
    first = next((tensor for tensor in tensors.values() if tensor.is_floating_point()), torch.empty(0))
    return Base(
        name=name,
        revision=getattr(getattr(inner, "config", None), "_commit_hash", None),
        model_class=f"{type(model).__module__}.{type(model).__qualname__}",
        dtype=str(first.dtype).removeprefix("torch."),
        digests=digests(_loaded(tensors)),
    )


def _loaded(tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Leave out what `from_pretrained` did not find in the files of the base: it can be had from nowhere again."""
    marked = {name: tensor for name, tensor in tensors.items() if getattr(tensor, "_is_hf_initialized", False)}
    return marked or tensors
