"""What PEFT does to names and to `requires_grad`."""

import copy
import re
from collections.abc import Iterable, Iterator

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

_WRAPPING = re.compile(r"^base_model\.model\.|\.base_layer(?=\.|$)|\.modules_to_save\.[^.]+")


def inner_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the model that PEFT wraps, and its path: ("", model) when PEFT wraps nothing."""
    if not isinstance(model, PeftModel):
        return "", model
    inner = model.get_base_model()
    return next((path, module) for path, module in model.named_modules() if module is inner)


def plain_name(name: str) -> str:
    """The name without what PEFT puts around it.

    >>> plain_name("base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight")
    'bert.encoder.layer.0.attention.self.query.weight'
    """
    return _WRAPPING.sub("", name)


def adapter_names(model: nn.Module) -> frozenset[str]:
    """Names, under every alias, of the parameters that PEFT added: LoRA matrices, prompt encoders, ..."""
    names: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module):
            names.update(_owned(path, module, module.adapter_layer_names))
    if isinstance(model, PeftModel):
        names.update(_owned("", model, ("prompt_encoder",)))
    return frozenset(names)


def shadowed_names(model: nn.Module) -> frozenset[str]:
    """Names of the originals that `modules_to_save` copies replace: kept by PEFT, never used while it is active."""
    names: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AuxiliaryTrainingWrapper) and "modules_to_save" in module.adapter_layer_names:
            names.update(_owned(path, module, ("original_module",)))
    return frozenset(names)


def frozen_by_peft(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are frozen because PEFT froze its base, not because the architecture does.

    What the architecture itself freezes (sinusoidal tables) is read off a twin on the meta device.
    """
    if not adapter_names(model) and not isinstance(model, PeftModel):
        return frozenset()
    path, inner = inner_model(model)
    fixed = _frozen_by_architecture(inner)
    prefix = f"{path}." if path else ""
    names = (name for name, parameter in model.named_parameters() if not parameter.requires_grad)
    return frozenset(name for name in names if plain_name(name).removeprefix(prefix) not in fixed)


def _frozen_by_architecture(model: nn.Module) -> frozenset[str]:
    if not isinstance(model, PreTrainedModel):
        return frozenset()
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    return frozenset(name for name, parameter in twin.named_parameters() if not parameter.requires_grad)


def _owned(path: str, owner: nn.Module, attributes: Iterable[str]) -> Iterator[str]:
    wanted = tuple(f"{attribute}." for attribute in attributes)
    for name, _ in owner.named_parameters(remove_duplicate=False):
        if f"{name}.".startswith(wanted):
            yield f"{path}.{name}" if path else name
