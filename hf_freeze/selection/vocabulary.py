"""What the selection language can talk about: the names, roles and stacks of one model.

`model_map.ModelMap` is the `Vocabulary` of real models. What to say where it has no such name is here as well.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from hf_freeze.errors import SelectionError, UnsupportedSetupError
from hf_freeze.selection.rows import Rows

ROLES = ("head", "backbone", "embeddings", "layers", "rest", "norms", "biases", "adapters")


class LayerStack(Protocol):
    """A repeated block stack: where it is, and which parameters each of its layers owns."""

    @property
    def path(self) -> str: ...
    @property
    def layers(self) -> tuple[frozenset[str], ...]: ...


class Vocabulary(Protocol):
    """What the language can talk about: names, roles and stacks of one model.

    Parameters are identified by their canonical name, the first that `named_parameters` gives to the tensor.
    """

    @property
    def spellings(self) -> Mapping[str, frozenset[str]]:
        """Canonical name -> every exact way to write it (ties, PEFT wrapping)."""

    @property
    def short_spellings(self) -> Mapping[str, frozenset[str]]:
        """Canonical name -> its spellings without the base model's prefix, tried when the exact ones fail."""

    @property
    def below(self) -> Sequence[Mapping[str, frozenset[str]]]:
        """What `paths_below` says of the exact spellings, and of the short ones."""

    @property
    def roles(self) -> Mapping[str, frozenset[str]]: ...
    @property
    def unclear(self) -> Mapping[str, str]:
        """Role -> why it is unclear in this model, and what to do."""

    @property
    def stacks(self) -> Sequence[LayerStack]:
        """The stacks that `layers` means."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Canonical name of each tensor -> its shape."""

    @property
    def word_embeddings(self) -> frozenset[str]:
        """The matrices that `embeddings[rows]` may mean: one, or several where that cannot be told."""

    @property
    def uncuttable(self) -> Mapping[str, str]:
        """Canonical name -> why its rows cannot train apart."""

    @property
    def rows(self) -> Mapping[str, Rows]:
        """Canonical name -> which rows of which matrix it stands for, where a matrix is cut into several members."""

    @property
    def minor_stacks(self) -> Sequence[LayerStack]:
        """Stacks that only a path in front can reach, such as a convolutional feature extractor."""


@lru_cache(maxsize=2**14)  # a plan may name every tensor of a model
def path_pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a dotted path and of everything below it; `*` stays inside one segment."""
    segments = (re.escape(segment).replace(r"\*", r"[^.]*") for segment in path.split("."))
    return re.compile(r"\.".join(segments) + r"(\..+)?")


def ancestors(name: str) -> Iterator[str]:
    """Yield a dotted name's prefixes, shortest first, itself included."""
    segments = name.split(".")
    return (".".join(segments[:depth]) for depth in range(1, len(segments) + 1))


