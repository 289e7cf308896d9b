"""What the parts of a model are: names, roles, layer stacks and ties, for any `nn.Module`.

`map_model` looks once at a model and returns plain names and sets (`ModelMap`), the vocabulary that selections are
evaluated against. Each tensor is known by its canonical name, the first that `named_parameters` gives to it, and
belongs to exactly one part: head, embeddings, layers or rest.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.nn.parameter import UninitializedParameter

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.selection import peft_support
from hf_freeze.selection.embeddings import (
    embedding_paths,
    names_an_embedding,
    stem_paths,
    tables_in_one_piece,
    word_embeddings,
)
from hf_freeze.selection.frozen_marks import frozen_by_us
from hf_freeze.selection.heads import base_path, find_head
from hf_freeze.selection.norms import norm_names
from hf_freeze.selection.rows import Rows, joined
from hf_freeze.selection.stacks import Stack, find_stacks, renamed
from hf_freeze.selection.vocabulary import ancestors, paths_below


@dataclass(frozen=True, kw_only=True)
class ModelMap:
    """The names of a model and what they mean; the vocabulary of selections. Sets hold canonical names."""

    spellings: Mapping[str, frozenset[str]]
    short_spellings: Mapping[str, frozenset[str]]
    ties: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, str]
    roles: Mapping[str, frozenset[str]]
    unclear: Mapping[str, str]
    head_by_name: tuple[str, ...]
    stacks: tuple[Stack, ...]
    minor_stacks: tuple[Stack, ...]
    frozen_at_hand_in: frozenset[str]
    frozen_by_peft: frozenset[str]
    inactive: frozenset[str]
    not_floating: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    word_embeddings: frozenset[str]
    uncuttable: Mapping[str, str]
    rows: Mapping[str, Rows] = field(default_factory=dict)

    @cached_property
    def below(self) -> tuple[dict[str, frozenset[str]], ...]:
        """Path -> the tensors at and below it, for exact spellings and for short ones."""
        return paths_below(self.spellings), paths_below(self.short_spellings)

    @cached_property
    def cuts(self) -> dict[str, tuple[Rows, ...]]:
        """Canonical name of each matrix that is cut -> its pieces in order."""
        found: dict[str, tuple[Rows, ...]] = {}
        for rows in sorted(self.rows.values()):
            found[rows.matrix] = (*found.get(rows.matrix, ()), rows)
        return found

    def in_whole_runs(self, names: frozenset[str]) -> frozenset[str]:
        """Join neighbouring rows: what trains does not depend on how many members rates cut them into."""
        if not self.rows:
            return names
        runs = joined(self.rows[name] for name in names & self.rows.keys())
        whole = (run.matrix if len(run) == self.shapes[run.matrix][0] else run.name for run in runs)
        return (names - self.rows.keys()) | frozenset(whole)

    def every_alias(self, canonical: Iterable[str]) -> frozenset[str]:
        """Return every name, aliases of tied weights included, of the tensors that these canonical names stand for."""
        names = frozenset(canonical)
        return names.union(*(self.ties[name] for name in self._tied & names))

    @cached_property
    def _tied(self) -> frozenset[str]:
        return frozenset(name for name, aliases in self.ties.items() if len(aliases) > 1)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel, DeepSpeed and torch.compile wrappers, in any order."""
    if not isinstance(model, nn.Module):
        raise FreezeError(f"The model must be a torch.nn.Module; got {model!r}, a {type(model).__name__}.")
    if not (hasattr(model, "module") or hasattr(model, "_orig_mod")):
        return model  # no wrapper; accelerate would look through all modules for compiled ones
    unwrapped: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return model if unwrapped is model else unwrap(unwrapped)


def map_model(model: nn.Module) -> ModelMap:
    """Map a `PreTrainedModel`, a PEFT model or any `nn.Module`, wrapped or not."""
    model = unwrap(model)
    by_name = dict(model.named_parameters(remove_duplicate=False))
    _refuse_lazy(by_name)
    ties = _ties(by_name)
    tensors = _canonical_names(ties)
    head = find_head(model)
    main, minor = (renamed(found, tensors) for found in find_stacks(model, outside=head.paths))
    main = _each_once(main)
    parts = _parts(model, ties, heads=head.paths, stacks=main)
    wrapped = peft_support.wrapped_models(model)
    adapters = tensors(peft_support.adapter_names(model))
    inactive = tensors(peft_support.inactive_names(model))
    roles = _roles(parts, ties, norms=tensors(norm_names(model)), adapters=adapters, inactive=inactive)
    frozen = frozenset(name for name in ties if not by_name[name].requires_grad) - tensors(frozen_by_us(model))
    return ModelMap(
        spellings=_spellings(ties, wrapped),
        short_spellings=_short_spellings(ties, base_path(model), wrapped),
        ties=ties,
        parts=parts,
        roles=roles | {"adapters": tensors(peft_support.trained_by_peft(model))},
        unclear=dict.fromkeys(("head", "backbone"), head.unclear) if head.unclear else {},
        head_by_name=tuple(sorted(head.paths)) if head.by_name else (),
        stacks=main,
        minor_stacks=minor,
        frozen_at_hand_in=frozen,
        frozen_by_peft=(frozen & tensors(peft_support.frozen_by_peft(model))) - adapters,
        inactive=inactive,
        not_floating=frozenset(name for name in ties if not _can_have_gradient(by_name[name])),
        shapes={name: tuple(getattr(by_name[name], "ds_shape", by_name[name].shape)) for name in ties},
        word_embeddings=_names_of(word_embeddings(model), ties, by_name),
        uncuttable=_uncuttable(ties, by_name, tables_in_one_piece(model)),
    )


