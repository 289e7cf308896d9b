"""A tensor in place of the output of a frozen module, of which only part is stored.

Code that asks for its shape, or picks what is stored, gets that. Code that reads anything else gets what the module
computes, at that moment: nothing ever reads a made-up value.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

Whole = Callable[[], Tensor]

_OF_SHAPES = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_sparse")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "grad_fn", "is_leaf", "grad")),
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__, Tensor.element_size),
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex),
}
_PICKS = {
    *(Tensor.__getitem__, Tensor.select, torch.select, Tensor.narrow, torch.narrow),
    *(Tensor.index_select, torch.index_select, Tensor.gather, torch.gather),
}
_LATER = {Tensor.float, Tensor.detach}
"""What does not read values yet: mixed precision calls these on everything that a model returns."""
_OF_EACH_POSITION = {functional.linear, *_LATER}
"""What maps each position on its own, so that the same positions are known afterwards."""


class StandIn(Tensor):
    """Holds `filler` of the right shape; `known` says of which positions it is true, and `whole` computes all.

    With `is_loose`, what is not known is padding: only code that picks it gets computed values, any other gets the
    filler.
    """

    filler: Tensor
    known: Callable[[], Tensor] | None
    whole: Whole
    is_loose: bool

    @classmethod
    def of(
        cls, filler: Tensor, whole: Whole, *, known: Callable[[], Tensor] | None = None, is_loose: bool = False
    ) -> "StandIn":
        """Make one; `known()` is True at the positions that are stored, in a shape that expands to that of `filler`."""
        made: StandIn = filler.as_subclass(cls)
        made.filler, made.known, made.whole, made.is_loose = filler, known, whole, is_loose
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OF_SHAPES:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        first, *rest = args or (None,)
        if isinstance(first, cls):
            has_known = first.known is not None
            if func in (_OF_EACH_POSITION if has_known else _LATER):
                return first._mapped(func, rest, kwargs)
            if has_known and func in _PICKS and (picked := first._picked(func, rest, kwargs)) is not None:
                return picked
        args, kwargs = pytree.tree_map_only(cls, cls.read, (list(args), dict(kwargs)))
        return func(*args, **kwargs)

    def read(self) -> Tensor:
        """Return the values, computed unless only padding is missing, or nothing."""
        if self.is_loose or (self.known is not None and self.known().all()):
            return self.filler
        self.known = None  # from here on it is the whole, which may be written into
        return self.whole()

    def _picked(self, func: Any, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return what `func` picks; None where it cannot be told how `func` picks."""
        assert self.known is not None
        try:
            known = self.known().to(self.filler.device).expand(self.filler.shape)
            is_known = func(known, *rest, **kwargs).all()
        except (RuntimeError, IndexError, TypeError):
            return None  # the same call on the whole tensor will raise it
        picked: Tensor = func(self.filler, *rest, **kwargs) if is_known else func(self.whole(), *rest, **kwargs)
        return picked

    def _mapped(self, func: Any, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> "StandIn":
        filler = func(self.filler, *rest, **kwargs)
        return StandIn.of(filler, lambda: func(self.whole(), *rest, **kwargs), known=self.known, is_loose=self.is_loose)
