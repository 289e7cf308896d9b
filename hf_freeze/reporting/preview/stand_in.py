"""Models without weights: the shapes, types and modules of a model, with no memory behind them."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import PretrainedConfig, PreTrainedModel

from hf_freeze.selection.frozen_marks import quiet_copies

_DEFAULTS = {"image_size": 224, "num_channels": 3, "num_mel_bins": 80, "max_source_positions": 1500}
_SAMPLES = 16_000  # one second of audio


def stand_in(model: nn.Module, device: str) -> nn.Module:
    """Copy a model with empty tensors in place of its own; ties between weights are kept.

    On the device "meta", or on any device inside a `FakeTensorMode`, the copy takes no memory.
    """
    copies: dict[int, Any] = {id(tensor): _empty(tensor, device) for tensor in _tensors_within(model)}
    return copy.deepcopy(model, copies | quiet_copies(model))


def _tensors_within(model: nn.Module) -> list[torch.Tensor]:
    """Return every tensor that the model holds, also in a list, a mapping or an object among its attributes."""
    seen: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type | ModuleType):
            continue
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            continue
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset | deque):
            waiting += value
        waiting += getattr(value, "__dict__", {}).values()
    return [value for value in seen.values() if isinstance(value, torch.Tensor)]


def _empty(tensor: torch.Tensor, device: str) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def example_batches(model: nn.Module, *, rows: int, tokens: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches that the model may take, with the labels of one of the usual tasks; the last has none."""
    described: Any = _described(model)
    config: Any = getattr(described, "config", None)
    inputs = _inputs(getattr(described, "main_input_name", "input_ids"), config, rows, tokens)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        yield {**inputs, "labels": torch.zeros(rows, config.num_labels)}
    kind = torch.float32 if getattr(config, "num_labels", 2) == 1 else torch.long
    for shape in ((rows,), (rows, tokens)):
        yield {**inputs, "labels": torch.zeros(shape, dtype=kind)}
    yield inputs


def _inputs(name: str, config: Any, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    vision = getattr(config, "vision_config", None)

    def known(key: str) -> Any:
        return getattr(config, key, None) or getattr(vision, key, None) or _DEFAULTS[key]

    if name == "pixel_values":
        size = known("image_size")
        height, width = (size, size) if isinstance(size, int) else size
        return {name: torch.zeros(rows, known("num_channels"), height, width)}
    if name == "input_values":
        return {name: torch.zeros(rows, _SAMPLES)}
    if name == "input_features":
        return {name: torch.zeros(rows, known("num_mel_bins"), 2 * known("max_source_positions"))}
    return {name: torch.zeros(rows, tokens, dtype=torch.long)}


def longest_text(model: nn.Module) -> int | None:
    """Return how many tokens the model takes at most, as its configuration has it."""
    config: Any = getattr(_described(model), "config", None)
    text = config.get_text_config() if isinstance(config, PretrainedConfig) else config
    longest = getattr(text, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _described(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a custom module, which knows its inputs; else the model itself."""
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def moved_into_mode(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a batch's tensors as empty ones; anything else stays."""
    empty = partial(_empty, device="cpu")
    return {name: tree_map_only(torch.Tensor, empty, value) for name, value in batch.items()}
