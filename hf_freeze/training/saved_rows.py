"""In checkpoints of what trained, a matrix is stored as the rows that trained; its other rows are in the base.

The base describes such a matrix run by run. A matrix that is longer than in the base's files, because tokens were
added, is described as far as the files go; the rows beyond are in every checkpoint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from hf_freeze.errors import FreezeError
from hf_freeze.selection.rows import Rows, pieces, rows_named
from hf_freeze.training.digests import typed_digests
from hf_freeze.training.trained_file import Base

Cuts = Mapping[str, Sequence[Rows]]
"""Name of each matrix that is cut -> its pieces, which are all of it."""


def cuts_of(names: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Rows]]:
    """Cut each of these matrices wherever runs of its rows that are named begin or end."""
    return {matrix: pieces(rows, count=len(tensors[matrix])) for matrix, rows in _by_matrix(names, tensors).items()}


def in_rows(tensors: Mapping[str, torch.Tensor], cuts: Cuts) -> dict[str, torch.Tensor]:
    """Put in the place of each matrix that is cut its pieces, which share its memory."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        parts = {rows.name: tensor.detach()[rows.start : rows.stop] for rows in cuts.get(name, ())}
        found |= parts or {name: tensor}
    return found


def names_in_rows(names: Iterable[str], cuts: Cuts) -> set[str]:
    """Return these members by the pieces that they are made of."""
    found: set[str] = set()
    for name in names:
        rows = rows_named(name)
        matrix = rows.matrix if rows is not None and rows.matrix in cuts else name
        parts = cuts.get(matrix, ())
        found |= {part.name for part in parts if rows is None or part.is_within(rows)} if parts else {name}
    return found


def base_in_rows(base: Base, tensors: Mapping[str, torch.Tensor], cuts: Cuts) -> Base:
    """Describe each matrix that is cut by its pieces, as far as it is still what the base says."""
    described = {name: rows_named(name) for name in base.digests if name not in tensors}
    whole = {name: Rows(name, 0, len(tensors[name])) for name in cuts if name in base.digests}
    runs = whole | {name: rows for name, rows in described.items() if rows is not None and rows.matrix in cuts}
    wanted = {part.name for parts in cuts.values() for part in parts}
    again = {name: rows for name, rows in runs.items() if name not in wanted}
    now = typed_digests({name: tensors[rows.matrix].detach()[rows.start : rows.stop] for name, rows in again.items()})
    same = [rows for name, rows in again.items() if now[name] == base.digests[name]]
    parts = {
        part.name: tensors[part.matrix].detach()[part.start : part.stop]
        for part in (part for parts in cuts.values() for part in parts)
        if any(map(part.is_within, same))
    }
    kept = {name: digest for name, digest in base.digests.items() if name not in again}
    return replace(base, digests={**kept, **typed_digests(parts)})


def as_held(tensors: Mapping[str, torch.Tensor], held: Iterable[str], folder: object) -> dict[str, torch.Tensor]:
    """Cut the matrices of a model as a folder holds them; raises `FreezeError` for one of another length."""
    cuts = _by_matrix(held, tensors)
    for matrix, rows_held in cuts.items():
        count = max(rows.stop for rows in rows_held)
        if len(tensors[matrix]) != count:
            raise FreezeError(
                f"{str(folder)!r} belongs to a model whose {matrix!r} has {count} rows; here it has "
                f"{len(tensors[matrix])}. Resize it as it was for training: model.resize_token_embeddings({count})."
            )
    return in_rows(tensors, {matrix: sorted(found) for matrix, found in cuts.items()})


def _by_matrix(names: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> dict[str, list[Rows]]:
    """Return, of these names, the runs of rows of matrices that are there."""
    found: dict[str, list[Rows]] = {}
    for name in names:
        rows = None if name in tensors else rows_named(name)
        if rows is not None and rows.matrix in tensors:
            found.setdefault(rows.matrix, []).append(rows)
    return found
