"""The parameters of a model, looked up once: for a small head, the walk through all modules is what takes time."""

from collections.abc import Callable
from typing import Any

from torch import nn

from hf_freeze.training.attributes import replaced


class KnownParameters:
    """Stands for `zero_grad` of `model` until it is removed, where that is the one of `nn.Module`.

    Copies and pickles of the model have their class's own. Parameters that the model is given meanwhile are not known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found = list(model.parameters())
        if type(model).zero_grad is nn.Module.zero_grad:
            vars(model).setdefault("zero_grad", self)

    def remove(self) -> None:
        """Give the model its own `zero_grad` back."""
        if vars(self._model).get("zero_grad") is self:
            del vars(self._model)["zero_grad"]

    def __call__(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        if not set_to_none:
            type(self._model).zero_grad(self._model, set_to_none=False)
            return
        for parameter in self._found:
            if parameter.grad is not None:
                parameter.grad = None

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._model, "zero_grad")

    def clipped(self, clip: Callable[[nn.Module], Any], model: nn.Module) -> Any:
        """Return what `clip(model)` returns, which asks the model for its parameters."""
        if model is not self._model:
            return clip(model)
        with replaced(model, parameters=lambda recurse=True: iter(self._found)):
            return clip(model)
