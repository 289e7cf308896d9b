"""A Trainer that weights the loss by label, exactly whatever the accumulation and the number of processes.

The weighted loss is the Trainer's `compute_loss_func`, and `num_items_in_batch` the sum of the weights of the window's
labels over all processes. A Trainer whose `compute_loss` adds to that of its base, and a model whose loss is more than
a cross entropy of its logits, would lose that part: both are refused on the first batch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.label_columns import IGNORED_LABEL, label_columns
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.model_inputs.inspected_model import inspect_model
from hf_freeze.no_trace import attributes_kept, random_states_kept
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.attributes import replaced
from hf_freeze.training.class_weights import balanced_weights, resolve_weights
from hf_freeze.training.given_weights import BALANCED
from hf_freeze.training.loss_scaling import ScaledLossTrainerMixin, in_eval_mode
from hf_freeze.training.weighted_loss import SHIFTED, RowLosses, WeightedLoss, divided, logits_in

logger = MainProcessLogger(__name__)


class WeightedLossTrainerMixin(ScaledLossTrainerMixin):
    """Trains by `class_weights`, `pos_weight` and `focal_gamma`; without them, as the Trainer does.

    `loss` and `eval_loss` are the loss that trains, `unweighted_loss` and `eval_unweighted_loss` the plain one on the
    same rows.
    """

    compute_loss_func: Any
    _settings: FreezeArguments
    _note_loss: Callable[[str, torch.Tensor], None]
    _counted_of: tuple[Any, list[float]] | None = None  # a training set, and its balanced weights
    _loss_is_checked = False
    _labels_of_window: torch.Tensor | None = None
    _evaluated: list[torch.Tensor] | None = None

    @property
    def weighted_loss(self) -> WeightedLoss | None:
        """The loss that trains in place of the model's own; None without weights. `debug_sample` reads it, too."""
        return self.compute_loss_func if isinstance(self.compute_loss_func, WeightedLoss) else None

    def _declare_weights(self) -> None:
        """Take the weights from the arguments, which a hyperparameter search changes between runs."""
        counted = None
        if self._settings.class_weights == BALANCED:
            resolve_weights(self._settings, self.model, counted=None)  # what is wrong without a look at the data
            counted = self._balanced_weights()
        weights = resolve_weights(self._settings, self.model, counted=counted)
        if weights is None:
            self.compute_loss_func = None if self.weighted_loss else self.compute_loss_func
            return
        _refuse_other_loss(None if self.weighted_loss else self.compute_loss_func, self.args)
        _refuse_replicated_batches(self.accelerator)
        self.compute_loss_func = WeightedLoss(weights)
        self._loss_is_checked = False

    def _balanced_weights(self) -> list[float]:
        if self._counted_of is None or self._counted_of[0] is not self.train_dataset:
            names = label_columns(self.model, self.label_names)
            collate = inspect_model(self, tokenizer=None, collator=None, threshold=None).collate
            with random_states_kept():
                self._counted_of = (
                    self.train_dataset,
                    balanced_weights(self.train_dataset, names, self.model, collate=collate),
                )
        return self._counted_of[1]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after forgetting that the loss was checked against the model's own, as the model may be another."""
        if self.model_init is None:
            self._begin_with_weights()
        return super().train(*args, **kwargs)

    def _begin_with_weights(self) -> None:
        """Take the weights of the run that begins, and say what its loss is."""
        self._declare_weights()
        if self.weighted_loss:
            logger.warning("The loss is the %s. %s", self.weighted_loss, SHIFTED)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], torch.Tensor | int | None]:
        """Collect the micro-batches of a window; its count is the sum of its labels' weights over all processes."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if self.weighted_loss is None or not batches:
            return batches, count
        labels = [_labels_in(batch).to(self.args.device) for batch in batches]
        weight = torch.stack([self.weighted_loss.weight_of(one) for one in labels]).sum()
        number = torch.stack([(one != IGNORED_LABEL).sum() for one in labels]).sum()
        totals = torch.stack([weight, number.to(weight)])
        if self.accelerator.num_processes > 1 and self.args.average_tokens_across_devices:
            totals = self.accelerator.gather(totals.reshape(1, 2)).sum(0)
        self._labels_of_window = totals[1]
        # The Trainer multiplies by the number of replicas, which the loss of DataParallel's gathered logits is not.
        gathered = self.args.n_gpu if self.args.average_tokens_across_devices else 1
        return batches, totals[0] * max(gathered, 1)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Step as the Trainer does, and note the loss without weights."""
        weighted = self.weighted_loss
        if weighted is None:
            return super().training_step(model, inputs, num_items_in_batch)
        self._check_loss(inputs)
        with replaced(self, current_gradient_accumulation_steps=1):  # the count has divided already
            loss = super().training_step(model, inputs, num_items_in_batch)
        assert weighted.last is not None
        assert self._labels_of_window is not None
        plain = divided(weighted.last.plain.sum(), self._labels_of_window)
        shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        self._note_loss("unweighted_loss", plain * shares)
        return loss

    def _ignores_count(self, inputs: dict[str, Any], labels: torch.Tensor) -> bool:
        return False if self.weighted_loss else super()._ignores_count(inputs, labels)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict as the Trainer does, and note the losses of the rows."""
        weighted = self.weighted_loss
        if weighted is None or inputs.get("labels") is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        self._check_loss(inputs)
        compute_loss: Any = self.compute_loss

        def with_loss_in_tuples(*given: Any, **options: Any) -> Any:
            """Put the loss in front of a tuple, where the Trainer looks for it: without labels the model gives none."""
            loss, outputs = compute_loss(*given, **options)
            return loss, outputs if isinstance(outputs, Mapping) else (loss, *_parts(outputs))

        with replaced(self, _get_num_items_in_batch=lambda *_: None, compute_loss=with_loss_in_tuples):
            found = super().prediction_step(model, inputs, *args, **kwargs)
        if self._evaluated is not None and weighted.last is not None:
            rows = torch.stack(weighted.last, dim=1)
            self._evaluated.append(self.accelerator.gather_for_metrics(rows).double().sum(0).cpu())
        return found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does; its loss, a mean over batches, becomes that of all rows."""
        if self.weighted_loss is None:
            return super().evaluation_loop(*args, **kwargs)
        with replaced(self, _evaluated=[]):
            output: Any = super().evaluation_loop(*args, **kwargs)
            sums = RowLosses(*torch.stack(self._evaluated).sum(0)) if self._evaluated else None
        prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
        name, plain = ("_".join((prefix, kind)) for kind in ("loss", "unweighted_loss"))
        if sums is not None and name in output.metrics:
            output.metrics.update({name: float(sums.loss), plain: float(sums.plain_loss)})
        return output

    def _check_loss(self, inputs: Mapping[str, Any]) -> None:
        """Raise `UnsupportedSetupError` where weights would replace more than a plain loss of the model's logits."""
        weighted = self.weighted_loss
        if weighted is None or self._loss_is_checked or not bool((_labels_in(inputs) != IGNORED_LABEL).any()):
            return
        prepared = dict(self._prepare_inputs(dict(inputs)))
        # transformers notes the problem type in the config when a model is first called with labels.
        config_kept = attributes_kept(getattr(unwrap(self.model), "config", None))
        with torch.no_grad(), in_eval_mode(self.model), config_kept, self.compute_loss_context_manager():
            loss = self._loss_by(weighted, prepared)
            plain, squared, own = self._own_loss(weighted, prepared)
        rounded = self.accelerator.mixed_precision != "no"
        if own is not None and not any(_is_near(own, one, rounded) for one in (plain, squared) if one is not None):
            raise UnsupportedSetupError(
                f"The loss cannot be weighted ({weighted.weights}): on the first batch the loss of "
                f"{type(unwrap(self.model)).__name__} under {type(self).__name__} is {float(own):.6g}, and the cross "
                f"entropy of its logits {float(plain):.6g}. The model's loss is something else (perhaps one of the "
                "next token, with a term beside it, or with weights of its own), and weights would replace all of it. "
                "Leave them out."
            )
        assert weighted.last is not None
        if not _is_near(loss, weighted.last.loss, rounded):
            raise UnsupportedSetupError(
                f"The loss cannot be weighted ({weighted.weights}): it is {float(weighted.last.loss):.6g} on the first "
                f"batch, and compute_loss of {type(self).__name__} returns {float(loss):.6g}."
            )
        self._loss_is_checked = True

    def _loss_by(self, weighted: WeightedLoss, prepared: Mapping[str, Any]) -> torch.Tensor:
        weighted.last = None
        try:
            found: Any = self.compute_loss(self.model, dict(prepared))
        except (TypeError, KeyError, AttributeError) as error:
            raise UnsupportedSetupError(
                f"The loss cannot be weighted ({weighted.weights}): it is computed apart from the model, and "
                f"{type(unwrap(self.model)).__name__} does not run without labels ({type(error).__name__}: {error})."
            ) from error
        if weighted.last is None:
            raise UnsupportedSetupError(
                f"The loss cannot be weighted ({weighted.weights}): {type(self).__name__} computes its own loss and "
                "never calls compute_loss_func. Weight the loss there, or use FreezeTrainer."
            )
        return found if isinstance(found, torch.Tensor) else found[0]

    def _own_loss(self, weighted: WeightedLoss, prepared: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Return the plain loss of the logits, the squared error of one logit, and the loss that would train."""
        labels, shape = prepared["labels"], weighted.last_shape
        if labels.numel() == shape.numel():  # the loss of a head that is yes or no takes floats, and no -100
            labels = labels.masked_fill(labels == IGNORED_LABEL, 0).float().view(shape)
        try:
            with replaced(self, compute_loss_func=None):
                found: Any = self.compute_loss(self.model, {**prepared, "labels": labels}, return_outputs=True)
        except (TypeError, ValueError, KeyError):
            return None, None, None  # no loss of its own
        own, outputs = found
        if not isinstance(outputs, Mapping | tuple | list) or not isinstance(own, torch.Tensor) or own.numel() != 1:
            return None, None, None
        parts = outputs if isinstance(outputs, Mapping) else list(outputs)[1:]
        logits = logits_in(parts)
        one = logits.numel() == len(logits)
        squared = functional.mse_loss(logits.flatten(), labels.flatten()) if one else None
        return weighted.of(logits, labels).plain_loss, squared, own


def _labels_in(batch: Any) -> torch.Tensor:
    """Return the labels of a batch. Raises `UnsupportedSetupError` where the loss could not be weighted by them."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, torch.Tensor) and labels.ndim:
        return labels
    found = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
    raise UnsupportedSetupError(
        f'The loss cannot be weighted: the batch ({found}) has no tensor "labels", one label per row or token. '
        "class_weights, pos_weight and focal_gamma are for classification; leave them out."
    )


def refuse_unfit_weights(given: FreezeArguments, args: Any, model: nn.Module, compute_loss_func: Any) -> None:
    """Refuse weights that can be refused without looking at the data."""
    if resolve_weights(given, model, counted=None) is not None:
        _refuse_other_loss(compute_loss_func, args)


def _refuse_other_loss(compute_loss_func: Any, args: Any) -> None:
    """Raise `UnsupportedSetupError` where two losses were asked for."""
    if compute_loss_func is not None:
        name = getattr(compute_loss_func, "__name__", type(compute_loss_func).__name__)
        raise UnsupportedSetupError(
            f"compute_loss_func={name} and weights of the loss (class_weights, pos_weight, focal_gamma): each sets "
            "the loss that trains. Keep one, or weight inside your function."
        )
    if getattr(args, "label_smoothing_factor", 0):
        raise UnsupportedSetupError(
            f"label_smoothing_factor={args.label_smoothing_factor:g} spreads a label over classes of "
            "different weights: none of them applies to it. Keep it, or class_weights, pos_weight and focal_gamma."
        )


def _refuse_replicated_batches(accelerator: Any) -> None:
    parallel = getattr(accelerator, "parallelism_config", None)
    if parallel is not None and getattr(parallel, "non_data_parallel_size", 1) > 1:
        raise UnsupportedSetupError(
            "The loss cannot be weighted under tensor, context or sequence parallelism, where several processes share "
            "a batch. Use data parallelism, or leave the weights out."
        )


def _parts(outputs: Any) -> tuple[Any, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _is_near(one: torch.Tensor, other: torch.Tensor, rounded: bool) -> bool:
    """Tell whether two losses are equal up to rounding; with `rounded`, as of half precision widened since."""
    rtol = 2e-2 if rounded or one.element_size() < 4 else 1e-4
    return torch.allclose(one.float(), other.float(), rtol=rtol, atol=1e-6, equal_nan=True)