def _refuse_lazy(by_name: Mapping[str, torch.Tensor]) -> None:
    if lazy := next((name for name, p in by_name.items() if isinstance(p, UninitializedParameter)), None):
        raise UnsupportedSetupError(
            f"{lazy!r} has no shape yet: a lazy module learns it in its first call. Send one batch "
            "through the model first."
        )


def _canonical_names(ties: Mapping[str, tuple[str, ...]]) -> Callable[[Iterable[str]], frozenset[str]]:
    """Return what turns names of parameters, of whichever alias, into canonical ones."""
    canonical = {alias: name for name, aliases in ties.items() for alias in aliases}
    return lambda names: frozenset(canonical[name] for name in names)


def _names_of(
    tensors: Iterable[torch.Tensor], ties: Iterable[str], by_name: Mapping[str, torch.Tensor]
) -> frozenset[str]:
    ids = set(map(id, tensors))
    return frozenset(name for name in ties if id(by_name[name]) in ids)


def _uncuttable(ties: Iterable[str], by_name: Mapping[str, torch.Tensor], tables: Mapping[int, str]) -> dict[str, str]:
    """Return canonical name -> why rows of it cannot train while others are frozen."""
    reasons: dict[str, str] = {}
    for name in ties:
        tensor = by_name[name]
        if hasattr(tensor, "ds_tensor") or hasattr(tensor, "to_local"):
            reasons[name] = "FSDP2, tensor parallelism or ZeRO-3 keeps it in shards. Use DistributedDataParallel"
        elif not _can_have_gradient(tensor) or type(tensor.data) is not torch.Tensor:
            reasons[name] = "its values are quantised or packed. Load the model without quantisation"
        elif id(tensor) in tables:
            reasons[name] = tables[id(tensor)]
    return reasons


def _each_once(stacks: tuple[Stack, ...]) -> tuple[Stack, ...]:
    """Drop a stack that is another one under a second name: both towers may share an encoder."""
    return tuple({stack.layers: stack for stack in reversed(stacks)}.values())[::-1]


def _ties(by_name: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, ...]]:
    aliases: dict[int, list[str]] = {}
    for name, parameter in by_name.items():
        aliases.setdefault(id(parameter), []).append(name)
    return {names[0]: tuple(names) for names in aliases.values()}


def _can_have_gradient(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _spellings(ties: Mapping[str, tuple[str, ...]], wrapped: peft_support.Wrapped) -> dict[str, frozenset[str]]:
    return {
        name: frozenset().union(*(peft_support.spellings(alias, wrapped) for alias in aliases))
        for name, aliases in ties.items()
    }


def _short_spellings(
    ties: Mapping[str, tuple[str, ...]], base: str, wrapped: peft_support.Wrapped
) -> dict[str, frozenset[str]]:
    prefix = peft_support.plain_name(f"{base}.", wrapped)
    if not base or not prefix:
        return dict.fromkeys(ties, frozenset())
    return {
        name: frozenset(way.removeprefix(prefix) for way in ways if way.startswith(prefix))
        for name, ways in _spellings(ties, wrapped).items()
    }


def _parts(
    model: nn.Module, ties: Mapping[str, tuple[str, ...]], *, heads: frozenset[str], stacks: tuple[Stack, ...]
) -> dict[str, str]:
    """Give every tensor exactly one part. A tensor tied between the base and the head belongs to the base."""
    in_layers = frozenset().union(*(layer for stack in stacks for layer in stack.layers))
    embedding = embedding_paths(model, stacks) | stem_paths(model, stacks)

    def part(name: str) -> str:
        in_base = [alias for alias in ties[name] if not _below(alias, heads)]
        if name in in_layers:
            return "layers"
        if not in_base:
            return "head"
        is_embedding = any(_below(alias, embedding) or names_an_embedding(alias) for alias in in_base)
        return "embeddings" if is_embedding else "rest"

    return {name: part(name) for name in ties}


def _below(name: str, paths: frozenset[str]) -> bool:
    return any(prefix in paths for prefix in ancestors(name))


_BIAS = re.compile(r"(.*_)?bias(_(ih|hh|hr)_l\d+(_reverse)?|_[kv])?")


def _roles(
    parts: Mapping[str, str],
    ties: Mapping[str, tuple[str, ...]],
    *,
    norms: frozenset[str],
    adapters: frozenset[str],
    inactive: frozenset[str],
) -> dict[str, frozenset[str]]:
    own = frozenset(parts) - adapters - inactive
    head = frozenset(name for name in own if parts[name] == "head")
    return {
        "head": head,
        "backbone": own - head,
        "embeddings": frozenset(name for name in own if parts[name] == "embeddings"),
        "layers": frozenset(name for name, part in parts.items() if part == "layers") - inactive,
        "rest": frozenset(name for name in own if parts[name] == "rest"),
        "norms": norms - inactive - adapters,
        "biases": frozenset(
            name for name in own if any(_BIAS.fullmatch(alias.rpartition(".")[2]) for alias in ties[name])
        ),
    }
