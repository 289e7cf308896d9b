"""What makes the first layer's input: embedding tables and modules, and the stem in front of a layer stack."""

import re
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.selection.stacks import Stack
from hf_freeze.selection.vocabulary import ancestors

_EMBEDDING_PARAMETER = re.compile(
    r".*(embed|(^|_)emb(_|$)|(^|_)(cls|mask|distillation|dist|class)_token).*|pos(itions?|itional)?(_enc(oding)?)?",
    re.IGNORECASE,
)


def names_an_embedding(parameter_name: str) -> bool:
    """Tell a bare parameter that is an embedding by its own name: `cls_token`, `mask_emb`, `position_embeddings`."""
    return bool(_EMBEDDING_PARAMETER.fullmatch(parameter_name.rpartition(".")[2]))


def embedding_paths(model: nn.Module, stacks: tuple[Stack, ...]) -> frozenset[str]:
    """Paths of modules that are embeddings by type or by name, and hold no layer stack."""
    holders = set().union(*map(_holders, stacks))
    return frozenset(
        path
        for path, module in model.named_modules(remove_duplicate=False)
        if path and path not in holders and _is_embedding(path, module)
    )


def _is_embedding(path: str, module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Embedding)
        or "embed" in path.rpartition(".")[2].lower()
        or "embed" in type(module).__name__.lower()
    )


def word_embeddings(model: nn.Module) -> list[torch.Tensor]:
    """Return the matrices with one row per token, as the models of transformers inside name them.

    Without one, any embedding table may be it. Several mean that it cannot be told which.
    """
    inner = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    tables = map(_input_embeddings, inner) if inner else model.modules()
    kinds = nn.Module if inner else (nn.Embedding, nn.EmbeddingBag)
    weights = (getattr(table, "weight", None) for table in tables if isinstance(table, kinds))
    matrices = (weight for weight in weights if isinstance(weight, nn.Parameter) and weight.dim() == 2)
    return [*{id(weight): weight for weight in matrices}.values()]


def _input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # models of images raise either
        return None


def tables_in_one_piece(model: nn.Module) -> dict[int, str]:
    """Return the ids of the tables of which rows cannot be told apart, each with the reason."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    sparse = "its gradients are sparse. Build the embedding with sparse=False"
    rescaled = "looking rows up scales them to max_norm, frozen ones too. Build the embedding with max_norm=None"
    reasons = {id(table.weight): sparse for table in tables if table.sparse}
    return reasons | {id(table.weight): rescaled for table in tables if table.max_norm is not None}


def stem_paths(model: nn.Module, stacks: tuple[Stack, ...]) -> frozenset[str]:
    """Paths of modules that a tower registers before its layers.

    A tower is the largest module that holds exactly one stack.
    """
    holders = [_holders(stack) for stack in stacks]
    stem: set[str] = set()
    for mine in holders:
        others = set().union(*(theirs for theirs in holders if theirs is not mine))
        for parent in mine - others:
            stem.update(_children_before(model, parent, mine))
    return frozenset(stem)


def _holders(stack: Stack) -> set[str]:
    return {prefix for member in stack.members for prefix in ["", *ancestors(member)]}


def _children_before(model: nn.Module, parent: str, on_the_way: set[str]) -> Iterator[str]:
    for name, _ in model.get_submodule(parent).named_children():
        path = f"{parent}.{name}" if parent else name
        if path in on_the_way:
            return
        yield path
