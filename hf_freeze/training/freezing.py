"""Freeze and unfreeze: the one lasting writer of `requires_grad`, and of the eval mode of what is frozen."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.trainable import changed
from hf_freeze.selection.cuts import cut_at
from hf_freeze.selection.frozen_marks import mark_frozen, trained_rows, unmark_frozen, warn_of_copies
from hf_freeze.selection.language import Selection, evaluate, quoted
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.selection.rows import Rows, rows_named, tensors_of
from hf_freeze.training.quantised_layers import eight_bit_layers, four_bit_layers, unpack
from hf_freeze.training.row_parameters import runs, set_rows

logger = MainProcessLogger(__name__)


def freeze(model: nn.Module, selection: Selection = "all") -> list[str]:
    """Stop the selected parameters from training.

    Their gradients are dropped, so that a stale one cannot move them. `module.requires_grad = False` does none of
    this: it sets an attribute that nobody reads.

    Of rows of a matrix that still trains, such as `"embeddings[:30522]"`, the gradient is 0, and an optimizer that
    holds the matrix leaves them as they are; one over `param_groups(model, ...)` has moments for the other rows alone.
    `requires_grad_(True)` does not let these rows train again, `unfreeze` does. Copies and pickles of the model do not
    know about them: freeze them there again, and shard a model (`fully_shard`) only as a whole.

    Args:
        model: Any module, wrapped (DDP, DataParallel, torch.compile) or not.
        selection: What to freeze, such as `"backbone"`, `["layers[:-2]", "embeddings"]` or `"all"`.

    Returns:
        The names of the parameters that changed, aliases of tied weights included.

    Raises:
        SelectionError: For an entry that matches nothing.

    >>> from collections import OrderedDict
    >>> model = nn.Sequential(OrderedDict(encoder=nn.Linear(4, 3), classifier=nn.Linear(3, 2)))
    >>> freeze(model, "encoder"), unfreeze(model, "encoder.bias")
    (['encoder.weight', 'encoder.bias'], ['encoder.bias'])
    """
    model_map = cut_at(map_model(model), [selection])
    frozen = _write(model, model_map.every_alias(evaluate(selection, model_map).names), trainable=False)
    logger.info("freeze(%r) froze %d parameters: %s", selection, len(frozen), ", ".join(frozen))
    return frozen


def unfreeze(model: nn.Module, selection: Selection = "all") -> list[str]:
    """Let the selected parameters train again.

    What was frozen before hf_freeze saw the model stays frozen under `all` and roles: name it by path or regex.

    Args:
        model: Any module, wrapped (DDP, DataParallel, torch.compile) or not.
        selection: What to unfreeze, such as `"layers[-2:]"` or `["head", "norms"]`.

    Returns:
        The names of the parameters that changed, aliases of tied weights included.

    Raises:
        SelectionError: For an entry that matches nothing.
        UnsupportedSetupError: Where quantised weights are named, which have no gradient.
    """
    model_map = cut_at(map_model(model), [selection])
    thawed = _write(model, model_map.every_alias(changed(frozenset(), model_map, unfreeze=selection)), trainable=True)
    logger.info("unfreeze(%r) unfroze %d parameters: %s", selection, len(thawed), ", ".join(thawed))
    return thawed


def plan_as_it_is(model: nn.Module) -> FreezePlan:
    """Return a plan that trains exactly the parameters that require a gradient now."""
    entries: list[str] = []
    is_partly = False
    for name, parameter in unwrap(model).named_parameters():
        rows = trained_rows(parameter)
        is_partly |= not (parameter.requires_grad if rows is None else bool(rows.all()))
        if rows is not None and not rows.all():
            entries += [f"{quoted(name)}[{start}:{stop}]" for start, stop in runs(rows)]
        elif parameter.requires_grad:
            entries.append(quoted(name))
    if not is_partly:
        return FreezePlan(trainable="all")
    return FreezePlan(trainable=entries) if entries else FreezePlan(freeze="all")


def set_trainable(model: nn.Module, trainable: Collection[str]) -> tuple[list[str], list[str]]:
    """Make exactly these members trainable, a tied one by any name; return what it unfroze and what it froze.

    Doing it twice changes nothing.
    """
    model = unwrap(model)
    by_name = dict(model.named_parameters(remove_duplicate=False))
    cut = _rows_by_matrix(trainable, by_name)
    chosen = {id(parameter) for name, parameter in by_name.items() if name in trainable}
    trains = {name: parameter for name, parameter in by_name.items() if id(parameter) in chosen}
    stays = {name: p for name, p in by_name.items() if id(p) not in chosen and id(p) not in cut}
    unfrozen, frozen = _set(model, trains, trainable=True), _set(model, stays, trainable=False)
    for matrix, rows in cut.values():
        names = [name for name, parameter in by_name.items() if parameter is matrix]
        thawed, refrozen = _set_rows(model, matrix, _truth(matrix, rows), names)
        unfrozen, frozen = unfrozen + thawed, frozen + refrozen
    return unfrozen, frozen


def _write(model: nn.Module, names: Collection[str], *, trainable: bool) -> list[str]:
    model = unwrap(model)
    by_name = dict(model.named_parameters(remove_duplicate=False))
    changed = _set(model, {name: parameter for name, parameter in by_name.items() if name in names}, trainable)
    for matrix, rows in _rows_by_matrix(names, by_name).values():
        before, these = _rows_that_train(matrix), _truth(matrix, rows)
        aliases = [name for name, parameter in by_name.items() if parameter is matrix]
        thawed, frozen = _set_rows(model, matrix, before | these if trainable else before & ~these, aliases)
        changed += thawed + frozen
    return changed


def _set(model: nn.Module, parameters: Mapping[str, nn.Parameter], trainable: bool) -> list[str]:
    """Set `requires_grad` of these parameters of `model`; with `_set_rows` the only place where that lasts."""
    rows_of = {name: trained_rows(parameter) for name, parameter in parameters.items()}
    different = [name for name, p in parameters.items() if not _is_so(p, rows_of[name], trainable)]
    (unmark_frozen if trainable else mark_frozen)(model, set(different))
    for name, parameter in parameters.items():
        parameter.requires_grad_(trainable)
        if not trainable:
            parameter.grad = None
        if (rows := rows_of[name]) is not None:
            set_rows(parameter, torch.full_like(rows, trainable))
    for name in different:
        warn_of_copies(model, name, are_frozen=False)
    return different


def _is_so(parameter: nn.Parameter, rows: torch.Tensor | None, trainable: bool) -> bool:
    return parameter.requires_grad is trainable and (rows is None or bool((rows == trainable).all()))


def _set_rows(
    model: nn.Module, matrix: nn.Parameter, trained: torch.Tensor, names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Let these rows of a matrix with these names train, and no others; return what it unfroze and what it froze."""
    before = _rows_that_train(matrix)
    if not trained.any():
        return [], _set(model, dict.fromkeys(names, matrix), False)
    matrix.requires_grad_(True)
    unmark_frozen(model, set(names))
    set_rows(matrix, trained)
    warn_of_copies(model, names[0], are_frozen=not trained.all())
    changes = (runs(trained & ~before), runs(before & ~trained))
    unfrozen, frozen = ([Rows(name, *run).name for run in found for name in names] for found in changes)
    return unfrozen, frozen


