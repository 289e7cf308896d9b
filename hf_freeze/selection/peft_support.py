"""What PEFT does to names and to `requires_grad`."""

import copy
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from peft import PeftModel
from peft.tuners.adaption_prompt.layer import AdaptedAttention, AdaptedAttentionGPT
from peft.tuners.cpt import CPTEmbedding
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

Wrapped: TypeAlias = Mapping[str, str]  # path of a `PeftModel` -> path of the model that it wraps

# `_orig_mod` is no doing of PEFT: torch.compile puts it around a module that is compiled on its own.
_INSIDE = re.compile(r"\.base_layer(?=\.|$)|\.modules_to_save\.[^.]+|\._orig_mod(?=\.|$)")


def wrapped_models(model: nn.Module) -> Wrapped:
    """Find every `PeftModel`, the model itself or in a field of it, and the model that each wraps."""
    wrapped: dict[str, str] = {}
    for outer, module in model.named_modules():
        if isinstance(module, PeftModel):
            base = module.get_base_model()
            inner = next(path for path, candidate in module.named_modules() if candidate is base)
            wrapped[outer] = f"{outer}.{inner}" if outer else inner
    return wrapped


def inner_model(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the model that PEFT wraps, and its path: ("", model) when PEFT wraps nothing."""
    if not isinstance(model, PeftModel):
        return "", model
    return wrapped_models(model)[""], model.get_base_model()


def plain_name(name: str, wrapped: Wrapped) -> str:
    """Return the name without what PEFT puts around it.

    >>> plain_name("base_model.model.bert.encoder.layer.0.query.base_layer.weight", {"": "base_model.model"})
    'bert.encoder.layer.0.query.weight'
    """
    return _INSIDE.sub("", _without_wrapper(name, wrapped))


def spellings(name: str, wrapped: Wrapped) -> frozenset[str]:
    """Return every way to write a name: with and without the wrapper's prefix, with and without what lies inside."""
    ways = {name, _without_wrapper(name, wrapped)}
    return frozenset(ways | {_INSIDE.sub("", way) for way in ways})


def _without_wrapper(name: str, wrapped: Wrapped) -> str:
    for outer, inner in wrapped.items():
        if name.startswith(f"{inner}."):
            return (f"{outer}." if outer else "") + name.removeprefix(f"{inner}.")
    return name


def trained_by_peft(model: nn.Module) -> frozenset[str]:
    """Names of what PEFT itself trains: adapters that are active, its copies of modules, biases its config names."""
    names = set(_added(model, only_active=True))
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AuxiliaryTrainingWrapper):
            kept = (f"{name}.{one}" for name in module.adapter_layer_names for one in module.active_adapters)
            names.update(_owned(path, module, kept))
        elif isinstance(module, PeftModel):
            names.update(_biases(path, module))
            if any(getattr(config, "use_trainable_adapters", None) is False for config in module.peft_config.values()):
                names -= set(_of_layers(path, module))  # X-LoRA learns to mix what was trained before
    return frozenset(names) - inactive_names(model)


def adapter_names(model: nn.Module) -> frozenset[str]:
    """Names, under every alias, of the parameters that PEFT added: LoRA matrices, prompt encoders, ..."""
    return frozenset(_added(model, only_active=False))


def _added(model: nn.Module, *, only_active: bool) -> Iterator[str]:
    for path, module in model.named_modules(remove_duplicate=False):
        whole: object = module  # BaseTunerLayer is no nn.Module to a type checker
        if isinstance(whole, BaseTunerLayer | BaseTuner | AdaptedAttention | AdaptedAttentionGPT | PeftModel):
            attributes = set(_attributes(module))
            off = _switched_off(module, attributes) if only_active else ()
            yield from set(_owned(path, module, attributes)).difference(_owned(path, module, off))


def _attributes(owner: nn.Module) -> Iterator[str]:
    """Return the attributes that PEFT added to a module, beside the layer or model that it wraps."""
    if isinstance(owner, PeftModel):
        yield from ("prompt_encoder",) if hasattr(owner, "prompt_encoder") else ()
        return
    whole = getattr(owner, "model", None)
    for name, child in owner.named_children():
        if name not in ("base_layer", "model") and all(part is not whole for part in child.modules()):
            yield name
    yield from (name for name, _ in owner.named_parameters(recurse=False))


