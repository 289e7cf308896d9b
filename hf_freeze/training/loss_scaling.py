"""Make the loss mean the same whatever the accumulation and the number of processes.

The Trainer hands models `num_items_in_batch`, the number of labels in the whole accumulation window, and trusts that
their loss is divided by it. Sequence-classification models take it and drop it (transformers issue 47688): their loss
is the mean of each micro-batch, which the Trainer then sums over the window and multiplies by the number of processes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer

from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.no_trace import flags_kept, random_states_kept
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.attributes import replaced

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)


def ignores_count(loss_at: Callable[[torch.Tensor], torch.Tensor], model: nn.Module, count: torch.Tensor) -> bool:
    """Tell whether the loss, a function of the count, stays the same when the count doubles. Leaves no trace."""

    def loss_aside(items: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), in_eval_mode(model):
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
    return torch.tensor(len(labels), device=labels.device) if per_row else labels.ne(IGNORED_LABEL).sum()


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


class ScaledLossTrainerMixin(_Base):
    """Weights each micro-batch by its share of the window's labels, where the loss is a mean that ignores the window.

    Where the model divides by `num_items_in_batch` itself, or accumulates nothing on one process, the Trainer's own
    scaling is right and left alone.
    """

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    corrects_loss_scale = True  # read by debug_sample
    _count_is_ignored: bool | None = None
    _window_count: torch.Tensor | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after forgetting what the loss does with the count, as the model may be another."""
        self._count_is_ignored = None
        return super().train(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Step as the Trainer does; where the loss is a mean over labels, weight each micro-batch by their number."""
        share = self._share_of_window(inputs, num_items_in_batch)
        if share is None:
            return super().training_step(model, inputs, num_items_in_batch)
        compute_loss: Any = self.compute_loss

        def weighted(*args: Any, **kwargs: Any) -> Any:
            loss: Any = compute_loss(*args, **kwargs)
            return loss * share.to(loss.device)

        # 1, so that the Trainer's own division by the number of micro-batches changes nothing, in whatever version.
        with replaced(self, compute_loss=weighted, current_gradient_accumulation_steps=1):
            return super().training_step(model, inputs, None)

    def _share_of_window(
        self, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor | None:
        """Return the weight of this micro-batch in the window, or None where the Trainer's own scaling is right."""
        if self._window_count is None or getattr(self, "loss_is_scaled_for_ga", None) is True:
            return None
        labels = self._count_labels(inputs)
        if labels is None or (num_items_in_batch is not None and not self._ignores_count(inputs, labels)):
            return None
        window = self._window_count.to(labels.device)
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return labels * processes / window if labels and window else None

    def _ignores_count(self, inputs: dict[str, Any], labels: torch.Tensor) -> bool:
        if self._count_is_ignored is None:
            prepared = self._prepare_inputs(inputs)

            def loss_at(count: torch.Tensor) -> torch.Tensor:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(self.model, dict(prepared), num_items_in_batch=count)
                return loss if isinstance(loss, torch.Tensor) else loss[0]

            self._count_is_ignored = ignores_count(loss_at, self.model, labels.to(self.args.device))
        return self._count_is_ignored

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict as the Trainer does, without its factor of the number of processes on a loss that is a mean."""
        labels = self._count_labels(inputs)
        if self.accelerator.num_processes == 1 or labels is None or not self._ignores_count(inputs, labels):
            return super().prediction_step(model, inputs, *args, **kwargs)
        with replaced(self, _get_num_items_in_batch=lambda *_: None):
            return super().prediction_step(model, inputs, *args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], torch.Tensor | int | None]:
        """Collect the micro-batches of a window, and count its labels over all processes."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._window_count = self._count_window(batches, count)
        return batches, count

    def _count_window(self, batches: list[Any], count: torch.Tensor | int | None) -> torch.Tensor | None:
        alone = self.args.gradient_accumulation_steps == 1 and self.accelerator.num_processes == 1
        if alone or self.args.n_gpu > 1:
            return None
        if isinstance(count, torch.Tensor):
            return count
        counts = [labels for labels in map(self._count_labels, batches) if labels is not None]
        if len(counts) < len(batches) or not counts:
            return None
        total = torch.stack(counts).sum().to(self.args.device)
        if self.accelerator.num_processes > 1 and self.args.average_tokens_across_devices:
            total = self.accelerator.gather(total.reshape(1)).sum()
        return total

    def _count_labels(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        return count_labels(batch, per_row=type(unwrap(self.model)).__name__.endswith("ForCTC"))


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode; flags and random states afterwards are those from before."""
    with random_states_kept(), flags_kept(model):
        for module in model.modules():
            module.training = False
        yield
