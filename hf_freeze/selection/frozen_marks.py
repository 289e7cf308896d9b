"""Who froze a parameter: hf_freeze, or somebody before it; and which rows of a matrix train where not all do.

Parameters that were frozen in the model handed in stay frozen under `all` and under roles; what hf_freeze froze itself
may train again. The mark lies on modules, not on the parameter, so that it survives `deepcopy`, moving to another
device, and wrapping by PEFT, DDP or FSDP, all of which may replace the parameter object. It lies on two of them: on the
owner, whose name changes when a wrapper comes around the model, and on the model, which stays when
`resize_token_embeddings` replaces the owner.
"""

import logging
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

logger = logging.getLogger(__name__)

_MARK = "_parameters_frozen_by_hf_freeze"
_COPIED = "_rows_frozen_by_hf_freeze"


def mark_frozen(model: nn.Module, names: Iterable[str]) -> None:
    """Note that hf_freeze froze these parameters."""
    for name in names:
        owner, _, attribute = name.rpartition(".")
        for module, below in ((model, name), (model.get_submodule(owner), attribute)):
            module.__dict__.setdefault(_MARK, set()).add(below)


def unmark_frozen(model: nn.Module, names: Collection[str]) -> None:
    """Note that hf_freeze no longer freezes these parameters, whatever model above them the marks were given to."""
    for path, module in model.named_modules(remove_duplicate=False) if names else ():
        marks = module.__dict__.get(_MARK, set())
        marks -= {below for below in marks if (f"{path}.{below}" if path else below) in names}


def frozen_by_us(model: nn.Module) -> frozenset[str]:
    """Names, under every alias, of the parameters that hf_freeze froze and that still are."""
    marked = (
        f"{path}.{below}" if path else below
        for path, module in model.named_modules(remove_duplicate=False)
        for below in module.__dict__.get(_MARK, ())
    )
    # A parametrization or a LoRA layer may have taken the marked name away.
    return frozenset(marked).intersection(name for name, _ in model.named_parameters(remove_duplicate=False))


_ROWS: Any = WeakTensorKeyDictionary()


def mark_rows(matrix: torch.Tensor, trained: torch.Tensor) -> None:
    """Note which rows of a matrix train, one truth value a row. `requires_grad` tells of the matrix only."""
    _ROWS[matrix] = trained


def warn_of_copies(model: nn.Module, name: str, *, are_frozen: bool) -> None:
    """Warn whenever the owner of a matrix with frozen rows is copied or pickled; with `are_frozen=False`, no longer."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if are_frozen:
        owner.__dict__[_COPIED] = _ToldOfCopies(name)
    else:
        owner.__dict__.pop(_COPIED, None)


def quiet_copies(model: nn.Module) -> dict[int, Any]:
    """Return what to give to `copy.deepcopy` for a copy that never trains, so that it warns of nothing."""
    return {id(mark): {} for module in model.modules() if (mark := module.__dict__.get(_COPIED)) is not None}


class _ToldOfCopies:
    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        logger.warning(
            "The model was copied or pickled while rows of %r were frozen. The copy does not know that: all its rows "
            "train until hf_freeze.freeze(...) freezes them again.",
            self._name,
        )
        return dict, ()  # what reads a pickle needs no hf_freeze


def trained_rows(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return which rows train, one truth value each; None without marks, or where the matrix was resized since."""
    trained: torch.Tensor | None = _ROWS.get(parameter)
    if trained is None or len(trained) != len(parameter):
        return None
    return trained & parameter.requires_grad


def trainable_size(parameter: torch.Tensor) -> int:
    """Return how many elements train."""
    rows = trained_rows(parameter)
    if rows is None:
        return parameter.numel() if parameter.requires_grad else 0
    return int(rows.sum()) * parameter.shape[1]
