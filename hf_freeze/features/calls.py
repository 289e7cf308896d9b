"""Watch the calls that a model makes to its modules, and answer them in their place."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn


class CallKey(NamedTuple):
    """The outermost call number `number` of the module `name` in one forward pass."""

    name: str
    number: int

    def __str__(self) -> str:
        return self.name if not self.number else f"{self.name} (call {self.number + 1})"


@dataclass(slots=True)
class Call:
    """A call that is about to be made: `run` makes it."""

    key: CallKey
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> Any:
        """Make the call."""
        return self.forward(*self.args, **self.kwargs)


Handler = Callable[[Call], Any]
Origin = tuple[Any, ...]


class Origins:
    """Where the arguments of calls come from in one forward pass: the inputs of the model, and earlier calls."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._inputs = inputs
        self._known: dict[int, Origin] = {
            id(value): ("input", name) for name, value in inputs.items() if isinstance(value, torch.Tensor)
        }
        self._alive: list[Any] = []  # so that no other object gets the id of one of them

    def note(self, key: CallKey, leaves: Iterable[Any]) -> None:
        """Note what a call returned."""
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._known.setdefault(id(leaf), (key, index))
                self._alive.append(leaf)

    def of(self, call: Call) -> dict[int | str, Origin]:
        """Return where the arguments come from, as far as that is known; a plain value is its own origin."""
        values: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
        return {place: origin for place, value in values if (origin := self._of(value)) is not None}

    def fit(self, call: Call, given: Mapping[int | str, Origin]) -> bool:
        """Tell whether these arguments of a call are from where they were before."""
        for place, origin in given.items():
            if isinstance(place, int):
                value = call.args[place] if place < len(call.args) else None
            else:
                value = call.kwargs.get(place)
            if self._of(value) != origin and not self._is_copy(value, origin):
                return False
        return True

    def _of(self, value: Any) -> Origin | None:
        if isinstance(value, torch.Tensor):
            return self._known.get(id(value))
        return ("value", type(value), value) if isinstance(value, bool | int | float | str) else None

    def _is_copy(self, value: Any, origin: Origin) -> bool:
        """Tell whether a value is that input under another name, as after a move to the device."""
        known = self._inputs.get(origin[1]) if origin[0] == "input" else None
        if not isinstance(value, torch.Tensor) or known is None or known.shape != value.shape:
            return False
        return torch.equal(known.to(value.device), value)


class Interception:
    """Hands each outermost call of `modules` to a handler, which returns what the call returns.

    A call inside another one of them is not handed over. Calls are counted from the start of each forward pass of
    `model`. Nothing is intercepted outside `handled_by`, and nothing is left on the model after `remove`.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self.passes = 0
        self._handler: Handler | None = None
        self._inside = False
        self._counts: Counter[str] = Counter()
        self._modules = dict(modules)
        self._before = {name: vars(module).get("forward") for name, module in self._modules.items()}
        for name, module in self._modules.items():
            vars(module)["forward"] = _Intercepted(module, partial(self._called, name, module.forward))
        self._pass_begins = model.register_forward_pre_hook(self._begin_pass)

    def remove(self) -> None:
        """Give the modules their own forward back."""
        self._pass_begins.remove()
        for name, module in self._modules.items():
            vars(module).pop("forward", None)
            if (before := self._before[name]) is not None:
                vars(module)["forward"] = before

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hand over no call that is made meanwhile."""
        inside, self._inside = self._inside, True
        try:
            yield
        finally:
            self._inside = inside

    @contextmanager
    def handled_by(self, handler: Handler) -> Iterator[None]:
        """Let `handler` answer the calls."""
        previous, self._handler = self._handler, handler
        self._counts.clear()
        self.passes = 0
        try:
            yield
        finally:
            self._handler, self._inside = previous, False

    def _begin_pass(self, module: nn.Module, args: Any) -> None:
        self._counts.clear()
        self.passes += 1

    def _called(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._handler is None or self._inside:
            return forward(*args, **kwargs)
        key = CallKey(name, self._counts[name])
        self._counts[name] += 1
        self._inside = True
        try:
            return self._handler(Call(key, forward, args, kwargs))
        finally:
            self._inside = False


class _Intercepted:
    """Stands for the forward of a module; copies and pickles of the module have the forward from before."""

    def __init__(self, module: nn.Module, called: Callable[..., Any]) -> None:
        self._module = module
        self._before: Callable[..., Any] | None = vars(module).get("forward")
        self._called = called

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (self._module, "forward")) if self._before is None else (itemgetter(0), ((self._before,),))


@contextmanager
def intercepted(model: nn.Module, modules: Mapping[str, nn.Module], handler: Handler) -> Iterator[Interception]:
    """Let `handler` answer the calls of `modules` while the context lasts."""
    interception = Interception(model, modules)
    try:
        with interception.handled_by(handler):
            yield interception
    finally:
        interception.remove()


def wholly_frozen(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, of the modules below `model` that hold parameters none of which requires a gradient."""
    frozen: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if name and parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen[name] = module
    return frozen


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested outputs or arguments, in order."""
    leaves, _ = torch.utils._pytree.tree_flatten(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
