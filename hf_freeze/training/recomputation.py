"""Gradient checkpointing where what comes in is frozen."""

from torch import nn
from transformers import PreTrainedModel


def let_gradients_in(model: nn.Module) -> None:
    """Make the input of recomputed layers require a gradient where reentrant checkpointing is on.

    Reentrant checkpointing gives no gradient to a layer none of whose inputs requires one, and behind frozen embeddings
    none does. Transformers sees to it for models over `input_ids`; this does for images, audio and the rest.
    """
    for part in model.modules():
        if not isinstance(part, PreTrainedModel) or "_require_grads_hooks" in vars(part):
            continue
        if any(map(_recomputes_reentrantly, part.modules())):
            part.enable_input_require_grads()  # type: ignore[no-untyped-call]


def _recomputes_reentrantly(module: nn.Module) -> bool:
    recompute = getattr(module, "_gradient_checkpointing_func", None)
    return bool(
        getattr(module, "gradient_checkpointing", False) and getattr(recompute, "keywords", {})["use_reentrant"]
    )
