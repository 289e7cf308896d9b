"""A model, and how the Trainer around it collates a row, moves it to a device and scores it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, default_data_collator

from hf_freeze.binary.result import ThresholdResult
from hf_freeze.binary.saved_threshold import threshold_of
from hf_freeze.errors import FreezeError
from hf_freeze.label_columns import label_columns

IDS = "input_ids"


@dataclass(frozen=True, kw_only=True)
class InspectedModel:
    """A model, and what surrounds it. `trainer` is None for a model alone."""

    model: nn.Module
    trainer: Any
    tokenizer: Any
    processor: Any
    collator: Callable[[list[Any]], Any]
    threshold: ThresholdResult | None
    label_names: tuple[str, ...]

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""
        return getattr(self.model, "config", None)

    @property
    def task_model(self) -> nn.Module:
        """The model inside a PEFT wrapper, or the model."""
        inner = getattr(self.model, "get_base_model", None)
        return inner() if callable(inner) and hasattr(self.model, "peft_config") else self.model

    @property
    def accepts(self) -> frozenset[str]:
        """Names that the forward takes."""
        return frozenset(inspect.signature(self.task_model.forward).parameters)

    @property
    def takes_anything(self) -> bool:
        """Whether the forward takes any keyword."""
        parameters = inspect.signature(self.task_model.forward).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a model without any."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @property
    def input_embedding(self) -> nn.Embedding | None:
        """The table that token ids index, as far as transformers knows it."""
        inside = [module for module in self.model.modules() if isinstance(module, PreTrainedModel)]
        try:
            found = inside[0].get_input_embeddings() if inside else None
        except (NotImplementedError, AttributeError):
            return None
        return found if isinstance(found, nn.Embedding) else None

    @property
    def image_processor(self) -> Any:
        """What makes pixels for the model, where it is at hand; else None."""
        return self._part_with("image_processor", "image_mean")

    @property
    def feature_extractor(self) -> Any:
        """What makes samples of sound for the model, where it is at hand; else None."""
        return self._part_with("feature_extractor", "sampling_rate")

    def _part_with(self, name: str, attribute: str) -> Any:
        parts = (getattr(self.processor, name, None), self.processor)
        return next((part for part in parts if hasattr(part, attribute)), None)

    @property
    def own_loss(self) -> bool:
        """Whether somebody's own code computes the loss: a Trainer's compute_loss, or a model of their own."""
        if self.trainer is not None:
            overridden = _class_function(self.trainer, "compute_loss") is not Trainer.compute_loss
            if overridden or getattr(self.trainer, "compute_loss_func", None) is not None:
                return True
        return not isinstance(self.task_model, PreTrainedModel) or not type(self.task_model).__module__.startswith(
            "transformers."
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision that training will use."""
        return nullcontext() if self.trainer is None else self.trainer.accelerator.autocast()

    def collate(self, rows: Sequence[Any]) -> Any:
        """Make a batch as training will, without the columns that it drops."""
        collator = self.collator
        if self.trainer is not None:
            collator = self.trainer._get_collator_with_removed_columns(collator)
            return collator(list(rows))
        return collator([self._known_columns(row) for row in rows])

    def _known_columns(self, row: Any) -> Any:
        if not isinstance(row, Mapping) or (self.takes_anything and not self.accepts & row.keys()):
            return row
        kept = {*self.accepts, *self.label_names} | ({*row} if self.takes_anything else set())
        return {key: value for key, value in row.items() if key in kept and not isinstance(value, str)}

    def place(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Move a batch to where the model is."""
        if self.trainer is not None:
            batch = self.trainer._prepare_inputs(dict(batch))
        return {key: value.to(self.device) if hasattr(value, "to") else value for key, value in batch.items()}

    def is_main_process(self) -> bool:
        """Tell whether this process speaks for all."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank() == 0
        return self.trainer is None or bool(self.trainer.is_world_process_zero())

    @property
    def processes(self) -> int:
        """Number of processes."""
        return 1 if self.trainer is None else int(self.trainer.args.world_size)


def inspect_model(trainer_or_model: Any, *, tokenizer: Any, collator: Any, threshold: Any) -> InspectedModel:
    """Read what there is from a Trainer or a model; what is given explicitly comes first."""
    trainer = trainer_or_model if hasattr(trainer_or_model, "compute_loss") else None
    model = trainer_or_model if trainer is None else trainer.model
    if not isinstance(model, nn.Module):
        raise FreezeError(
            f"{trainer_or_model!r:.80} is a {type(trainer_or_model).__name__}, neither a Trainer nor a torch module. "
            "Give the Trainer, or the loaded model together with dataset= or a sample."
        )
    processor = tokenizer if tokenizer is not None else getattr(trainer, "processing_class", None)
    tokenizer = _tokenizer_in(processor)
    if collator is None:
        collator = getattr(trainer, "data_collator", None) or _default_collator(tokenizer)
    model = _unwrapped(model)
    _refuse_unloaded(model)
    names = tuple(getattr(trainer, "label_names", None) or ())
    return InspectedModel(
        model=model,
        trainer=trainer,
        tokenizer=tokenizer,
        processor=processor,
        collator=collator,
        threshold=_threshold(threshold, trainer, model),
        label_names=label_columns(model, names),
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel, DeepSpeed and torch.compile wrappers; FSDP1 is called as it is."""
    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return model if inner is model or type(model).__name__ == "FullyShardedDataParallel" else _unwrapped(inner)


def _class_function(owner: Any, name: str) -> Any:
    return vars(owner).get(name) or next(vars(c)[name] for c in type(owner).__mro__ if name in vars(c))


def _refuse_unloaded(model: nn.Module) -> None:
    lazy = torch.nn.parameter.UninitializedParameter
    for name, parameter in model.named_parameters():
        if isinstance(parameter, lazy) or parameter.device.type == "meta":
            found = "not initialised (a lazy module)" if isinstance(parameter, lazy) else "on the meta device"
            raise FreezeError(
                f"{name} of this {type(model).__name__} is {found}: there are no weights to run. Load the model, or "
                "run one batch through it, first."
            )


def _tokenizer_in(processing_class: Any) -> Any:
    if processing_class is None or hasattr(processing_class, "convert_ids_to_tokens"):
        return processing_class
    return getattr(processing_class, "tokenizer", None)


def _default_collator(tokenizer: Any) -> Callable[[list[Any]], Any]:
    if tokenizer is not None and getattr(tokenizer, "pad_token", None) is not None:
        return DataCollatorWithPadding(tokenizer)
    return default_data_collator


def _threshold(given: Any, trainer: Any, model: nn.Module) -> ThresholdResult | None:
    """Find the tuned threshold: the one given, the metrics', or the one saved in the model's config."""
    if isinstance(given, ThresholdResult):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool):
        return ThresholdResult(threshold=float(given))
    if given is None:
        return None
    if given != "auto":
        raise FreezeError(f'threshold={given!r} is not known. Give "auto", None, a margin, or a ThresholdResult.')
    result = getattr(getattr(trainer, "compute_metrics", None), "result", None)
    if isinstance(result, ThresholdResult):
        return result
    found = threshold_of(model)
    return found if isinstance(found, ThresholdResult) else None
