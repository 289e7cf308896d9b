"""The memory of an optimizer, found by letting it make a step on the meta device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze.training.groups import GroupSpec, with_parameters


def state_bytes(specs: Sequence[GroupSpec], meta_model: nn.Module, args: TrainingArguments) -> dict[str, int]:
    """Return the bytes of state that `args.optim` keeps of each group once the group has made a step.

    `meta_model` lies on the meta device; its gradients are left as they were. Raises whatever an optimizer raises that
    cannot step without values.
    """
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, meta_model)  # type: ignore[arg-type]
    # A fused step is refused on the meta device; its state is that of one that is not.
    options.pop("fused", None)
    optimizer = cls(with_parameters(specs, meta_model), **options)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    meta_model.zero_grad(set_to_none=True)
    return {
        group["name"]: sum(_bytes(optimizer.state[parameter]) for parameter in group["params"])
        for group in optimizer.param_groups
    }


def _bytes(state: dict[str, object]) -> int:
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
