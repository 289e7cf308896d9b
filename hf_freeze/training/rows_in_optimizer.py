"""Let an optimizer that holds a whole matrix, as a plain Trainer's does, step only those of its rows that train.

While a run goes on, members of the matrix stand in its place: one for each run of rows that ever trains, with moments
of these alone. In `state_dict()`, and so in checkpoints, the matrix has its one place as before. It holds the state of
the first member, as optimizers look for it there, and those of others by their rows:
`{"step": ..., "exp_avg": ..., "5:7": {}, "61:64": {"step": ..., "exp_avg": ...}}`.

An optimizer that steps through another inside it keeps the matrix, whose frozen rows are put back after each step.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from hf_freeze.errors import FreezeError
from hf_freeze.selection.rows import Rows, rows_named
from hf_freeze.training.backends import inner_optimizer
from hf_freeze.training.bound_plan import BoundPlan

_BETWEEN_RUNS: WeakKeyDictionary[Optimizer, dict[str, Any]] = WeakKeyDictionary()
"""The state of optimizers for rows of matrices, by name, kept for the next run: one without a plan could not read
it."""


def step_rows_alone(optimizer: object, bound: BoundPlan) -> Callable[[], None]:
    """Put the rows that ever train into the place of each matrix that the optimizer holds; return what undoes that.

    Raises `FreezeError` where it has a state of a matrix of which that of the rows cannot be told.
    """
    inner, cuts = inner_optimizer(optimizer), bound.resolved.model_map.cuts
    if not isinstance(inner, Optimizer) or any(isinstance(value, Optimizer) for value in vars(inner).values()):
        cuts = {}
    parameters, ever = bound.parameters, bound.resolved.ever_trainable
    with ExitStack() as undo:
        for name, cut in cuts.items():
            members = {rows: parameters[rows.name] for rows in cut if rows.name in ever}
            place = _Place(inner, bound.model.get_parameter(name), members)
            if members and place.has_matrix:
                place.open()
                undo.callback(place.close)
        return undo.pop_all().close


class _Place:
    """The place of a matrix in an optimizer."""

    def __init__(self, optimizer: Optimizer, matrix: nn.Parameter, members: Mapping[Rows, nn.Parameter]) -> None:
        self._optimizer, self._matrix, self._members = optimizer, matrix, members
        self._name = next(iter(members)).matrix if members else ""
        self._hooks = ExitStack()

    @property
    def has_matrix(self) -> bool:
        return any(one is self._matrix for group in self._optimizer.param_groups for one in group["params"])

    def open(self) -> None:
        """Put the members there until `close`, but for the moments in which a state is asked for or loaded."""
        optimizer = self._optimizer
        kept = _BETWEEN_RUNS.get(optimizer, {}).pop(self._name, None)
        if kept and not optimizer.state.get(self._matrix):
            optimizer.state[self._matrix] = kept
        self._put_members()
        for out in (optimizer.register_state_dict_pre_hook, optimizer.register_load_state_dict_pre_hook):
            self._hooks.callback(out(lambda *_: self._put_matrix()).remove)
        for back in (optimizer.register_state_dict_post_hook, optimizer.register_load_state_dict_post_hook):
            self._hooks.callback(back(lambda *_: self._put_members()).remove)

    def close(self) -> None:
        """Put the matrix back."""
        self._hooks.close()
        self._put_matrix()
        if state := self._optimizer.state.pop(self._matrix, None):
            _BETWEEN_RUNS.setdefault(self._optimizer, {})[self._name] = state

    def _put_members(self) -> None:
        state = self._optimizer.state.pop(self._matrix, {})
        for rows, member in self._members.items():
            if found := _state_of(rows, state, shape=self._matrix.shape):
                self._optimizer.state[member] = found
        self._replace([self._matrix], [*self._members.values()])

    def _put_matrix(self) -> None:
        states = {rows: self._optimizer.state.pop(member, {}) for rows, member in self._members.items()}
        held = {f"{rows.start}:{rows.stop}": state for rows, state in states.items() if state}
        if held:
            first = next(iter(held))
            self._optimizer.state[self._matrix] = {**held[first], **held, first: {}}
        self._replace([*self._members.values()], [self._matrix])

    def _replace(self, old: Sequence[nn.Parameter], new: Sequence[nn.Parameter]) -> None:
        for group in self._optimizer.param_groups:
            params = group["params"]
            places = [place for place, one in enumerate(params) if any(one is gone for gone in old)]
            if places:
                params[places[0] : places[-1] + 1] = new


def _state_of(rows: Rows, state: Mapping[str, Any], *, shape: torch.Size) -> dict[str, Any]:
    """Return what the state of a matrix of this shape holds of these rows; {} where it holds nothing of them.

    Raises `FreezeError` where that cannot be told.
    """
    named = {key: found for key in state if (found := rows_named(f"{rows.matrix}[{key}]"))}
    first = {key: value for key, value in state.items() if key not in named}
    held = {found: state[key] or first for key, found in named.items()}
    if state and not held:  # the matrix was stepped whole
        held = {Rows(rows.matrix, 0, shape[0]): first}
    around = next((one for one in held if rows.is_within(one)), None)
    if around == rows:
        return dict(held[rows])
    if around is not None:
        return {name: _of_rows(name, value, around, rows, shape=shape) for name, value in held[around].items()}
    if other := next((one for one in held if one.start < rows.stop and rows.start < one.stop), None):
        raise FreezeError(
            f"The optimizer's state holds {other.name!r}, but this run trains {rows.name!r}. Go on with the plan that "
            "it was trained with, or with a new optimizer."
        )
    return {}


def _of_rows(name: str, value: Any, around: Rows, rows: Rows, *, shape: torch.Size) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() == 1:
        return value.clone()  # counts the steps, of other members by itself
    if type(value) is torch.Tensor and value.shape == (len(around), *shape[1:]):
        return value[rows.start - around.start : rows.stop - around.start].clone()
    raise FreezeError(
        f"The optimizer's state holds {name!r} of {around.name!r} as a {type(value).__name__} of shape "
        f"{(*value.shape,)}, from which the part of {rows.name!r}, the rows that train, cannot be separated: the "
        "optimizer stepped the whole matrix, as under earlier versions of hf_freeze. Go on with a new optimizer: "
        "delete optimizer.pt from the checkpoint, or start anew from its weights."
    )
