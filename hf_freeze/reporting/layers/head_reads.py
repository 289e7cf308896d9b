"""What a head reads of a layer's output: the mean over what is not padding, and one token, if it reads just one."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hf_freeze.features.calls import Call, intercepted, tensors_of
from hf_freeze.reporting.layers.layer_outputs import Place


def real_tokens(hidden: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return which tokens are not padding, (rows, length); None where the features are not a sequence."""
    if hidden.dim() != 3:
        return None
    for name, value in inputs.items():
        if name.endswith("attention_mask") and isinstance(value, torch.Tensor) and value.shape == hidden.shape[:2]:
            return value.to(hidden.device) != 0
    return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)


def read(hidden: torch.Tensor, mask: torch.Tensor | None, how: str) -> torch.Tensor:
    """Return (rows, features): the mean over real tokens (or over an image), or the first or last real token."""
    if mask is None:
        return hidden.flatten(2).mean(2) if hidden.dim() > 3 else hidden.flatten(1)
    if how == "mean":
        share = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return (hidden * share[..., None].to(hidden.dtype)).sum(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), _place(mask, how)]


def _place(mask: torch.Tensor, how: str) -> torch.Tensor:
    """Return the first or the last real position of each row."""
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    if how == "first":
        return places.masked_fill(~mask, mask.shape[1] - 1).amin(1)
    return places.masked_fill(~mask, 0).amax(1)


def token_that_is_read(
    model: nn.Module, top: Mapping[str, nn.Module], place: Place, batches: Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return the one real token of the `top` layer's output that the logits depend on, "first" or "last"; else ().

    Asked of autograd, of single rows in `batches`: nothing needs to be known of the architecture.
    """
    answers = [answer for batch in batches if (answer := _tokens_read(model, top, place, batch)) is not None]
    common = set.intersection(*answers) if answers else set()
    return tuple(how for how in ("first", "last") if how in common)[:1]


def _tokens_read(
    model: nn.Module, top: Mapping[str, nn.Module], place: Place, inputs: Mapping[str, Any]
) -> set[str] | None:
    """Return the names of the only token that a batch's logits depend on; None where no row has two tokens."""
    leaves: list[torch.Tensor] = []

    def cut(call: Call) -> Any:
        flat, spec = pytree.tree_flatten(call.run())
        index = [i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor)][place.index]
        flat[index] = flat[index].detach().requires_grad_()
        leaves.append(flat[index])
        return pytree.tree_unflatten(flat, spec)

    with torch.enable_grad(), intercepted(model, top, cut):
        outputs = tensors_of(model(**inputs))
    logits = next((tensor for tensor in outputs if tensor.requires_grad), None)
    mask = real_tokens(leaves[-1].movedim(place.rows, 0), inputs) if leaves else None
    if logits is None or mask is None:
        return set()
    if not bool((mask.sum(1) > 1).any()):
        return None
    (gradient,) = torch.autograd.grad(logits.float().sum(), leaves[-1:], allow_unused=True)
    reached = torch.zeros_like(mask) if gradient is None else gradient.movedim(place.rows, 0).ne(0).any(2)
    alone = {how: torch.zeros_like(mask).scatter(1, _place(mask, how)[:, None], True) for how in ("first", "last")}
    return {how for how, only in alone.items() if torch.equal(reached, only)}
