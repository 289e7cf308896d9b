"""The selection language: a short text that picks parameters by name, role or layer.

    selection := one string, or a list of strings read in order; a later entry overrides an earlier one
    entry     := ["!"] term ("&" term)*              "!x" takes x out; "a & b" is the intersection
    term      := "all" | role | [path "."] "layers[" index "]" | rows | dotted path with "*" | "re:" regex | literal
    rows      := (role | dotted path | literal) "[" index "]"     rows of the one matrix there: lm_head[32000:]
    literal   := a dotted path in double quotes, taken as it is (escapes as in JSON): "extra.q&a"
    index     := python index or slice, or a comma list of them: layers[0], layers[-2:], layers[0,5,-1]

`embeddings[-3:]` are rows of the matrix of word embeddings, whatever positions and types have beside it.

Everything here is text and sets: what the names, roles and layers of a model are is asked of its `Vocabulary`. One that
has been cut (`rows.cut_at`) knows the rows that a selection names as members of their own.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Protocol, TypeAlias

from hf_freeze.errors import SelectionError
from hf_freeze.selection.rows import Rows, row_ranges
from hf_freeze.selection.vocabulary import (
    ROLES,
    LayerStack,
    Vocabulary,
    is_inside,
    names_below,
    names_matching,
    no_match,
    path_pattern,
    paths_in_front,
    stack_sizes,
    the_matrix,
    what_stacks,
)

Selection: TypeAlias = str | Sequence[str]


class Specificity(IntEnum):
    """How directly a selection named a parameter; decides whether it may unfreeze what was handed in frozen."""

    EVERYTHING = 0
    ROLE = 1
    NAMED = 2


class Term(Protocol):
    """One condition; picks canonical names out of a vocabulary."""

    @property
    def specificity(self) -> Specificity: ...
    def pick(self, words: Vocabulary) -> frozenset[str]: ...


@dataclass(frozen=True)
class Everything:
    """`all`."""

    specificity = Specificity.EVERYTHING

    def pick(self, words: Vocabulary) -> frozenset[str]:
        return frozenset(words.spellings)


@dataclass(frozen=True)
class Role:
    """`head`, `norms`, ..."""

    name: str
    specificity = Specificity.ROLE

    def pick(self, words: Vocabulary) -> frozenset[str]:
        if self.name in words.unclear:
            raise SelectionError(f"{self.name!r} is ambiguous in this model: {words.unclear[self.name]}")
        return words.roles[self.name]


@dataclass(frozen=True)
class DottedPath:
    """`bert.encoder.layer.1`: the path and everything below it; `*` stays inside one segment."""

    text: str
    specificity = Specificity.NAMED

    def pick(self, words: Vocabulary) -> frozenset[str]:
        return names_matching(path_pattern(self.text), words) if "*" in self.text else names_below(self.text, words)


@dataclass(frozen=True)
class Literal:
    """`"extra.q&a"`: a dotted path in quotes, which may hold what is a sign of the language elsewhere."""

    path: str
    specificity = Specificity.NAMED

    def pick(self, words: Vocabulary) -> frozenset[str]:
        return names_below(self.path, words)


@dataclass(frozen=True)
class Regex:
    """`re:...`: a full match on the parameter name."""

    pattern: re.Pattern[str]
    specificity = Specificity.NAMED

    def pick(self, words: Vocabulary) -> frozenset[str]:
        return names_matching(self.pattern, words)


@dataclass(frozen=True)
class Layers:
    """`layers[-2:]`, `encoder.layers[0]`: layers of the one stack there is, or of the stack inside a part."""

    text: str
    path: str
    indices: tuple[int | slice, ...]
    specificity = Specificity.NAMED

    def pick(self, words: Vocabulary) -> frozenset[str]:
        stack = self._stack(words)
        picked: set[str] = set()
        for index in self.indices:
            picked.update(*self._layers(stack, index))
        return frozenset(picked)

    def _layers(self, stack: LayerStack, index: int | slice) -> tuple[frozenset[str], ...]:
        count = len(stack.layers)
        if isinstance(index, slice):
            found = stack.layers[index]
            if not found:
                raise SelectionError(f"{self.text!r} is an empty slice: {stack_sizes([stack])}.")
            return found
        if not -count <= index < count:
            raise SelectionError(
                f"{self.text!r}: index {index} is out of range: {stack_sizes([stack])}, "
                f"so an index runs from {-count} to {count - 1}."
            )
        return (stack.layers[index],)

    def _stack(self, words: Vocabulary) -> LayerStack:
        if not self.path:
            return self._only(words.stacks, words)
        for stacks in (words.stacks, words.minor_stacks):
            inside = [stack for stack in stacks if is_inside(stack, path_pattern(self.path), words)]
            if inside:
                return self._only(inside, words)
        if not DottedPath(self.path).pick(words):
            raise SelectionError(no_match(self.text, self.path, words))
        raise SelectionError(f"{self.text!r}: there is no stack of layers inside {self.path!r}. {what_stacks(words)}")

    def _only(self, stacks: Sequence[LayerStack], words: Vocabulary) -> LayerStack:
        if len(stacks) == 1:
            return stacks[0]
        if not stacks:
            raise SelectionError(f"{self.text!r}: {what_stacks(words)}")
        index = self.text[self.text.rindex("[") :]
        choices = ", ".join(repr(f"{path}.layers{index}") for path in paths_in_front(stacks))
        raise SelectionError(
            f"{self.text!r} could mean several stacks: {stack_sizes(stacks)}. Say which: {choices}, "
            "or use 'layers' for the layers of all of them."
        )


@dataclass(frozen=True)
class RowsOf:
    """`lm_head[32000:]`, `embeddings[-3:]`: rows of the one matrix that a path or a role holds."""

    text: str
    holder: "Role | DottedPath | Literal"
    indices: tuple[int | slice, ...]
    specificity = Specificity.NAMED

    def found(self, words: Vocabulary) -> list[Rows]:
        """Return the runs of rows that are meant; raises `SelectionError`."""
        holder = _term_text(self.holder)
        members = self.holder.pick(words)
        if not members:
            raise SelectionError(no_match(self.text, holder, words))
        matrix = the_matrix(members, words, text=self.text, holder=holder)
        return row_ranges(self.text, matrix, self.indices, count=words.shapes[matrix][0])

    def pick(self, words: Vocabulary) -> frozenset[str]:
        found = self.found(words)
        matrix, count = found[0].matrix, sum(map(len, found))
        if count == words.shapes[matrix][0] and matrix in words.spellings:
            return frozenset([matrix])
        picked = frozenset(name for name, rows in words.rows.items() if any(map(rows.is_within, found)))
        assert sum(len(words.rows[name]) for name in picked) == count, f"the map is not cut for {self.text!r}"
        return picked


@dataclass(frozen=True)
class Entry:
    """One string of a selection: terms whose intersection is added, or taken out."""

    text: str
    terms: tuple[Term, ...]
    takes_out: bool

    @property
    def specificity(self) -> Specificity:
        return max(term.specificity for term in self.terms)

    def pick(self, words: Vocabulary) -> frozenset[str]:
        """Pick the names; raise `SelectionError` when a term or the intersection is empty."""
        if len(self.terms) > 1 and (whole := names_below(self.text.strip().removeprefix("!").strip(), words)):
            return whole  # '&' in the name of a module
        picked: frozenset[str] | None = None
        for term in self.terms:
            found = term.pick(words)
            # `rest` is what is left of the backbone, which may be nothing: DistilBERT has no pooler.
            if not found and term != Role("rest"):
                raise SelectionError(no_match(self.text, _term_text(term), words))
            picked = found if picked is None else picked & found
        assert picked is not None
        if not picked and self.terms != (Role("rest"),):
            raise SelectionError(
                f"{self.text!r} matches nothing: each of its terms matches parameters, but none matches all of them."
            )
        return picked


@dataclass(frozen=True)
class Picked:
    """What a selection says of each parameter: picked, taken out again, or (absent from both) not mentioned."""

    names: Mapping[str, Specificity]
    taken_out: Mapping[str, Specificity]


def evaluate(selection: Selection, words: Vocabulary) -> Picked:
    """Read a selection against a model's vocabulary.

    Raises `SelectionError` when an entry cannot be parsed or matches nothing, or when nothing is left.
    """
    picked: dict[str, Specificity] = {}
    taken_out: dict[str, Specificity] = {}
    for entry in parse(selection):
        into, out_of = (taken_out, picked) if entry.takes_out else (picked, taken_out)
        names = entry.pick(words)
        for name in out_of.keys() & names if out_of else ():
            del out_of[name]
        into.update(dict.fromkeys(names, entry.specificity))
    if not picked and not taken_out:
        raise SelectionError(
            f"{selection!r} selects nothing: outside its head, embeddings and layers the model has no parameters."
        )
    if not picked:
        raise SelectionError(
            f"{selection!r} selects nothing: every entry takes out ('!') what no entry before it put in. "
            "Begin with what to pick, for example ['all', '!norms']."
        )
    return Picked(picked, taken_out)


def parse(selection: Selection) -> tuple[Entry, ...]:
    """Parse a selection into entries, without any model; raises `SelectionError`.

    >>> [entry.takes_out for entry in parse(["backbone", "!layers[-2:] & norms"])]
    [False, True]
    """
    texts = [selection] if isinstance(selection, str) else selection
    # A set has no order to read entries in, and not the same one in every process.
    strange = [text for text in texts if not isinstance(text, str)] if isinstance(texts, Sequence) else [texts]
    if strange:
        found = f"{strange[0]!r} is a {type(strange[0]).__name__}"
        raise SelectionError(f"A selection must be a string or a list of strings; {found}.")
    if not texts:
        raise SelectionError("An empty list selects nothing. Name what to select, for example ['head'] or ['all'].")
    return tuple(map(_parse_entry, texts))


@lru_cache(maxsize=2**14)  # a plan may name every tensor of a model
def _parse_entry(text: str) -> Entry:
    stripped = text.strip()
    takes_out = stripped.startswith("!")
    terms = [term.strip() for term in _terms(stripped.removeprefix("!"))]
    return Entry(text, tuple(_parse_term(term, text) for term in terms), takes_out)


def quoted(path: str) -> str:
    """Write a path so that nothing in it is a sign of the language.

    >>> quoted("extra.q&a")
    '"extra.q&a"'
    """
    return json.dumps(path, ensure_ascii=False)


def _terms(text: str) -> list[str]:
    """Split at every '&' that is not in quotes."""
    return re.findall(r"(?:^|(?<=&))((?:\s*" + _LITERAL.pattern + r"\s*(?=&|$))|[^&]*)", text)


_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')
_LAYERS = re.compile(r"(?:(?P<path>.+)\.)?layers\[(?P<index>.*)\]")
_PATH = re.compile(r"[\w*-]+(\.[\w*-]+)*")
_ROWS = re.compile(rf"(?P<holder>{_LITERAL.pattern}|{_PATH.pattern})\[(?P<index>[^\[\]]*)\]")


def _parse_term(term: str, entry: str) -> Term:
    if not term:
        raise SelectionError(f"{entry!r} has an empty term. {_GRAMMAR}")
    if term.startswith("re:"):
        return _parse_regex(term, entry)
    if term.startswith("!"):
        raise SelectionError(
            f"{entry!r}: '!' stands only at the start of an entry. Write two entries: "
            f"[{entry.split('&')[0].strip()!r}, {term!r}]."
        )
    if _LITERAL.fullmatch(term):
        return _parse_literal(term, entry)
    if term == "all":
        return Everything()
    if term in ROLES:
        return Role(term)
    if layers := _LAYERS.fullmatch(term):
        return Layers(entry, layers["path"] or "", tuple(_parse_index(layers["index"], entry)))
    if rows := _ROWS.fullmatch(term):
        return RowsOf(entry, _parse_holder(rows["holder"], entry), tuple(_parse_index(rows["index"], entry)))
    if not _PATH.fullmatch(term):
        raise SelectionError(f"{entry!r} is not a selection: {term!r} cannot be read. {_GRAMMAR}")
    return DottedPath(term)


_GRAMMAR = (
    f"An entry is 'all', a role ({', '.join(ROLES)}), layers[index], a dotted path with '*', rows such as "
    "lm_head[32000:], or re:regex; "
    "a path with other characters goes in double quotes; '!' in front takes it out, '&' intersects. "
    "Several entries are several strings in a list."
)


def _parse_holder(term: str, entry: str) -> "Role | DottedPath | Literal":
    if _LITERAL.fullmatch(term):
        return _parse_literal(term, entry)
    if term == "all":
        raise SelectionError(f"{entry!r}: 'all' is not a matrix. Name one, as in embeddings[-3:] or lm_head[32000:].")
    return Role(term) if term in ROLES else DottedPath(term)


def _parse_literal(term: str, entry: str) -> Literal:
    try:
        return Literal(json.loads(term, strict=False))
    except ValueError as error:
        raise SelectionError(f"{entry!r}: {term} is not a string in double quotes as in JSON: {error}.") from error


def _parse_regex(term: str, entry: str) -> Regex:
    try:
        return Regex(re.compile(term.removeprefix("re:")))
    except (re.error, OverflowError, RecursionError) as error:
        raise SelectionError(f"{entry!r} is not a valid regular expression: {error}.") from error


def _parse_index(text: str, entry: str) -> Iterator[int | slice]:
    for part in text.split(","):
        bounds = [bound.strip() for bound in part.split(":")]
        try:
            numbers = [int(bound) if bound else None for bound in bounds]
            if len(numbers) == 1 and numbers[0] is not None:
                yield numbers[0]
                continue
            if not 2 <= len(numbers) <= 3 or numbers[2:] == [0]:
                raise ValueError
        except ValueError:
            raise SelectionError(
                f"{entry!r}: {part.strip()!r} is not an index or a slice. "
                "Write layers[0], layers[-2:], layers[:6] or layers[0,5,-1], and rows of a matrix likewise."
            ) from None
        yield slice(*numbers)


def _term_text(term: Term) -> str:
    match term:
        case Everything():
            return "all"
        case Role(name):
            return name
        case DottedPath(text):
            return text
        case Literal(path):
            return quoted(path)
        case Regex(pattern):
            return f"re:{pattern.pattern}"
    return str(getattr(term, "text", term))