def _rows_that_train(matrix: nn.Parameter) -> torch.Tensor:
    rows = trained_rows(matrix)
    return torch.full((matrix.shape[0],), matrix.requires_grad) if rows is None else rows


def _truth(matrix: nn.Parameter, rows: Iterable[Rows]) -> torch.Tensor:
    """Return one truth value per row: whether it is among these."""
    chosen = torch.zeros(matrix.shape[0], dtype=torch.bool)
    for one in rows:
        chosen[one.start : one.stop] = True
    return chosen


def _rows_by_matrix(
    names: Iterable[str], by_name: Mapping[str, nn.Parameter]
) -> dict[int, tuple[nn.Parameter, list[Rows]]]:
    """Return each matrix, by its id, of which rows are named and not the whole."""
    found: dict[int, tuple[nn.Parameter, list[Rows]]] = {}
    for name in names:
        rows = None if name in by_name else rows_named(name)
        if rows is not None:
            matrix = by_name[rows.matrix]
            found.setdefault(id(matrix), (matrix, []))[1].append(rows)
    return found


def hold_requires_grad(parameters: Iterable[tuple[nn.Parameter, bool]]) -> None:
    """Set `requires_grad` back to what is given here; a gradient that came meanwhile is dropped."""
    for parameter, trainable in parameters:
        if parameter.requires_grad is not trainable:
            parameter.requires_grad_(trainable)
            if not trainable:
                parameter.grad = None


@contextmanager
def trainable_for_now(model: nn.Module, trainable: Collection[str]) -> Iterator[None]:
    """Make exactly these names require a gradient while the context lasts, a matrix of which rows are named whole."""
    trainable = tensors_of(trainable)
    parameters = dict(unwrap(model).named_parameters(remove_duplicate=False))
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trainable)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


def frozen_modules(model: nn.Module, trainable: Collection[str] | None = None) -> list[nn.Module]:
    """Return the largest modules with parameters, none of which is among `trainable`, or requires a gradient."""
    model = unwrap(model)
    named = model.named_parameters(remove_duplicate=False)
    names = None if trainable is None else tensors_of(trainable)
    trains = {id(p) for name, p in named if (p.requires_grad if names is None else name in names)}
    return _frozen_modules(model, trains)[0]


