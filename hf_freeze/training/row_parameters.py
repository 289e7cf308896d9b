"""Rows of a matrix that train while its other rows are frozen, in any loop and with any optimizer.

autograd knows whole tensors only, and an optimizer decays and moves all that it holds, also by a gradient of zeros. So:

- The matrix requires a gradient. A hook sets that of frozen rows to zero as soon as it is accumulated, before
  DistributedDataParallel reduces it and before it is clipped.
- `members` gives one parameter per run of rows, which shares memory with the matrix. An optimizer over these steps,
  decays and keeps moments for these rows alone; `param_groups` and FreezeTrainer build theirs so. Their gradients are
  views of the matrix's own, set as backward ends and once more before the optimizer steps.
- An optimizer that holds the matrix itself moves all of it, and has moments for all of it: the frozen rows are put back
  after each of its steps. In that of a plain Trainer, `rows_in_optimizer` lets members take the place of the matrix.

Copies of a model do not have the hooks: freeze their rows anew.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.selection.frozen_marks import mark_rows
from hf_freeze.selection.language import quoted
from hf_freeze.selection.rows import rows_named

_CUT: Any = WeakTensorKeyDictionary()
"""Matrix of which some rows train, or have been asked for by name -> its `_CutMatrix`."""

Run = tuple[int, int]
"""The rows from the first number to before the second."""


def members(named: Mapping[str, nn.Parameter], names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return for each name the parameter of it, or of the rows that it stands for, out of a model's by name."""
    found: dict[str, nn.Parameter] = {}
    for name in names:
        rows = None if name in named else rows_named(name)
        found[name] = named[name] if rows is None else _cut(named[rows.matrix]).member((rows.start, rows.stop))
    return found


def set_rows(matrix: nn.Parameter, trained: torch.Tensor) -> None:
    """Make exactly the rows train for which `trained` holds, one truth value a row."""
    mark_rows(matrix, trained)
    _cut(matrix).train(trained)


def runs(chosen: torch.Tensor) -> list[Run]:
    """Return the runs of rows for which this holds.

    >>> runs(torch.tensor([False, True, True, False, True]))
    [(1, 3), (4, 5)]
    """
    padded = torch.cat([chosen.new_zeros(1), chosen, chosen.new_zeros(1)]).int()
    ends = padded.diff().nonzero().flatten().tolist()
    return [*zip(ends[::2], ends[1::2], strict=True)]


