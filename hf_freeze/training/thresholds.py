"""Where the Trainer and the decision threshold meet: when it is tuned, when applied, whose checkpoint it belongs to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from hf_freeze.binary.saved_threshold import (
    find_threshold,
    set_config_threshold,
    threshold_of,
    threshold_saved_with_weights,
)
from hf_freeze.binary.served import logits_of, refuse_other_scores
from hf_freeze.binary.tuning_phase import TunedMetrics
from hf_freeze.errors import FreezeError
from hf_freeze.training.attributes import replaced

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ThresholdTrainerMixin(_Base):
    """Runs `compute_metrics=BinaryClassificationMetrics(...)` without a leak; leaves any other `compute_metrics` alone.

    Only `train()`'s own evaluations of the designated set tune, and only on the model's own logits. The threshold is
    saved with every checkpoint, and read back from the one that is resumed or that `load_best_model_at_end` loads.
    """

    model: Any  # the Trainer's own annotation admits None, which it never is after construction
    _evaluates_for_training = False
    _served: Sequence[Any] = ()

    @property
    def _threshold_metrics(self) -> TunedMetrics | None:
        metrics = self.compute_metrics
        return metrics if isinstance(metrics, TunedMetrics) else None

    @property
    def _sample_weight_column(self) -> str | None:
        return None if self._threshold_metrics is None else self._threshold_metrics.sample_weight

    def _gather_sample_weights(self) -> None:
        """Have the Trainer gather the weights with the labels, from all processes."""
        if self._sample_weight_column is not None and self._sample_weight_column not in self.label_names:
            self.label_names = [*self.label_names, self._sample_weight_column]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does; the model does not get to see the weights of the metrics."""
        return super().compute_loss(model, self._without_sample_weights(inputs), *args, **kwargs)

    def _without_sample_weights(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self._sample_weight_column not in inputs:
            return inputs
        return {name: value for name, value in inputs.items() if name != self._sample_weight_column}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after a check of the metrics against the model and the eval sets."""
        self._gather_sample_weights()
        if metrics := self._threshold_metrics:
            metrics.prepare(
                self.model,
                eval_sets=list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else None,
                own_loss=self.compute_loss_func is not None,
            )
            threshold_of(self.model)  # a broken one in the config is said before any work
        return super().train(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with replaced(self, _evaluates_for_training=True):
            return super()._evaluate(*args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate; a threshold is tuned only when `train()` evaluates its own eval set."""
        own = self._evaluates_for_training and (eval_dataset is None or isinstance(eval_dataset, str))
        with self._phase(metric_key_prefix, in_training=own):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **kwargs)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test", **kwargs: Any
    ) -> Any:
        """Predict; the threshold is applied, never tuned."""
        with self._phase(metric_key_prefix, in_training=False):
            output = super().predict(test_dataset, ignore_keys, metric_key_prefix, **kwargs)
        if self._threshold_metrics is not None and output.label_ids is None:
            self._threshold_metrics.warn_of_calls(output.predictions)
        return output

    @contextmanager
    def _phase(self, metric_key_prefix: str, *, in_training: bool) -> Iterator[None]:
        metrics = self._threshold_metrics
        if metrics is None:
            yield
            return
        metrics.read_names(self.model)
        self._gather_sample_weights()
        # A threshold that the model was saved with is that of its weights until the first step.
        if metrics.result is None and self.state.global_step == 0 and (saved := threshold_of(self.model)):
            metrics.use(saved)
        with metrics.evaluation(metric_key_prefix, in_training=in_training):
            yield

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does. Raises `FreezeError` for scores that are not the model's."""
        metrics = self._threshold_metrics
        if metrics is None:
            return super().evaluation_loop(*args, **kwargs)
        head, preprocess = metrics.head, self.preprocess_logits_for_metrics

        def checked(logits: Any, labels: Any) -> Any:
            served, self._served = [*self._served] or [deepcopy(logits)], ()
            given = logits if preprocess is None else preprocess(logits, labels)
            own = [metrics.comparable(logits) for logits in served]
            refuse_other_scores(metrics.comparable(given), own, head=head, preprocessed=preprocess is not None)
            return given

        with replaced(self, preprocess_logits_for_metrics=checked):
            return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Predict as the Trainer does, and keep the logits that the model itself gave."""
        if self._threshold_metrics is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        labelled = [name for name in self.label_names if inputs.get(name) is not None]
        if self._sample_weight_column is not None and len(labelled) < len(self.label_names):
            if labelled and labelled != [self._sample_weight_column]:
                raise FreezeError(
                    f"sample_weight={self._sample_weight_column!r}, but the rows have no such column. They have "
                    f"{', '.join(sorted(inputs))}."
                )
            inputs = self._without_sample_weights(inputs)
        with logits_of(model) as self._served:
            return super().prediction_step(model, inputs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the model, and the threshold with it."""
        metrics = self._threshold_metrics
        if metrics is None:
            super().save_model(output_dir, *args, **kwargs)
            return
        folder = output_dir if output_dir is not None else str(self.args.output_dir)
        with threshold_saved_with_weights(metrics.result, folder, model=self.model, should_save=self.args.should_save):
            super().save_model(output_dir, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *given: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *given)
        self._use_threshold_of(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None:
            self._use_threshold_of(self.state.best_model_checkpoint)

    def _use_threshold_of(self, folder: str) -> None:
        metrics = self._threshold_metrics
        if metrics is not None and not metrics.is_given:
            found = find_threshold(folder)
            metrics.use(found)
            set_config_threshold(self.model, found)