def _frozen_modules(module: nn.Module, trains: AbstractSet[int]) -> tuple[list[nn.Module], bool]:
    """Return the largest frozen modules at and below `module`, and whether it holds anything that trains."""
    own = [id(parameter) for parameter in module.parameters(recurse=False)]
    below = [_frozen_modules(child, trains) for child in module.children()]
    frozen = [found for several, _ in below for found in several]
    if not trains.isdisjoint(own) or any(holds for _, holds in below):
        return frozen, True
    return ([module] if own or frozen else []), False


def hold_eval(
    model: nn.Module, trainable: Collection[str] | None = None, *, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Keep what is frozen now in eval mode, whatever calls `train()` on the model, until `release_eval`.

    Dropout in the frozen part is off and its BatchNorm statistics do not move. Call again when what is frozen changed.
    `trainable` are the names that train where `requires_grad` does not tell, as under DeepSpeed. Copies and pickles of
    the model are not held, and once `is_over()` says so, the model is not either.
    """
    model = unwrap(model)
    release_eval(model)
    # On the instance, so that the wrappers' own train() finds it: DDP calls module.train(mode) on its child.
    model.__dict__["train"] = held = _HeldTrain(model, frozen_modules(model, trainable), is_over)
    held.hold()


class _HeldTrain:
    """`train()` of a model whose frozen modules stay in eval mode; a `train()` of the instance's own is called too."""

    def __init__(self, model: nn.Module, frozen: list[nn.Module], is_over: Callable[[], bool]) -> None:
        self.model = model
        self.frozen = frozen
        self.own: Callable[[bool], Any] | None = model.__dict__.get("train")
        self.is_over = is_over
        modules = [*model.modules()]
        # NEFTune's hook adds its noise in train mode only; an embedding has nothing else that train mode changes.
        noisy = [module for module in modules if hasattr(module, "neftune_noise_alpha")]
        self._follow = [*noisy, *eight_bit_layers(model)]
        self._four_bit = four_bit_layers(model)
        self._modes = _modes(modules, frozen, {*self._follow, *self._four_bit})

    def __call__(self, mode: bool = True) -> nn.Module:
        if self.is_over():
            release_eval(self.model, self.is_over)
            return self._train(mode)
        # The Trainer asks before every step, and to walk through all modules takes longer than the step of a small
        # head.
        if self._modes is not None and isinstance(mode, bool):
            _set_mode(self._modes[0], mode)
            _set_mode(self._modes[1], False)
        else:
            self._train(mode)
            self.hold()
        self._set_apart(mode)
        return self.model

    def hold(self) -> None:
        """Put what is frozen into eval mode."""
        unpack(self._four_bit)
        if self._modes is not None:
            _set_mode(self._modes[1], False)
        elif self.model in self.frozen:  # all of it, under a loss that trains; its own eval() would come back here
            self._train(False)
        else:
            for module in self.frozen:
                module.eval()

    def _set_apart(self, mode: bool) -> None:
        for module in self._follow:
            module.training = mode
        _set_mode(self._four_bit, True)  # they have no other use for it than to repack when it is off

    def _train(self, mode: bool) -> nn.Module:
        (self.own or partial(type(self.model).train, self.model))(mode)
        return self.model

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or pickle of the model gets what was there before: its class's own train(), as it has no state yet.
        return (getattr, (self.model, "train")) if self.own is None else (itemgetter(0), ((self.own,),))


def _modes(
    modules: Sequence[nn.Module], frozen: Iterable[nn.Module], apart: AbstractSet[nn.Module]
) -> tuple[list[nn.Module], list[nn.Module]] | None:
    """Return the modules that follow the mode, and those held in eval; None where a `train()` does more than that."""
    if any(map(_does_more, modules)):
        return None
    held = {part for module in frozen for part in module.modules()} - apart
    return [part for part in modules if part not in held and part not in apart], list(held)


_SET_THE_MODE = (nn.Module.train, nn.Module.eval, PreTrainedModel.train, PreTrainedModel.eval)


def _does_more(module: nn.Module) -> bool:
    """Tell whether the `train()` or the `eval()` of a module does more than to set its mode."""
    kind = type(module)
    sets_it = kind.train in _SET_THE_MODE and kind.eval in _SET_THE_MODE
    patched = not vars(module).keys().isdisjoint(("train", "eval"))
    return patched or not sets_it or bool(getattr(module, "use_kernels", False))


def _set_mode(modules: Iterable[nn.Module], mode: bool) -> None:
    for module in modules:
        if module.training is not mode:
            module.training = mode


def release_eval(model: nn.Module, is_over: Callable[[], bool] | None = None) -> None:
    """Undo `hold_eval`, with `is_over` only the call that was given it: the `train()` from before applies again."""
    model = unwrap(model)
    override = model.__dict__.get("train")
    if not isinstance(override, _HeldTrain) or is_over not in (None, override.is_over):
        return  # somebody else's
    del model.__dict__["train"]
    if override.own is not None:
        model.__dict__["train"] = override.own