def paths_below(spellings: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Return, for every path that these spellings have, the canonical names at and below it."""
    found: dict[str, set[str]] = {}
    for name, ways in spellings.items():
        for way in ways:
            for path in ancestors(way):
                found.setdefault(path, set()).add(name)
    return {path: frozenset(names) for path, names in found.items()}


def names_below(path: str, words: Vocabulary) -> frozenset[str]:
    """Return the canonical names at and below a path."""
    return next((below[path] for below in words.below if path in below), frozenset())


def names_matching(pattern: re.Pattern[str], words: Vocabulary) -> frozenset[str]:
    """Return the canonical names that a pattern matches in full in one of their spellings."""
    for spellings in (words.spellings, words.short_spellings):
        found = frozenset(name for name, ways in spellings.items() if any(map(pattern.fullmatch, ways)))
        if found:
            return found
    return frozenset()


def is_inside(stack: LayerStack, pattern: re.Pattern[str], words: Vocabulary) -> bool:
    """Tell whether all layers of a stack lie where the pattern of a path matches."""
    members = frozenset().union(*stack.layers)
    return members <= names_matching(pattern, words)


def no_match(entry: str, term: str, words: Vocabulary) -> str:
    """Say that a term of an entry matches nothing, and name what the model has instead."""
    where = repr(entry) if entry == term else f"{entry!r}: {term!r}"
    if not words.spellings:
        return f"{where} matches nothing: the model has no parameters."
    start = f"{where} matches none of the {len(words.spellings)} parameters."
    if term in ROLES:
        known = ", ".join(role for role in ROLES if words.roles[role])
        if term == "head" and (ways := _tied_to_embeddings(words)):
            return (
                f"{start} The output weights are tied to the embeddings ({' is '.join(ways)}) and belong to those: "
                "leave 'head' out, or select 'embeddings'. In place of a recipe that trains a head, say what trains, "
                "such as trainable=['rest', 'layers[-2:]']."
            )
        return f"{start} This model has {known or 'no role'}; name the parameters by a dotted path instead."
    part = term.removesuffix(".layers")
    if part != term and any(is_inside(stack, path_pattern(part), words) for stack in words.stacks):
        start += f" All layers inside {part!r} are {term + '[:]'!r}."
    return f"{start} Nearest: {', '.join(map(repr, _nearest(term, words)))}."


def _tied_to_embeddings(words: Vocabulary) -> list[str]:
    """Return the names of the one matrix that the model reads tokens by and, under another name, predicts them by."""
    for name in sorted(words.roles["embeddings"]):
        ways = sorted(words.spellings.get(name, ()))
        # PEFT gives names in front of which it stands with and without its own.
        apart = [way for way in ways if not any(way != other and way.endswith(f".{other}") for other in ways)]
        if len(apart) > 1:
            return apart
    return []


def _nearest(term: str, words: Vocabulary) -> list[str]:
    """Existing names that look most like a mistyped one: roles, module paths and parameter names."""
    term = term.removeprefix("re:").lower()
    candidates = dict.fromkeys([*(role for role in ROLES if words.roles[role]), *_all_paths(words)])
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    near = difflib.get_close_matches(term, by_lower, n=3, cutoff=0.5)
    near += [path for path in by_lower if path.rpartition(".")[2] == term.rpartition(".")[2]][:3]
    near = near or difflib.get_close_matches(term, by_lower, n=3, cutoff=0.0)
    return list(dict.fromkeys(by_lower[path] for path in near))[:3]


def _all_paths(words: Vocabulary) -> Iterator[str]:
    for spellings in (words.short_spellings, words.spellings):
        for ways in spellings.values():
            for way in sorted(ways):
                yield from ancestors(way)


def what_stacks(words: Vocabulary) -> str:
    """Say which stacks of layers there are."""
    stacks = [*words.stacks, *words.minor_stacks]
    if not stacks:
        return "this model has no repeated stack of layers; name its modules by a dotted path instead."
    return f"The stacks are: {stack_sizes(stacks)}."


def stack_sizes(stacks: Iterable[LayerStack]) -> str:
    """Say how many layers each stack has."""
    return ", ".join(f"{stack.path!r} has {len(stack.layers)} layers" for stack in stacks)


def paths_in_front(stacks: Sequence[LayerStack]) -> list[str]:
    """Return the path of each stack in `path.layers[...]`: the part that holds it, or its own path."""
    return [_path_in_front(stack, stacks) for stack in stacks]


def _path_in_front(stack: LayerStack, stacks: Sequence[LayerStack]) -> str:
    holder = stack.path.rpartition(".")[0]
    inside = [other for other in stacks if other.path.startswith(f"{holder}.")]
    return holder if holder and inside == [stack] else stack.path


def the_matrix(members: Collection[str], words: Vocabulary, *, text: str, holder: str) -> str:
    """Return the one matrix that a path or a role holds.

    Raises `SelectionError` where there is none or several, `UnsupportedSetupError` where its rows cannot train apart.
    """
    tensors = {words.rows[name].matrix if name in words.rows else name for name in members}
    if holder == "embeddings":
        tensors = set(words.word_embeddings & tensors or words.word_embeddings)
        if not tensors:
            raise SelectionError(f"{text!r}: this model has no matrix of word embeddings. Name a matrix by its path.")
    matrices = sorted(name for name in tensors if len(words.shapes[name]) == 2)
    if len(tensors) == 1 and (why := words.uncuttable.get(min(tensors))):
        raise UnsupportedSetupError(f"{text!r}: rows of {min(tensors)!r} cannot train on their own: {why}.")
    if not matrices:
        found = ", ".join(f"{name!r} has the shape {words.shapes[name]}" for name in sorted(tensors)[:3])
        raise SelectionError(f"{text!r}: only a matrix has rows that can be selected, and {found}. Select it whole.")
    if len(matrices) > 1:
        raise SelectionError(_several(matrices, words, text=text, holder=holder))
    if why := words.uncuttable.get(matrices[0]):
        raise UnsupportedSetupError(f"{text!r}: rows of {matrices[0]!r} cannot train on their own: {why}.")
    return matrices[0]


def _several(matrices: Sequence[str], words: Vocabulary, *, text: str, holder: str) -> str:
    index = text[text.rindex("[") :]
    stacks = {stack.path for stack in (*words.stacks, *words.minor_stacks)}
    if any(path == holder or path.endswith(f".{holder}") for path in stacks):
        return f"{text!r}: {holder!r} is a stack of layers. Write 'layers{index}' for its layers."
    more = f" and {len(matrices) - 3} more" if len(matrices) > 3 else ""
    choices = ", ".join(repr(f"{name.removesuffix('.weight')}{index}") for name in matrices[:3])
    return f"{text!r} could mean rows of several matrices. Say which: {choices}{more}."