def members_held(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return what an optimizer that holds a parameter steps: the parameter itself, and members of it."""
    cut = _CUT.get(parameter)
    return [parameter] if cut is None else [parameter, *cut.members]


def rows_in(optimizer: Any, model: nn.Module) -> list[str]:
    """Return, as selections, the rows of a model's matrices that an optimizer holds on their own."""
    held = {id(one) for group in getattr(optimizer, "param_groups", ()) for one in group["params"]}
    named = {name: cut for name, p in model.named_parameters() if (cut := _CUT.get(p)) is not None} if held else {}
    return [f"{quoted(name)}[{start}:{stop}]" for name, cut in named.items() for start, stop in cut.runs_among(held)]


def whole_of(parameter: torch.Tensor) -> torch.Tensor:
    """Return the matrix that a member is part of, and any other parameter as it is."""
    return next((matrix for matrix, cut in _CUT.items() if any(one is parameter for one in cut.members)), parameter)


class _CutMatrix:
    """Which rows of a matrix train, and the members that stand for runs of them."""

    def __init__(self, matrix: nn.Parameter) -> None:
        self.trained = torch.full((matrix.shape[0],), matrix.requires_grad)
        self._matrix = ref(matrix)
        self.shape = matrix.shape
        self._members: dict[Run, nn.Parameter] = {}
        self._frozen_runs: list[Run] = []
        self._linked: torch.Tensor | None = None
        self._views: dict[Run, torch.Tensor | None] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def members(self) -> list[torch.Tensor]:
        return [*self._members.values()]

    def runs_among(self, held: Collection[int]) -> list[Run]:
        """Return the runs of rows of which a member is among those with these ids."""
        return sorted(run for run, member in self._members.items() if id(member) in held)

    def member(self, run: Run) -> nn.Parameter:
        """Return the parameter of a run of rows, which shares memory with the matrix."""
        matrix = self._there()
        if run not in self._members:
            rows = matrix.detach()[slice(*run)]
            self._members[run] = nn.Parameter(rows, requires_grad=self._trains(run))
        self._share(matrix)
        return self._members[run]

    def train(self, trained: torch.Tensor) -> None:
        matrix = self._there()
        self.trained, self._frozen_runs = trained, runs(~trained)
        if trained.all() and not self._members:
            self.let_go()
        elif trained.any() and not self._hooks:
            hooked: Any = matrix  # torch declares no types here
            self._hooks.append(hooked.register_hook(self._before_accumulating))
            self._hooks.append(hooked.register_post_accumulate_grad_hook(self._accumulated))
        if matrix.grad is not None:
            matrix.grad[~trained.to(matrix.grad.device)] = 0
        self._link(matrix)

    def let_go(self) -> None:
        """Take the hooks off the matrix."""
        while self._hooks:
            self._hooks.pop().remove()

    def before_step(self) -> None:
        """Give the members their gradients, whatever became of the matrix's since backward."""
        matrix = self._there()
        self._drop_let_go(matrix)
        self._take_given(matrix)
        self._link(matrix)

    def after_step(self, held: Iterable[torch.Tensor], *, holds_all: bool) -> None:
        """Drop the gradients that were stepped: the optimizer's `zero_grad` does not know the matrix."""
        for member in self._members.values() if holds_all else held:
            member.grad = None
        if all(member.grad is None for member in self._members.values()):
            self._linked = None
            if not holds_all:
                self._there().grad = None

    def frozen_rows(self) -> list[torch.Tensor]:
        """Return a copy of each run of frozen rows."""
        matrix = self._there().detach()
        return [matrix[start:stop].clone() for start, stop in self._frozen_runs]

    def put_back(self, rows: Iterable[torch.Tensor]) -> None:
        matrix = self._there().detach()
        for (start, stop), run in zip(self._frozen_runs, rows, strict=True):
            matrix[start:stop] = run

    def _there(self) -> nn.Parameter:
        matrix = self._matrix()
        assert matrix is not None
        if matrix.shape != self.shape:
            raise UnsupportedSetupError(
                f"A matrix with rows that train had {self.shape[0]} rows and now has {matrix.shape[0]}. Resize "
                "embeddings before the Trainer and the optimizer are built."
            )
        return matrix

    def _trains(self, run: Run) -> bool:
        return bool(self.trained[slice(*run)].all())

    def _share(self, matrix: torch.Tensor) -> None:
        """Move members to where the matrix is now: `model.to(device)` gives it other memory."""
        for run, member in self._members.items():
            rows = matrix.detach()[slice(*run)]
            if _address(rows) != _address(member):
                member.data = rows
            member.requires_grad_(matrix.requires_grad and self._trains(run))

    def _link(self, matrix: torch.Tensor) -> None:
        # First: a gradient cannot be set that has another type or device than its parameter.
        self._share(matrix)
        self._linked = matrix.grad
        for run, member in self._members.items():
            gradient = matrix.grad if member.requires_grad else None
            member.grad = self._views[run] = None if gradient is None else gradient[slice(*run)]

    def _take_given(self, matrix: torch.Tensor) -> None:
        """Take over gradients that somebody else set: the next backward adds to the matrix's, and a step reads it."""
        for run, member in self._members.items():
            if member.requires_grad and member.grad is not None and member.grad is not self._views.get(run):
                if matrix.grad is None:
                    matrix.grad = torch.zeros_like(matrix)
                matrix.grad[slice(*run)] = member.grad

    def _before_accumulating(self, gradient: torch.Tensor) -> None:
        matrix = self._there()
        self._drop_let_go(matrix)
        self._take_given(matrix)

    def _accumulated(self, matrix: torch.Tensor) -> None:
        # Here the matrix owns its gradient; what a hook is given before may be that of other tensors, too.
        assert matrix.grad is not None
        with torch.no_grad():
            for start, stop in self._frozen_runs:
                matrix.grad[start:stop] = 0
        self._link(matrix)

    def _drop_let_go(self, matrix: nn.Parameter) -> None:
        """Drop the matrix's gradient where the optimizer's `zero_grad` has dropped those of its members."""
        is_linked = matrix.grad is not None and matrix.grad is self._linked and bool(self._members)
        if is_linked and all(member.grad is None for member in self._members.values()):
            matrix.grad = self._linked = None


def _cut(matrix: nn.Parameter) -> _CutMatrix:
    if hasattr(matrix, "to_local"):
        raise UnsupportedSetupError(
            "A matrix of which only some rows should train is kept in shards (FSDP2, tensor parallelism), where "
            "single rows cannot be frozen. Train the whole matrix, or use DistributedDataParallel."
        )
    _watch_optimizers()
    known = _known(matrix)
    if known is None:
        known = _CUT[matrix] = _CutMatrix(matrix)
    return known


def _known(matrix: torch.Tensor) -> _CutMatrix | None:
    """Return what is known about the rows of a matrix; forget it once `resize_token_embeddings` has replaced them."""
    known: _CutMatrix | None = _CUT.get(matrix)
    if known is not None and known.shape != matrix.shape:
        known.let_go()
        del _CUT[matrix]
        return None
    return known


def _address(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """Return the address of the values; None where there are none."""
    if tensor.is_meta or type(tensor.data) is not torch.Tensor:
        return None
    return tensor.data_ptr(), tensor.device, tensor.dtype


@cache
def _watch_optimizers() -> None:
    """Watch every optimizer step from now on: any optimizer may hold a cut matrix, or members of one."""
    kept: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()

    def before(optimizer: Optimizer, *_: Any) -> None:
        kept[optimizer] = []
        for matrix, cut, held in _held_by(optimizer):
            cut.before_step()
            if any(one is matrix for one in held) and not cut.trained.all():
                kept[optimizer].append((cut, cut.frozen_rows()))

    def after(optimizer: Optimizer, *_: Any) -> None:
        for cut, rows in kept.pop(optimizer, []):
            cut.put_back(rows)
        for matrix, cut, held in _held_by(optimizer):
            cut.after_step(held, holds_all=any(one is matrix for one in held))

    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(after)


def _held_by(optimizer: Optimizer) -> Iterator[tuple[torch.Tensor, _CutMatrix, list[torch.Tensor]]]:
    """Yield each matrix of which the optimizer holds something, and what it holds of it."""
    if not len(_CUT):
        return
    ours = {id(one): (matrix, cut) for matrix, cut in _CUT.items() for one in (matrix, *cut.members)}
    held: dict[int, list[torch.Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in ours:
                held.setdefault(id(ours[id(parameter)][0]), []).append(parameter)
    for found in held.values():
        yield (*ours[id(found[0])], found)
