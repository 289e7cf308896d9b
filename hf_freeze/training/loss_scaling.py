"""Make the loss mean the same whatever the accumulation and the number of processes.

The Trainer hands models `num_items_in_batch`, the number of labels in the whole accumulation window, and trusts that
their loss is divided by it. Sequence-classification models take it and drop it (transformers issue 47688): their loss
is the mean of each micro-batch, which the Trainer then sums over the window and multiplies by the number of processes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


def ignores_count(loss_at: Callable[[torch.Tensor], torch.Tensor], model: nn.Module, count: torch.Tensor) -> bool:
    """Tell whether the loss, a function of the count, stays the same when the count doubles. Leaves no trace."""

    def loss_aside(items: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), _aside(model):
            return loss_at(items)

    # Each from the same random state: a loss may draw random numbers in eval mode too.
    return torch.allclose(loss_aside(count), loss_aside(2 * count), rtol=1e-3, atol=0.0, equal_nan=True)


def count_labels(batch: Mapping[str, Any], *, per_row: bool = False) -> torch.Tensor | None:
    """Count the labels that enter a mean loss (those that are not -100), or None when there are no countable ones.

    `per_row` counts rows instead, for losses such as CTC that are a mean over sequences.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor):
        return None
    return torch.tensor(len(labels), device=labels.device) if per_row else labels.ne(-100).sum()


class CountProbe:
    """Looks at the first training batch of a model, and warns when the model takes the count and drops it."""

    def __init__(self, model: nn.Module | None, is_running: Callable[[], bool]) -> None:
        self._is_running = is_running
        self._handle = model.register_forward_hook(self, with_kwargs=True) if model is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return CountProbe, (None, bool)  # a copy of the model asks nothing: bool() is False

    def remove(self) -> None:
        """Take the hook off the model. Doing it twice changes nothing."""
        if self._handle is not None:
            self._handle.remove()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        count = kwargs.get("num_items_in_batch")
        if not self._is_running():
            return self.remove()
        if not module.training or not isinstance(count, torch.Tensor):
            return
        self.remove()

        def loss_at(items: torch.Tensor) -> torch.Tensor:
            outputs = module(*args, **{**kwargs, "num_items_in_batch": items})
            loss: torch.Tensor = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
            return loss

        if ignores_count(loss_at, module, count):
            logger.warning(
                "%s ignores num_items_in_batch: under this Trainer its gradients grow with gradient_accumulation_steps "
                "and with the number of processes (transformers issue 47688). Use FreezeTrainer, which corrects it, or "
                "set model.accepts_loss_kwargs = False before building the Trainer.",
                type(module).__name__,
            )


@contextmanager
def _aside(model: nn.Module) -> Iterator[None]:
    """Eval mode and borrowed random states: train flags and random numbers afterwards are those from before."""
    flags = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
