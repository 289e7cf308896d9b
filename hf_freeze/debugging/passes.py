"""One pass through the model, as evaluation makes it, and what came out."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_freeze.model_inputs.inspected_model import InspectedModel
from hf_freeze.module_types import BATCH_NORMS


@dataclass(frozen=True, eq=False)
class Pass:
    """`logits` and `loss` with their graph, where there are any; `error`: what was raised instead."""

    logits: torch.Tensor | None = None
    loss: Any = None
    error: Exception | None = None
    warned: tuple[str, ...] = ()


class OutOfRange(Exception):  # noqa: N818 - it never leaves this room
    """An embedding was asked for a row that it does not have. Raised before a GPU would abort on it."""

    def __init__(self, path: str, module: nn.Embedding, ids: torch.Tensor) -> None:
        self.path, self.module, self.largest, self.smallest = path, module, int(ids.max()), int(ids.min())
        self.is_counting = bool(ids.numel() > 1 and (ids.flatten().diff() == 1).all())
        super().__init__(f"{path} has {module.num_embeddings} rows and was asked for {self.smallest} to {self.largest}")


def out_of_range(error: Exception | None) -> OutOfRange | None:
    """Return the error of an embedding; torch's own is read as ours where nobody watched the embedding."""
    if isinstance(error, OutOfRange):
        return error
    if isinstance(error, IndexError) and "index out of range in self" in str(error):
        return OutOfRange("an embedding", nn.Embedding(1, 1), torch.tensor([0]))
    return None


@dataclass
class Runner:
    """Runs batches through an inspected model and counts them."""

    inspected: InspectedModel
    passes: int = 0
    cost: float = 0.0
    """The rows run so far, each weighted by its length relative to the first: the cost in forward passes."""
    _first: float = field(default=0.0, init=False)

    def run(self, batch: Mapping[str, Any], *, gradients: bool = False, count: Any = None, score: bool = True) -> Pass:
        """Run one batch. `count` is handed to the loss as num_items_in_batch; `score=False` leaves the loss out."""
        self._count(batch)
        labels = [name for name in batch if name in self.inspected.label_names]
        score = score and bool(labels) and (self.inspected.trainer is not None or _takes(self.inspected, labels))
        inputs = dict(batch) if score else {key: value for key, value in batch.items() if key not in labels}
        try:
            with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(gradients):
                warnings.simplefilter("always")
                with self.inspected.autocast(), _guarded(self.inspected.model):
                    loss, output = self._call(inputs, score=score, count=count)
        except Exception as error:
            return Pass(error=error)
        logits = _logits_in(output, scored=score)
        return Pass(logits, loss, warned=tuple(str(warning.message) for warning in caught))

    def _count(self, batch: Mapping[str, Any]) -> None:
        size = float(
            max((v.numel() for k, v in batch.items() if isinstance(v, torch.Tensor) and "mask" not in k), default=1)
        )
        self._first = self._first or size
        self.passes += 1
        self.cost += size / self._first

    def _call(self, inputs: dict[str, Any], *, score: bool, count: Any) -> tuple[Any, Any]:
        trainer, model = self.inspected.trainer, self.inspected.model
        if not score or trainer is None:
            output = model(**_with_decoder_start(self.inspected, inputs))
            return (_loss_in(output) if score else None), output
        options = {} if count is None else {"num_items_in_batch": count}
        found = trainer.compute_loss(model, inputs, return_outputs=True, **options)
        return found if isinstance(found, tuple) else (found, None)


def _takes(inspected: InspectedModel, labels: list[str]) -> bool:
    return inspected.takes_anything or bool(inspected.accepts & set(labels))