def _switched_off(owner: nn.Module, attributes: Iterable[str]) -> Iterator[str]:
    """Paths of the adapters on this module that are not active."""
    active: Collection[str] | None = getattr(owner, "active_adapters", None)
    if active is None:
        return
    for name in attributes:
        child = getattr(owner, name)
        if isinstance(child, nn.ModuleDict | nn.ParameterDict):
            yield from (f"{name}.{key}" for key in child if key not in active)


def _of_layers(path: str, model: nn.Module) -> Iterator[str]:
    for below, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, BaseTunerLayer) and isinstance(layer, nn.Module):
            yield from _owned(f"{path}.{below}" if path else below, layer, layer.adapter_layer_names)


def _biases(path: str, model: PeftModel) -> Iterator[str]:
    """Biases of the base that the configuration of an active adapter trains: all, or those of adapted layers."""
    # The adapters that X-LoRA mixes are active, and not among the model's own.
    active = [model.peft_config[name] for name in model.active_adapters if name in model.peft_config]
    told = {getattr(config, "bias", "none") for config in active}
    for below, module in model.named_modules(remove_duplicate=False):
        adapted = isinstance(module, BaseTunerLayer)
        where = f"{path}.{below}" if path else below
        for name, _ in module.named_parameters(remove_duplicate=False, recurse=adapted):
            of_base = name == "base_layer.bias" if adapted else name == "bias"
            if of_base and ("all" in told or (adapted and any(str(one).endswith("_only") for one in told))):
                yield f"{where}.{name}" if where else name


def inactive_names(model: nn.Module) -> frozenset[str]:
    """Names of what PEFT keeps but never trains.

    The originals that `modules_to_save` copies replace, and what a tuner counts with, such as AdaLoRA's `ranknum`.
    """
    names: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AuxiliaryTrainingWrapper) and "modules_to_save" in module.adapter_layer_names:
            names.update(_owned(path, module, ("original_module",)))
        elif isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module):
            names.update(_owned(path, module, module.other_param_names))
        elif isinstance(module, CPTEmbedding):
            names.update(_owned(path, module, ("embedding",)))  # the text, to which a difference is learned
        elif isinstance(module, PeftModel):
            # The tokens at the start of a cartridge, which stay as they are.
            added = _owned(path, module, ("prompt_encoder",))
            names.update(name for name in added if name.endswith(".frozen_embedding"))
    return frozenset(names)


def frozen_by_peft(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are frozen because PEFT froze its base, not because the architecture does.

    What the architecture itself freezes (sinusoidal tables) is read off a twin on the meta device.
    """
    wrapped = wrapped_models(model)
    if not wrapped and not adapter_names(model):
        return frozenset()
    regions = tuple(f"{outer}." if outer else "" for outer in wrapped) or ("",)
    fixed = _frozen_by_architecture(model, wrapped)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return frozenset(name for name in frozen if name.startswith(regions) and plain_name(name, wrapped) not in fixed)


def _frozen_by_architecture(model: nn.Module, wrapped: Wrapped) -> frozenset[str]:
    names: set[str] = set()
    for path, inner in _transformers_models("", model):
        with torch.device("meta"):
            twin = type(inner)(copy.deepcopy(inner.config))
        prefix = plain_name(f"{path}.", wrapped) if path else ""
        names.update(f"{prefix}{name}" for name, parameter in twin.named_parameters() if not parameter.requires_grad)
    return frozenset(names)


def _transformers_models(path: str, module: nn.Module) -> Iterator[tuple[str, PreTrainedModel]]:
    """The outermost models of transformers' own classes: a user's class may need more than a config to be built."""
    if isinstance(module, PreTrainedModel) and type(module).__module__.startswith("transformers."):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _transformers_models(f"{path}.{name}" if path else name, child)


def _owned(path: str, owner: nn.Module, attributes: Iterable[str]) -> Iterator[str]:
    wanted = tuple(f"{attribute}." for attribute in attributes)
    for name, _ in owner.named_parameters(remove_duplicate=False):
        if f"{name}.".startswith(wanted):
            yield f"{path}.{name}" if path else name
