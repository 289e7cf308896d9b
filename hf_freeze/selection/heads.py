"""What a task class adds on top of its base model: the head."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from hf_freeze.selection.peft_support import inner_model


def head_paths(model: nn.Module) -> frozenset[str]:
    """Paths of the modules and parameters that make up the head; empty when the model has none that can be told."""
    path, inner = inner_model(model)
    return frozenset(_prefixed(path, _heads(inner)))


def base_path(model: nn.Module) -> str:
    """Path of the base model inside `model`; empty when the model is its own base."""
    path, inner = inner_model(model)
    below = _path_of(inner.base_model, inner) if isinstance(inner, PreTrainedModel) else ""
    return ".".join(filter(None, [path, below]))


def _heads(model: nn.Module, *, nested: bool = False) -> Iterator[str]:
    if not isinstance(model, PreTrainedModel):
        yield from _heads_of_custom(model)
        return
    base_classes = _base_classes(model)
    if not isinstance(model, base_classes):
        if model.base_model is not model:
            yield from _outside(model, {_path_of(model.base_model, model)})
        elif not nested:
            yield from _beyond(base_classes, model)
        yield from _output_embeddings(model)
    yield from _heads_inside(model)


def _base_classes(model: PreTrainedModel) -> tuple[type[PreTrainedModel], ...]:
    """The classes that `AutoModel` would build for this configuration; Funnel has two."""
    found: Any = MODEL_MAPPING.get(type(model.config), ())
    return found if isinstance(found, tuple) else (found,)


def _heads_inside(model: nn.Module) -> Iterator[str]:
    """Heads of the task models inside, such as the decoder of a `VisionEncoderDecoderModel`."""
    for path, inner in _outermost_pretrained(model):
        yield from _prefixed(path, _heads(inner, nested=isinstance(model, PreTrainedModel)))


def _beyond(base_classes: tuple[type[PreTrainedModel], ...], model: PreTrainedModel) -> Iterator[str]:
    """What `T5ForConditionalGeneration` has and `T5Model` has not; whole models inside are looked into instead."""
    names = _top_level(model)
    known: set[str] = set()
    if base_classes:
        with torch.device("meta"):
            known = _top_level(base_classes[0](copy.deepcopy(model.config)))
    if not known.isdisjoint(names):
        yield from sorted(names - known - {path.partition(".")[0] for path, _ in _outermost_pretrained(model)})
    elif not type(model).__module__.startswith("transformers."):
        yield from _heads_of_custom(model)  # a user's own class, which says nowhere what its base is


def _output_embeddings(model: PreTrainedModel) -> Iterator[str]:
    output: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(output, nn.Module):
        yield _path_of(output, model)


def _top_level(model: nn.Module) -> set[str]:
    return {name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))}


_HEAD_NAME = re.compile(
    r"(.*_)?(heads?|classifiers?)(_?\d+|_[a-z]+)?"
    r"|(.*_)?(fc|score|lm_head|logits|cls|predictions?|predictor|qa_outputs|regressor|regression|generator|last_linear)"
    r"|(.*_)?out(puts?)?(_(proj(ection)?|layer|linear))?"
)
_BODY_NAME = re.compile(r"(.*_)?(backbone|base_model|base|body|trunk|encoder|features|feature_extractor|transformer)")


def _heads_of_custom(model: nn.Module) -> Iterator[str]:
    """Everything around the pretrained models of a user's own module; without one, go by names and by order."""
    pretrained = dict(_outermost_pretrained(model))
    if pretrained:
        yield from _outside(model, set(pretrained))
        yield from _heads_inside(model)
        return
    children = {name: child for name, child in model.named_children() if next(child.parameters(), None) is not None}
    if len(children) == 1 and not isinstance(model, nn.ModuleList):
        ((name, child),) = children.items()
        yield from _prefixed(name, _heads_of_custom(child))
    elif children:
        yield from _conventional_heads(children)


def _conventional_heads(children: dict[str, nn.Module]) -> Iterator[str]:
    """The children named like a head, else those after the one named like a body, else a last linear layer."""
    names = list(children)
    heads = [name for name in names if _HEAD_NAME.fullmatch(name)]
    body = [name for name in names if _BODY_NAME.fullmatch(name) and name not in heads]
    if heads and len(heads) < len(names):
        yield from heads
    elif body:
        yield from names[names.index(body[-1]) + 1 :]
    elif len(names) > 1 and isinstance(children[names[-1]], nn.Linear):
        yield names[-1]


def _outermost_pretrained(model: nn.Module, path: str = "") -> Iterator[tuple[str, PreTrainedModel]]:
    for name, child in model.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, PreTrainedModel):
            yield child_path, child
        else:
            yield from _outermost_pretrained(child, child_path)


def _outside(model: nn.Module, bodies: set[str], path: str = "") -> Iterator[str]:
    """Paths of everything that is not below one of `bodies`, as few as possible."""
    for name, _ in (*model.named_children(), *model.named_parameters(recurse=False)):
        child_path = f"{path}.{name}" if path else name
        if child_path in bodies:
            continue
        if any(body.startswith(f"{child_path}.") for body in bodies):
            yield from _outside(model.get_submodule(name), bodies, child_path)
        else:
            yield child_path


def _path_of(module: nn.Module, model: nn.Module) -> str:
    paths: dict[int, str] = {id(candidate): path for path, candidate in model.named_modules()}
    return paths[id(module)]


def _prefixed(path: str, names: Iterator[str]) -> Iterator[str]:
    return (f"{path}.{name}" if path else name for name in names)
