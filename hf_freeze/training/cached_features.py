"""A Trainer that computes the output of what is frozen once, and trains and evaluates on it from then on."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerState, TrainingArguments

from hf_freeze.features.batches import Digesting, Source, without_digests
from hf_freeze.features.cache import CacheSettings, Demand, FeatureCache
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.ranks import reason
from hf_freeze.features.row_digests import set_number_of
from hf_freeze.features.sets import FeatureSet
from hf_freeze.no_trace import random_states_kept
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.attributes import replaced
from hf_freeze.training.freezing import trainable_for_now
from hf_freeze.training.known_parameters import KnownParameters
from hf_freeze.training.planned_training import PlannedTraining

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_FOLDER = "_frozen_features"
"""Where features are kept in `output_dir` with `cache_frozen=True`: `push_to_hub` leaves out what begins so."""

TRAINING = "training"
"""What the training set is called among the sets whose features are kept."""
_LABELS = ("labels", "label", "label_ids")


class CachedFeaturesTrainerMixin(_Base):
    """Recognises rows by what the model is given, and answers for the frozen prefix where their features are stored."""

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    _settings: FreezeArguments
    _freezing: PlannedTraining
    _cache: FeatureCache | None = None
    _count_parameters: Any = None
    _known: KnownParameters | None = None

    @property
    def cached_sets(self) -> frozenset[str]:
        """Names of the sets of which training reads stored features in this stage."""
        return frozenset() if self._cache is None else frozenset(self._cache.kept)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Build the Trainer's loader; with `cache_frozen`, its batches carry the digests of their rows."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        return self._digesting(loader, TRAINING)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Build the Trainer's loader; with `cache_frozen`, its batches carry the digests of their rows."""
        loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)
        return self._digesting(loader, self._name_of(eval_dataset))

    def _digesting(self, loader: DataLoader[Any], name: str) -> DataLoader[Any]:
        inner = getattr(loader, "base_dataloader", loader)  # what accelerate draws from
        if self._settings.cache_frozen and not isinstance(getattr(inner, "collate_fn", None), Digesting | None):
            inner.collate_fn = Digesting(inner.collate_fn, self._labels, self._set_names.index(name))
        return loader

    @property
    def _labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.label_names, *_LABELS]))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the Trainer does, on stored features where they are kept."""
        with self._on_features(inputs, TRAINING) as inputs:
            return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict as the Trainer does, on stored features where they are kept."""
        with self._on_features(inputs) as inputs:
            return super().prediction_step(model, inputs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count as the Trainer does; on stored features, count the parameters of the model once per stage."""
        if self._cache is None or not self._cache.kept or not hasattr(self.model, "num_parameters"):
            return super().floating_point_ops(inputs)
        with replaced(self.model, num_parameters=self._count_parameters):
            return super().floating_point_ops(inputs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip as the Trainer does."""
        clip: Callable[[nn.Module], Any] = super()._clip_grad_norm
        return clip(model) if self._known is None else self._known.clipped(clip, model)

    @contextmanager
    def _on_features(self, inputs: dict[str, Any], name: str | None = None) -> Iterator[dict[str, Any]]:
        if not isinstance(inputs, Mapping):  # TRL's GRPO is handed prompts, and makes the batch of them itself
            yield inputs
            return
        inputs, digests = without_digests(inputs)
        if self._cache is None or not self._cache.kept:
            yield inputs
            return
        if digests is None and name in self._cache.kept:
            digest = Digesting(lambda _: dict(inputs), self._labels, self._set_names.index(name))
            _, digests = without_digests(digest([]))
        if digests is None:
            yield inputs
            return
        with self._cache.replaying(self._set_names[set_number_of(digests)], digests, inputs):
            yield inputs

    def _stage_begins(self, state: TrainerState) -> None:
        """Make the features of the stage ready that the next step belongs to."""
        if not self._settings.cache_frozen:
            return
        if hasattr(self.model, "num_parameters"):
            self._count_parameters = cache(self.model.num_parameters)
        if self._cache is None:
            self._cache = FeatureCache(self.model, self._cache_settings())
        self._leave_features()
        if self._waits_for_a_frozen_part():
            return
        with random_states_kept():
            self._cache.enter(*self._sets(state))
        if TRAINING in self._cache.kept:
            self._known = KnownParameters(self.model_wrapped)

    def _waits_for_a_frozen_part(self) -> bool:
        """Tell whether everything trains in this stage, but something will be frozen in a later one."""
        resolved, stage = self._freezing.required_bound.resolved, self._freezing.stage
        everything = frozenset(resolved.model_map.parts)
        return stage is not None and resolved.stages[stage] == everything and resolved.stages[-1] != everything

    def _leave_stage(self) -> None:
        self._leave_features()
        self._cache = None

    def _leave_features(self) -> None:
        if self._cache is not None:
            self._cache.leave()
        if self._known is not None:
            self._known.remove()
        self._known = None

    def _cache_settings(self) -> CacheSettings:
        given = self._settings.cache_frozen
        return CacheSettings(
            folder=Path(str(self.args.output_dir)) / _FOLDER if given is True else Path(str(given)),
            dtype=getattr(torch, self._settings.cache_frozen_dtype or "", None),
            max_bytes=self._settings.cache_frozen_max_gb * 1e9,
            always=self._settings.cache_frozen_always,
            show_progress=not self.args.disable_tqdm,
        )

    @property
    def _set_names(self) -> list[str]:
        return [TRAINING, *self._eval_sets(), ""]

    def _eval_sets(self) -> dict[str, Any]:
        """Name -> the sets that training evaluates."""
        given = self.eval_dataset
        if isinstance(given, dict):
            return {f"evaluation {name}": dataset for name, dataset in given.items()}
        return {} if given is None else {"evaluation": given}

    def _name_of(self, dataset: Any) -> str:
        """Return the name of a set that training evaluates, "" for another; a text names one, None is the only one."""
        given: Any = self.eval_dataset
        dataset = given[dataset] if isinstance(dataset, str) else given if dataset is None else dataset
        return next((name for name, known in self._eval_sets().items() if known is dataset), "")

    def _sets(self, state: TrainerState) -> tuple[list[tuple[FeatureSet, list[Demand]]], dict[str, str]]:
        """Return the sets passed over in this stage or later ones, with how often; and why others are refused."""
        stages = self._stages_ahead(state)
        steps_per_epoch = max(state.max_steps / max(float(self.args.num_train_epochs), 1e-9), 1.0)
        if self._freezing.steps_per_epoch:
            steps_per_epoch = float(self._freezing.steps_per_epoch)
        sets, refused = [], {}
        for name in self._set_names[:-1]:
            passes = {
                stage: steps / (steps_per_epoch if name == TRAINING else self._steps_per_evaluation(steps_per_epoch))
                for stage, steps in stages.items()
            }
            if not any(passes.values()):
                continue
            try:
                feature_set = self._feature_set(name, state)
            except Exception as error:  # a loader that the run itself may never build
                refused[name] = reason(error)
                continue
            demands = [Demand(count, stage, self._as_in(stage)) for stage, count in passes.items()]
            now = demands[0]
            earlier = self._like_before(now.stage)
            demands += [replace(now, stage=stage, as_in_stage=self._as_in(stage)) for stage in earlier]
            sets.append((feature_set, demands))
        return sets, refused

    def _as_in(self, stage: int) -> Any:
        resolved = self._freezing.required_bound.resolved
        return lambda: trainable_for_now(self.model, resolved.names[stage])

    def _stages_ahead(self, state: TrainerState) -> dict[int, int]:
        """Return the steps of this stage, and of those later ones whose frozen part no stage before them changes."""
        resolved, lengths = self._freezing.required_bound.resolved, self._freezing.steps_ahead(state)
        now = min(lengths)
        kept = {now: lengths[now]}
        trained = resolved.names[now]
        for stage in sorted(lengths.keys() - {now}):
            if trained <= resolved.names[stage]:
                kept[stage] = lengths[stage]
            trained |= resolved.names[stage]
        return kept

    def _like_before(self, stage: int) -> list[int]:
        """Return the earlier stages whose frozen part nothing has changed since, so that their features still hold."""
        names = self._freezing.required_bound.resolved.names
        return [early for early in range(stage) if frozenset().union(*names[early : stage + 1]) <= names[early]]

    def _steps_per_evaluation(self, steps_per_epoch: float) -> float:
        strategy = str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy))
        if strategy == "steps":
            return float(self.args.eval_steps or math.inf)
        return steps_per_epoch if strategy == "epoch" else math.inf

    def _feature_set(self, name: str, state: TrainerState) -> FeatureSet:
        training = name == TRAINING
        if not training and getattr(self.args, "predict_with_generate", False):
            raise CacheRefused("evaluation generates, token by token")
        _refuse_set_up(self.model, self.args)
        loader = self.get_train_dataloader() if training else self.get_eval_dataloader(self._eval_sets()[name])
        loader = getattr(loader, "base_dataloader", loader)
        dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
        if (
            isinstance(dataset, IterableDataset)
            or not hasattr(dataset, "__len__")
            or not hasattr(dataset, "__getitem__")
        ):
            raise CacheRefused("the data is iterable and has no rows by number")
        if not callable(collate):
            raise CacheRefused("its loader has no collator that makes batches of rows")
        if not isinstance(collate, Digesting):
            collate = Digesting(collate, self._labels)
        per_device = state.train_batch_size or self.args.train_batch_size
        return FeatureSet(
            name,
            Source(dataset, collate, self._on_device, self.args.dataloader_num_workers),
            self._losses if training else self._outputs,
            self._losses,
            training,
            self.args.device,
            per_device if training else self.args.eval_batch_size,
            self._labels,
            {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision),
        )

    def _on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(self._prepare_inputs(inputs))

    def _losses(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        with self.compute_loss_context_manager():
            loss = self.compute_loss(self.model, inputs)
        return [loss if isinstance(loss, torch.Tensor) else loss[0]]

    def _outputs(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """Return the loss, and what evaluation hands to `compute_metrics`."""
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


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, Sequence) else []
