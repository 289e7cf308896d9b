"""What a task class adds on top of its base model: the head.

In a model of transformers, alone or as an attribute of a custom module, the head is what lies outside the base model.
Where there is no such model inside, names and the order of registration decide, and where they do not, nothing does:

- The head is the last run of modules named like one (`fc`, `classifier`, `head`, ...), each as a whole. What its name
  says to be a convolution, a norm or a pooler (`_conv_head`, `norm_head`) stands in front of it and is not part of it.
- Without such a name, it is what comes after the module named like a body (`encoder`, `features`, ...), if all of that
  holds linear layers or is one module; without that either, a last linear layer.
- Modules named like a head apart from each other, or with other weights after them, and convolutions or norms between
  body and last module could be head or backbone. `head` and `backbone` are then refused, with the candidates named.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel

from hf_freeze.selection.peft_support import inner_model
from hf_freeze.selection.stacks import is_stack


@dataclass(frozen=True)
class Head:
    """Paths of the modules and parameters of the head, if any; why they are unclear; whether names alone decided."""

    paths: frozenset[str]
    unclear: str = ""
    by_name: bool = False


class _Unclear(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, candidates: list[nn.Module]) -> None:
        super().__init__()
        self.candidates = candidates


def find_head(model: nn.Module) -> Head:
    """Find the head by the rules above."""
    path, inner = inner_model(model)
    by_name = not isinstance(inner, PreTrainedModel) and not any(_outermost_pretrained(inner))
    try:
        return Head(frozenset(_prefixed(path, _heads(inner))), by_name=by_name)
    except _Unclear as error:
        names = ", ".join(repr(_path_of(module, model)) for module in error.candidates)
        why = f"{names} could each belong to the head or to the backbone. Name the modules you mean by their paths."
        return Head(frozenset(), why, by_name)


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
    """Return the classes that `AutoModel` would build for this configuration; Funnel has two."""
    found: Any = MODEL_MAPPING.get(type(model.config), ())
    return found if isinstance(found, tuple) else (found,)


def _heads_inside(model: nn.Module) -> Iterator[str]:
    """Heads of the task models inside, such as the decoder of a `VisionEncoderDecoderModel`."""
    for path, inner in _outermost_pretrained(model):
        yield from _prefixed(path, _heads(inner, nested=isinstance(model, PreTrainedModel)))


def _beyond(base_classes: tuple[type[PreTrainedModel], ...], model: PreTrainedModel) -> Iterator[str]:
    """Return what `T5ForConditionalGeneration` has and `T5Model` does not; look into whole models inside instead."""
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
    if len(children) == 1 and not is_stack(model):
        ((name, child),) = children.items()
        yield from _prefixed(name, _heads_of_custom(child))
    elif children:
        yield from _conventional_heads(children)


_IN_FRONT = re.compile(r"(.*_)?(pre|conv\d*|norm|bn|ln|pool(er|ing)?)(_.*)?")


def _conventional_heads(children: dict[str, nn.Module]) -> list[str]:
    """Return the children named like a head, else those after the one named like a body, else a last linear layer."""
    names = list(children)
    heads = [name for name in names if _HEAD_NAME.fullmatch(name)]
    body = [name for name in names if _BODY_NAME.fullmatch(name) and name not in heads]
    if heads and len(heads) < len(names):
        return _last_run(children, heads)
    if body:
        after = names[names.index(body[-1]) + 1 :]
        if len(after) > 1 and not all(_holds_linear(children[name]) for name in after):
            raise _Unclear([children[name] for name in after])
        return after
    is_linear = len(names) > 1 and isinstance(children[names[-1]], nn.Linear)
    return names[-1:] if is_linear and not _IN_FRONT.fullmatch(names[-1]) else []


def _last_run(children: dict[str, nn.Module], heads: list[str]) -> list[str]:
    """Return the children named like a head that stand together; those in front of them are passed over or unclear."""
    names = list(children)
    heads = [name for name in heads if not _IN_FRONT.fullmatch(name)] or heads
    first, last = names.index(heads[0]), names.index(heads[-1])
    between = [name for name in names[first:last] if name not in heads]
    after = [name for name in names[last + 1 :] if not _BODY_NAME.fullmatch(name)]
    # In front of everything, the order of registration says nothing, and the name alone counts.
    if between or (after and first > 0):
        raise _Unclear([children[name] for name in names if name in {*heads, *after}])
    return heads


def _holds_linear(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Linear) for part in module.modules())


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
