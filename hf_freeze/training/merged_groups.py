"""Put the groups of the plan together with those that a Trainer brings.

GaLore and APOLLO ask for single matrices; sentence-transformers adds the parameters of the loss, and rates by
`learning_rate_mapping`. Both hand over groups, which are split and joined here so that each parameter is in one.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.group_names import LOW_RANK, NO_DECAY
from hf_freeze.training.row_parameters import whole_of

_OTHERS = "others"
"""The group of what the Trainer trains beside the model, such as the parameters of a loss."""

_KEYS = ("params", "model", "optimizer_dict")


def with_groups(
    cls: Any, kwargs: dict[str, Any], groups: list[dict[str, Any]], *, model: nn.Module, own_rate: Collection[str]
) -> dict[str, Any]:
    """Hand our groups to an optimizer class in the way that `Trainer.create_optimizer` reads them.

    `own_rate` names the groups whose learning rate `group_lrs` declares: it wins over one that the Trainer brings.
    """
    brought = _brought_groups(cls, kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in _KEYS}
    own = {id(parameter) for parameter in unwrap(model).parameters()}
    return {**rest, "params": [*_split(groups, brought, own_rate), *_others(brought, own)]}


def _brought_groups(cls: Any, kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups that the Trainer brings; raise `UnsupportedSetupError` for an optimizer that takes none."""
    key = next((key for key in _KEYS if key in kwargs), None)
    brought = kwargs[key] if key else []
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        cause = "is not a torch.optim.Optimizer and builds groups of its own from the model"
    elif isinstance(brought, Mapping):
        cause = "is one optimizer per parameter, each of which steps inside backward"
    elif not isinstance(brought, Sequence) or not all(isinstance(group, Mapping) for group in brought):
        cause = f"is handed a {type(brought).__name__} as {key!r} in place of parameter groups"
    else:
        return [dict(group) for group in brought]
    raise UnsupportedSetupError(
        f"The optimizer {getattr(cls, '__name__', cls)!r} {cause}, so that nothing could be frozen, unfrozen or given "
        "a rate of its own. Use one that takes groups, such as optim='adamw_torch'."
    )


def trains_others(cls: Any, kwargs: Mapping[str, Any], model: nn.Module) -> bool:
    """Tell whether the Trainer trains parameters that are not the model's, such as those of a loss."""
    return any(_others(_brought_groups(cls, kwargs), {id(parameter) for parameter in unwrap(model).parameters()}))


def _split(
    groups: Sequence[dict[str, Any]], brought: Sequence[dict[str, Any]], own_rate: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Split our groups by theirs, and give each part the options of both."""
    for group in groups:
        left = {id(parameter): parameter for parameter in group["params"]}
        pieces = []
        for theirs in brought:
            members = {id(parameter) for parameter in theirs["params"]}
            taken = [left.pop(key) for key in [*left] if id(whole_of(left[key])) in members]
            if taken:
                pieces.append({**theirs, **group, **_rate(group, theirs, own_rate), "params": taken})
        if left:
            pieces.insert(0, {**group, "params": [*left.values()]})
        for index, piece in enumerate(pieces):
            suffix = LOW_RANK if "rank" in piece else f".{index}" if index else ""
            yield {**piece, "name": f"{group['name']}{suffix}"}


def _rate(group: Mapping[str, Any], theirs: Mapping[str, Any], own_rate: Collection[str]) -> dict[str, Any]:
    return {"lr": theirs["lr"]} if "lr" in theirs and group["name"] not in own_rate else {}


def _others(brought: Sequence[dict[str, Any]], own: Collection[int]) -> Iterator[dict[str, Any]]:
    names: set[str] = set()
    for theirs in brought:
        parameters = [parameter for parameter in theirs["params"] if id(parameter) not in own]
        name = f"{_OTHERS}{NO_DECAY}" if theirs.get("weight_decay") == 0 and names else _OTHERS
        while name in names:
            name += "'"
        if parameters:
            names.add(name)
            yield {**theirs, "name": name, "params": parameters}
