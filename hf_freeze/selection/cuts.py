"""Cut matrices in the map of a model where selections name rows of them: each run of rows is a member like a tensor."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from torch import nn

from hf_freeze.selection.language import RowsOf, Selection, parse
from hf_freeze.selection.model_map import ModelMap, unwrap
from hf_freeze.selection.rows import Rows, pieces
from hf_freeze.selection.stacks import renamed

_T = TypeVar("_T")


def cut_at(model_map: ModelMap, selections: Iterable[Selection | None]) -> ModelMap:
    """Return a map in which the rows that these selections name are members of their own.

    Where none is named, it is the map that was given. Raises `SelectionError` for rows that do not exist.
    """
    given = (selection for selection in selections if selection is not None)
    terms = (term for selection in given for entry in parse(selection) for term in entry.terms)
    named = {rows for term in terms if isinstance(term, RowsOf) for rows in term.found(model_map)}
    cuts: dict[str, list[Rows]] = {}
    for matrix in dict.fromkeys(rows.matrix for rows in sorted(named)):
        here = [rows for rows in (*named, *model_map.rows.values()) if rows.matrix == matrix]
        cuts[matrix] = pieces(here, count=model_map.shapes[matrix][0])
    return _cut(model_map, {matrix: cut for matrix, cut in cuts.items() if len(cut) > 1})


def _cut(model_map: ModelMap, cuts: Mapping[str, Sequence[Rows]]) -> ModelMap:
    if not cuts:
        return model_map
    before = {name: rows.matrix for name, rows in model_map.rows.items() if rows.matrix in cuts}
    cut = {rows.name: rows for found in cuts.values() for rows in found}
    members = partial(_members, before=before, cuts=cuts)

    def names(canonical: Iterable[str]) -> frozenset[str]:
        return frozenset(members(dict.fromkeys(canonical)))

    tied = {name: tuple(map(rows.of, model_map.ties[rows.matrix])) for name, rows in cut.items()}
    return replace(
        model_map,
        spellings=members(model_map.spellings),
        short_spellings=members(model_map.short_spellings),
        ties={**model_map.ties, **tied},
        parts=members(model_map.parts),
        roles={role: names(found) for role, found in model_map.roles.items()},
        stacks=renamed(model_map.stacks, names),
        minor_stacks=renamed(model_map.minor_stacks, names),
        frozen_at_hand_in=names(model_map.frozen_at_hand_in),
        frozen_by_peft=names(model_map.frozen_by_peft),
        inactive=names(model_map.inactive),
        not_floating=names(model_map.not_floating),
        rows={**{name: rows for name, rows in model_map.rows.items() if name not in before}, **cut},
    )


def _members(
    by_name: Mapping[str, _T], *, before: Mapping[str, str], cuts: Mapping[str, Sequence[Rows]]
) -> dict[str, _T]:
    """Give each piece of a matrix that is cut the value of the matrix, or of the piece `before` that it is part of."""
    found: dict[str, _T] = {}
    for name, value in by_name.items():
        matrix = before.get(name, name)
        found.update(dict.fromkeys((rows.name for rows in cuts[matrix]) if matrix in cuts else [name], value))
    return found


def sizes_of(model: nn.Module, model_map: ModelMap) -> dict[str, int]:
    """Return canonical name of each member -> number of elements; under DeepSpeed ZeRO-3 that of the whole tensor."""
    sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in unwrap(model).named_parameters()}
    for matrix, cut in model_map.cuts.items():
        width = model_map.shapes[matrix][1]
        if sizes.get(matrix) == width * sum(map(len, cut)):  # else it was resized since
            del sizes[matrix]
            sizes |= {found.name: width * len(found) for found in cut}
    return sizes
