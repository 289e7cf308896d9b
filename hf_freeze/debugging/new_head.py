"""A check of the head: one that was just initialised has to train."""

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.debugging.passes import uses_fsdp2
from hf_freeze.debugging.sample_check import Check, ok, warning
from hf_freeze.model_inputs.inspected_model import InspectedModel
from hf_freeze.selection.heads import find_head

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def check_head(inspected: InspectedModel, ever_trainable: Collection[str], *, planned: bool) -> Check | None:
    """Warn of a head that looks newly initialised and never trains; None where nothing trains, or no head is known."""
    model = inspected.model
    if not ever_trainable or uses_fsdp2(model) or any(hasattr(p, "ds_tensor") for p in model.parameters()):
        return None
    heads = {path: [*_layers(model, path)] for path in sorted(find_head(model).paths)}
    heads = {path: layers for path, layers in heads.items() if layers}
    if not heads:
        return None
    own = dict(model.named_parameters(remove_duplicate=False))
    beside = {id(p) for name, p in own.items() if not any(f"{name}.".startswith(f"{path}.") for path in heads)}
    heads = {path: [layer for layer in layers if id(layer.weight) not in beside] for path, layers in heads.items()}
    training = {id(own[name]) for name in ever_trainable if name in own}
    never = [path for path in heads if not _any_trains(own, path, training)]
    new = [path for path in never if heads[path] and all(_looks_new(inspected, layer) for layer in heads[path])]
    if not new:
        return ok("head", "The head trains." if not never else "No frozen part of the head looks newly initialised.")
    why = "the plan trains it in no stage" if planned else "it is frozen"
    return warning(
        "head",
        f'{new[0]} looks newly initialised, and {why}: its outputs stay random. Let it train ("head" names it), or '
        "load the model from a checkpoint that holds its trained head.",
    )


def _any_trains(own: dict[str, nn.Parameter], path: str, training: set[int]) -> bool:
    return any(id(p) in training for name, p in own.items() if f"{name}.".startswith(f"{path}."))


def _layers(model: nn.Module, path: str) -> Iterator[nn.Module]:
    parents = dict(model.named_modules())
    for module in parents[path].modules() if path in parents else ():
        if isinstance(module, _WEIGHTED) and module.weight.is_floating_point() and module.weight.numel():
            yield module


def _looks_new(inspected: InspectedModel, layer: Any) -> bool:
    """Tell whether weights look as their initialiser leaves them, which training does not.

    transformers draws weights from a normal distribution and sets a bias to zero; torch draws both from a uniform one.
    Without a bias the weights alone could deceive: then the model's class must be another than the checkpoint's.
    """
    weight, bias = layer.weight.detach().float(), layer.bias
    bound = 1 / math.sqrt(weight[0].numel())
    if _within(weight, bound) and (bias is None or bool(bias.any())) and _spread_is(weight, bound / math.sqrt(3)):
        return bias is None or _within(bias.detach().float(), bound)
    if bias is not None and bool(bias.any()):
        return False
    drawn = not bool(weight.any()) or any(_spread_is(weight, std) for std in _usual_stds(inspected.model))
    saved_as = getattr(inspected.config, "architectures", None) or ()
    return drawn and (bias is not None or type(inspected.task_model).__name__ not in saved_as)


def _within(values: torch.Tensor, bound: float) -> bool:
    return float(values.abs().max()) <= bound * (1 + 1e-5)


def _spread_is(weight: torch.Tensor, std: float) -> bool:
    """Tell whether mean 0 and this standard deviation fit, by five standard errors."""
    n = weight.numel()
    close = abs(float(weight.std(correction=0)) / std - 1) < 5 / math.sqrt(2 * n) + 0.02
    return close and abs(float(weight.mean())) < 5 * std / math.sqrt(n)


def _usual_stds(model: nn.Module) -> set[float]:
    found = {0.02}
    for inner in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        config = inner.config
        std = getattr(config, "initializer_range", None) or getattr(config, "init_std", None)
        layers, hidden = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
        if isinstance(std, float):
            found |= {std, std / math.sqrt(2 * layers)} if isinstance(layers, int) and layers else {std}
        if isinstance(hidden, int):
            found.add(hidden**-0.5)
    return {std for std in found if std > 0}
