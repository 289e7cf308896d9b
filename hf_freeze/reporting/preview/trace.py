"""One training step of a model without weights: what it computes, and what it keeps for the backward pass.

The step runs in a `FakeTensorMode`, in which tensors have a shape and no content. What autograd does there is what it
does in training: it goes back no further than to the lowest parameter that trains, computes the gradients of weights
that train alone, and keeps the activations that this takes. No formula of layers has to know of it.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainingArguments

from hf_freeze.reporting.preview.operations import GroupedProductsOfAnyType, operation_counter
from hf_freeze.reporting.preview.stand_in import example_batches, moved_into_mode, stand_in
from hf_freeze.training.freezing import hold_eval, release_eval, set_trainable
from hf_freeze.training.recomputation import stop_backward_at_lowest_trainable


@dataclass(frozen=True, kw_only=True)
class StepTrace:
    """Floating-point operations of one forward and one backward pass, and the bytes kept between the two.

    `without_gradient` names what trains and yet gets no gradient. As no value was read, that depends on none: an expert
    that a router may pick has one.
    """

    forward: int
    backward: int
    kept_bytes: int
    without_gradient: frozenset[str] = frozenset()

    @property
    def flops(self) -> int:
        """Operations of both passes."""
        return self.forward + self.backward


class ModelTracer:
    """Traces steps of one model, each with other parameters trainable. The model given is left as it is.

    Raises whatever the model raises for a batch that it cannot take, or where its computation depends on values.
    """

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, batch: Mapping[str, Any] | None, rows: int, tokens: int
    ) -> None:
        self._mode = FakeTensorMode()
        self._frozen_eval = bool(getattr(args, "frozen_eval", True))
        self._half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        with self._without_values():
            self._model = stand_in(model, "cpu")
            _set_up(self._model, args)
            # Holds for as long as what it returns is kept.
            self._undo_stop = stop_backward_at_lowest_trainable(self._model)
            self._batch = moved_into_mode(batch) if batch is not None else self._one_that_fits(rows, tokens)

    def trace(self, trainable: Collection[str]) -> StepTrace:
        """Trace a step in which exactly these parameters train."""
        set_trainable(self._model, trainable)
        named = dict(self._model.named_parameters())
        if self._frozen_eval:
            hold_eval(self._model)
        else:
            release_eval(self._model)
        self._model.train()
        operations = operation_counter()
        with self._without_values(), operations:
            with AliveStorages(self._model) as storages:
                output = self._forward(self._batch)
                kept = storages.alive_bytes()
            forward = operations.get_total_flops()
            loss = _what_is_differentiated(output)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        idle = frozenset(name for name, p in named.items() if p.requires_grad and p.grad is None)
        self._model.zero_grad(set_to_none=True)
        backward = operations.get_total_flops() - forward
        return StepTrace(forward=forward, backward=backward, kept_bytes=kept, without_gradient=idle)

    @contextmanager
    def _without_values(self) -> Iterator[None]:
        with _quiet(_FAKE_TENSORS), self._mode, GroupedProductsOfAnyType():  # type: ignore[no-untyped-call]
            yield

    def _forward(self, batch: Mapping[str, Any]) -> Any:
        with torch.autocast("cpu", self._half) if self._half else nullcontext():
            return self._model(**batch)

    def _one_that_fits(self, rows: int, tokens: int) -> dict[str, Any]:
        candidates = list(example_batches(self._model, rows=rows, tokens=tokens))
        for batch in candidates[:-1]:
            try:
                with torch.no_grad():
                    self._forward(batch)
            except Exception:  # whichever its shapes lead to; what the last one raises is told
                continue
            return batch
        with torch.no_grad():
            self._forward(candidates[-1])
        return candidates[-1]


class AliveStorages(TorchDispatchMode):
    """Remembers, while it is on, every storage that an operation wrote to, without keeping it alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = [*model.parameters(), *model.buffers()]
        self._held = {StorageWeakRef(tensor.untyped_storage()) for tensor in held}  # type: ignore[no-untyped-call]
        self._written: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._written[StorageWeakRef(storage)] = storage.nbytes()  # type: ignore[no-untyped-call]
        return result

    def alive_bytes(self) -> int:
        """Bytes that something holds on to now, without weights, buffers and views of them."""
        alive = [storage for storage in self._written.keys() - self._held if not storage.expired()]  # type: ignore[no-untyped-call]
        return sum(self._written[storage] for storage in alive)


_FAKE_TENSORS = logging.getLogger("torch._subclasses.fake_tensor")


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence torch's log: what it logs about an operation without values, it also raises."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _set_up(model: nn.Module, args: TrainingArguments) -> None:
    """Do what the Trainer does to a model before it trains."""
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.use_cache = args.use_cache
        if getattr(config, "pad_token_id", 0) is None:
            config.pad_token_id = 0  # decoders that classify find the last token by it
    if args.gradient_checkpointing:
        older = "gradient_checkpointing_enable"  # renamed in transformers 5.23
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or getattr(model, older)
        enable(args.gradient_checkpointing_kwargs)


def _what_is_differentiated(output: Any) -> torch.Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is not None:
        return loss  # type: ignore[no-any-return]
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    return torch.stack([tensor.sum() for tensor in tensors]).sum()
