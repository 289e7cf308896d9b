"""A Trainer that computes the output of what is frozen once, and trains and evaluates on it from then on."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_freeze.features.batches import ROWS, Numbered, NumberingCollator, Source
from hf_freeze.features.cache import CacheSettings, Demand, FeatureCache
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.sets import FeatureSet
from hf_freeze.features.untouched import random_states_kept
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.attributes import replaced
from hf_freeze.training.callbacks import FreezeCallback
from hf_freeze.training.freezing import trainable_for_now

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

logger = logging.getLogger(__name__)

FOLDER = "frozen_features"
"""Where features are kept in `output_dir` with `cache_frozen=True`."""

_TRAINING = "training"


class CachedFeaturesTrainerMixin(_Base):
    """Hands rows of data sets to the model by number, and answers for the frozen prefix where its features are kept."""

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    _settings: FreezeArguments
    _freezing: FreezeCallback
    _cache: FeatureCache | None = None
    _count_parameters: Any = None

    def _number_rows(self) -> bool:
        return bool(self._settings.cache_frozen)

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Build the Trainer's loader over rows that know their numbers."""
        if not self._number_rows() or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            loader: DataLoader[Any] = super()._get_dataloader(dataset, description, *args, **kwargs)
            return loader
        name = self._name_of(dataset)
        if hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset, description=description)
        loader = super()._get_dataloader(Numbered(dataset, self._set_names.index(name)), description, *args, **kwargs)
        inner = getattr(loader, "base_dataloader", loader)  # what accelerate draws from
        inner.collate_fn = NumberingCollator(inner.collate_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(_without_numbers(train_dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return super()._get_eval_sampler(_without_numbers(eval_dataset))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the Trainer does, on stored features where they are kept."""
        with self._on_features(inputs) as inputs:
            return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict as the Trainer does, on stored features where they are kept."""
        with self._on_features(inputs) as inputs:
            return super().prediction_step(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count as the Trainer does; on stored features, the parameters of the model once a stage."""
        if self._cache is None or not self._cache.kept or not hasattr(self.model, "num_parameters"):
            return super().floating_point_ops(inputs)
        with replaced(self.model, num_parameters=self._count_parameters):
            return super().floating_point_ops(inputs)

    @contextmanager
    def _on_features(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        numbers = inputs.get(ROWS)
        if numbers is None:
            yield inputs
            return
        inputs = {name: value for name, value in inputs.items() if name != ROWS}
        if self._cache is None:
            yield inputs
            return
        name = self._set_names[int(numbers[0, 0])]
        with self._cache.replaying(name, numbers[:, 1], inputs):
            yield inputs

    def _enter_stage(self, state: TrainerState) -> None:
        """Make the features of the stage ready that the next step belongs to."""
        if hasattr(self.model, "num_parameters"):
            self._count_parameters = cache(self.model.num_parameters)
        if self._cache is None:
            self._cache = FeatureCache(self.model, self._cache_settings())
        self._cache.enter(self._sets(state))

    def _leave_stage(self) -> None:
        if self._cache is not None:
            self._cache.leave()
        self._cache = None

    def _cache_settings(self) -> CacheSettings:
        given = self._settings.cache_frozen
        return CacheSettings(
            folder=Path(str(self.args.output_dir)) / FOLDER if given is True else Path(str(given)),
            dtype=getattr(torch, self._settings.cache_frozen_dtype or "", None),
            max_bytes=self._settings.cache_frozen_max_gb * 1e9,
            always=self._settings.cache_frozen_always,
            batch_size=max(self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size),
            show_progress=not self.args.disable_tqdm,
        )

    @property
    def _set_names(self) -> list[str]:
        return [_TRAINING, *self._eval_sets(), ""]

    def _eval_sets(self) -> dict[str, Any]:
        """Name -> the sets that training evaluates."""
        given = self.eval_dataset
        if isinstance(given, dict):
            return {f"evaluation {name}": dataset for name, dataset in given.items()}
        return {} if given is None else {"evaluation": given}

    def _name_of(self, dataset: Any) -> str:
        if dataset is self.train_dataset:
            return _TRAINING
        return next((name for name, known in self._eval_sets().items() if known is dataset), "")

    def _sets(self, state: TrainerState) -> list[tuple[FeatureSet, list[Demand]]]:
        """Every set that is passed over in this stage or later ones, with how often that is."""
        stages = self._stages_ahead(state)
        steps_per_epoch = max(state.max_steps / max(float(self.args.num_train_epochs), 1e-9), 1.0)
        if self._freezing.steps_per_epoch:
            steps_per_epoch = float(self._freezing.steps_per_epoch)
        sets = []
        for name in self._set_names[:-1]:
            passes = {
                stage: steps / (steps_per_epoch if name == _TRAINING else self._steps_per_evaluation(steps_per_epoch))
                for stage, steps in stages.items()
            }
            if not any(passes.values()):
                continue
            try:
                feature_set = self._feature_set(name)
            except CacheRefused as refusal:
                if state.is_world_process_zero:
                    logger.warning("No features are kept of the %s rows: %s.", name, refusal)
                continue
            demands = [Demand(count, stage, self._as_in(stage)) for stage, count in passes.items()]
            sets.append((feature_set, demands))
        return sets

    def _as_in(self, stage: int) -> Any:
        resolved = self._freezing.resolved
        assert resolved is not None
        return lambda: trainable_for_now(self.model, resolved.names[stage])

    def _stages_ahead(self, state: TrainerState) -> dict[int, int]:
        """Return the steps of this stage, and of those later ones whose frozen part no stage before them changes."""
        resolved, lengths = self._freezing.resolved, self._freezing.steps_ahead(state)
        assert resolved is not None
        now = min(lengths)
        kept = {now: lengths[now]}
        trained = resolved.names[now]
        for stage in sorted(lengths.keys() - {now}):
            if trained <= resolved.names[stage]:
                kept[stage] = lengths[stage]
            trained |= resolved.names[stage]
        return kept

    def _steps_per_evaluation(self, steps_per_epoch: float) -> float:
        strategy = str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy))
        if strategy == "steps":
            return float(self.args.eval_steps or math.inf)
        return steps_per_epoch if strategy == "epoch" else math.inf

    def _feature_set(self, name: str) -> FeatureSet:
        training = name == _TRAINING
        if not training and getattr(self.args, "predict_with_generate", False):
            raise CacheRefused("evaluation generates, token by token")
        dataset = self.train_dataset if training else self._eval_sets()[name]
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise CacheRefused("the data is iterable and has no rows by number")
        with random_states_kept():
            loader = self.get_train_dataloader() if training else self.get_eval_dataloader(dataset)
        numbering = getattr(loader, "collate_fn", None)
        if not isinstance(numbering, NumberingCollator):
            raise CacheRefused("the Trainer's own loaders are replaced by others, which give rows no numbers")
        _refuse_set_up(self.model, self.args)
        numbered: Any = loader.dataset
        source = Source(numbered.dataset, numbering.collate, self._on_device, self.args.dataloader_num_workers)
        return FeatureSet(
            name,
            source,
            self._losses if training else self._outputs,
            self._losses,
            training,
            self.args.device,
            {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision),
        )

    def _on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(self._prepare_inputs(inputs))

    def _losses(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model, inputs)
        return [loss if isinstance(loss, torch.Tensor) else loss[0]]

    def _outputs(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """The loss, and what evaluation hands to `compute_metrics`."""
        labelled = any(inputs.get(name) is not None for name in self.label_names)
        has_loss = labelled or inputs.get("return_loss") or self.can_return_loss
        with self.compute_loss_context_manager():
            if has_loss and (self.args.prediction_loss_only or self.compute_metrics is None):
                return self._losses(inputs)
            if has_loss:
                loss, outputs = self.compute_loss(self.model, inputs, return_outputs=True)
            else:
                loss, outputs = None, self.model(**inputs)
        ignored = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"])
        if isinstance(outputs, Mapping):
            outputs = [value for name, value in outputs.items() if name not in ignored and name != "loss"]
        found = [loss] if isinstance(loss, torch.Tensor) else []
        return [*found, *(part for part in _tensors(outputs) if part.is_floating_point())]


class CacheFeatures(TrainerCallback):
    """Makes features ready when a stage begins. Comes after the `FreezeCallback`, which enters the stage."""

    def __init__(self, trainer: CachedFeaturesTrainerMixin) -> None:
        self._trainer = trainer
        self._stage: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin anew."""
        self._stage = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the features of a stage that begins ready."""
        stage = self._trainer._freezing.stage
        if self._trainer._number_rows() and stage != self._stage:
            self._stage = stage
            self._trainer._enter_stage(state)


def _refuse_set_up(model: nn.Module, args: TrainingArguments) -> None:
    config = getattr(model, "config", None)
    for flag in ("output_hidden_states", "output_attentions"):
        if getattr(config, flag, False):
            raise CacheRefused(f"config.{flag} asks for what the frozen part would have to compute")
    if getattr(args, "neftune_noise_alpha", None):
        raise CacheRefused("NEFTune adds noise to the embeddings in every step")
    if args.torch_compile or hasattr(model, "_orig_mod"):
        raise CacheRefused("torch.compile traces the frozen part into one program with the rest")
    if args.n_gpu > 1:
        raise CacheRefused("DataParallel copies the model in every step; start one process per device")
    if getattr(args, "deepspeed", None) or args.fsdp or any(hasattr(p, "placements") for p in model.parameters()):
        raise CacheRefused("the weights are sharded over processes")


def _without_numbers(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, Numbered) else dataset


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, Sequence) else []