def _with_decoder_start(inspected: InspectedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Give an encoder-decoder without labels the one token that generation starts from."""
    start: Any = getattr(inspected.config, "decoder_start_token_id", None)
    is_decoded = getattr(inspected.config, "is_encoder_decoder", False) and start is not None
    labelled = any(name in inputs for name in (*inspected.label_names, "decoder_input_ids"))
    if not is_decoded or labelled or "ForConditionalGeneration" not in type(inspected.task_model).__name__:
        return inputs
    return {**inputs, "decoder_input_ids": torch.full((_rows_in(inputs), 1), start, device=inspected.device)}


def _rows_in(inputs: Mapping[str, Any]) -> int:
    return next((len(value) for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim), 1)


def _loss_in(output: Any) -> Any:
    """Pick the loss out of what a model returned."""
    if isinstance(output, Mapping):
        return output.get("loss")
    first = output[0] if isinstance(output, tuple) and output else None
    return first if isinstance(first, torch.Tensor) and first.ndim == 0 else None


def _logits_in(output: Any, *, scored: bool) -> torch.Tensor | None:
    """Pick the logits out of what a model returned: a ModelOutput, dict, tuple or bare tensor."""
    if isinstance(output, Mapping):
        named = [output.get(name) for name in ("logits", "start_logits", "scores", "predictions")]
        candidates = [*named, *(value for key, value in output.items() if key != "loss")]
    else:
        candidates = list(output) if isinstance(output, tuple | list) else [output]
    for value in candidates:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim:
            return value
    return None


@contextmanager
def _guarded(model: nn.Module) -> Iterator[None]:
    """Look at what embeddings are asked for, in a pass through a model."""
    paths = {module: path for path, module in model.named_modules() if type(module).forward is nn.Embedding.forward}
    handles = [module.register_forward_pre_hook(_guard(path)) for module, path in paths.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _guard(path: str) -> Callable[[Any, tuple[Any, ...]], None]:
    def look(module: nn.Embedding, args: tuple[Any, ...]) -> None:
        ids = args[0] if args else None
        if isinstance(ids, torch.Tensor) and not ids.is_floating_point() and ids.numel():
            smallest, largest = int(ids.min()), int(ids.max())
            if smallest < 0 or largest >= module.num_embeddings:
                raise OutOfRange(path, module, ids)

    return look


def set_eval(model: nn.Module) -> list[str]:
    """Put every module into eval mode as evaluation does; return the paths of those that `eval()` did not reach."""
    model.eval()
    ignores_eval = [path for path, module in model.named_modules() if module.training]
    for module in model.modules():
        module.training = False
    return ignores_eval


def set_train(model: nn.Module) -> None:
    """Put the model into train mode, but for batch statistics, which one row does not have."""
    model.train()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()


def reads_labels(inspected: InspectedModel) -> bool:
    """Tell whether the model is an encoder-decoder that makes its decoder's inputs from the labels."""
    return bool(getattr(inspected.config, "is_encoder_decoder", False)) and not type(
        inspected.task_model
    ).__name__.endswith("ForSequenceClassification")


def uses_fsdp2(model: nn.Module) -> bool:
    """Tell whether each process holds a piece of the weights, by FSDP2."""
    return any(hasattr(module, "reshard") for module in model.modules())


def recomputes(model: nn.Module) -> bool:
    """Tell whether activation checkpointing is on anywhere."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def all_finite(tensor: torch.Tensor) -> bool:
    """Tell whether every value is finite. A finite sum shows that at a tenth of the cost of looking at each."""
    wide = tensor.dtype if tensor.element_size() > 2 else torch.float32
    return bool(torch.isfinite(tensor.sum(dtype=wide))) or bool(torch.isfinite(tensor).all())


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference between two sets of logits; infinite where only one of them is finite."""
    if one.shape != other.shape:
        return float("inf")
    gap = float((one.detach().double() - other.detach().double()).abs().nan_to_num(nan=float("inf")).max())
    return gap


def noise(logits: torch.Tensor) -> float:
    """Return what rounding alone may move logits by."""
    return 16 * torch.finfo(logits.dtype).eps * max(float(logits.detach().abs().max()), 1e-6)
