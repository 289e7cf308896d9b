"""Binary classification as `compute_metrics=` of any Trainer, with a threshold tuned on validation data only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_freeze.binary import metric_values
from hf_freeze.binary.calibration import Calibrate
from hf_freeze.binary.counts import ScoreCounts, count_scores
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.labelled_rows import EvaluatedRows, PositiveLabel, join_rows, labels_and_weights, read_rows
from hf_freeze.binary.margin import Head, as_numpy, is_of_tokens, read_margin, refuse_probabilities, take_logits
from hf_freeze.binary.metric_values import MetricOfCounts, metrics_at
from hf_freeze.binary.prevalence import calls_far_from_tuned, labels_far_from_tuned
from hf_freeze.binary.result import ThresholdResult, as_result, reasons_to_doubt, short
from hf_freeze.binary.risk_control import refuse_row_weights
from hf_freeze.binary.search import Select, ThresholdError, ThresholdSearch
from hf_freeze.binary.tuning_phase import TunedMetrics
from hf_freeze.errors import FreezeError


class BinaryClassificationMetrics(TunedMetrics):
    """Compute the metrics of a binary classifier at its decision threshold; tune that threshold in validation.

    Pass an instance as `compute_metrics=`. Every value is a finite float, the same on every process. Where an
    evaluation cannot be used for tuning, a `ThresholdWarning` says so (once of each kind), and the threshold stays what
    it was, at first margin 0.

    Under a `FreezeTrainer`, only `train()`'s own evaluations of the `tune_on` set tune. A plain `Trainer` does not say
    which set it evaluates or why, so there every call tunes until `freeze()`: call it before the test set is evaluated.

    Reported: f1, precision, recall, specificity, accuracy, balanced_accuracy, mcc, tp, fp, fn, tn (at the threshold);
    auroc, average_precision, brier, expected_calibration_error; f1_at_half (at margin 0); threshold,
    threshold_probability; n_pos, n_neg, n_ignored, n_nonfinite; objective (0 where it has no value). An evaluation that
    tunes also reports f1_oob and objective_oob, the values to expect on fresh rows. For `metric_for_best_model`,
    average_precision is the safest choice: the best of many tuned values is partly luck.

    Args:
        objective, beta, costs, min_precision, min_recall, max_fpr, confidence, at_prevalence, calibrate, select,
            n_boot, seed, head: As in `tune_threshold`. With `at_prevalence` everything that is reported is as on data
            with that share of positives, tuned or not.
        positive: The positive class, by id or by name (names from `id2label`, or from the model's config).
        threshold: "tune", or a margin or `ThresholdResult` that is applied and never changed.
        tune_on: The eval set to tune on when there are several, by its key in `eval_dataset={...}`.
        sample_weight: The column with a weight per row, given as the second of two label columns:
            `label_names=["labels", "weight"]`. A `FreezeTrainer` adds the column itself, and keeps it from the model.
        extra: Metrics of the `evaluate` library, or functions of `predictions=` and `references=` that return a dict,
            computed from the labels at the threshold, 1 being the positive class, without any weights.
        id2label: Names of the classes 0 and 1, for labels that are names.

    Raises:
        FreezeError: For arguments that contradict each other, and in an evaluation for logits or labels that are not
            binary.

    >>> metrics = BinaryClassificationMetrics("mcc", n_boot=0)
    >>> margins, labels = [float(i) for i in range(200)], [0] * 120 + [1] * 80
    >>> reported = metrics((margins, labels))
    >>> reported["threshold"], reported["mcc"], round(reported["f1_at_half"], 2)
    (119.5, 1.0, 0.57)
    """

    def __init__(  # noqa: PLR0913 - one declaration; all but the objective are keywords
        self,
        objective: str | MetricOfCounts = "f1",
        *,
        positive: int | str = 1,
        threshold: str | float | ThresholdResult = "tune",
        tune_on: str = "eval",
        sample_weight: str | None = None,
        extra: Sequence[Any] = (),
        id2label: Mapping[int, str] | None = None,
        head: Head = "auto",
        beta: float = 1.0,
        costs: Mapping[str, float] | None = None,
        min_precision: float | None = None,
        min_recall: float | None = None,
        max_fpr: float | None = None,
        confidence: float | None = None,
        at_prevalence: float | None = None,
        calibrate: Calibrate | None = None,
        select: Select = "exact",
        n_boot: int = 200,
        seed: int = 0,
    ) -> None:
        criterion = Criterion(
            objective=objective,
            beta=beta,
            costs=costs,
            min_precision=min_precision,
            min_recall=min_recall,
            max_fpr=max_fpr,
            confidence=confidence,
        )
        search = ThresholdSearch(
            criterion=criterion,
            at_prevalence=at_prevalence,
            calibrate=calibrate,
            select=select,
            n_boot=n_boot,
            seed=seed,
        )
        super().__init__(search, tune_on=tune_on, head=head)
        self.extra = metric_values.check_extra(extra)
        self._label = PositiveLabel(positive, id2label)
        self.sample_weight = _checked_column(sample_weight)
        if sample_weight is not None:
            refuse_row_weights(criterion)
        self._threshold: float | ThresholdResult | None = None
        self._start_with(threshold, argument="threshold", kinds="a margin, or a ThresholdResult")

    @property
    def threshold(self) -> float:
        """The margin from which on a row is positive: tuned, given, or 0."""
        if isinstance(self._threshold, ThresholdResult):
            return self._threshold.threshold
        return self._threshold or 0.0

    @property
    def result(self) -> ThresholdResult | None:
        """The threshold in use and how it was found; None as long as nothing was tuned or given."""
        if isinstance(self._threshold, float):
            return ThresholdResult(threshold=self._threshold, positive=self._label.id, head=self._known_head)
        return self._threshold

    def use(self, threshold: float | ThresholdResult | None) -> None:
        """Replace the threshold in use, as after loading a checkpoint; None forgets it. Tuning goes on as before.

        Raises `FreezeError` for a result that was tuned with the other class as the positive one.
        """
        if isinstance(threshold, ThresholdResult):
            self._label.check(threshold)
            if threshold.head == "probability" and self._known_head == "logits":
                raise FreezeError('The threshold was tuned on probabilities. Say head="probability" here as well.')
            if threshold.head != self._known_head:
                threshold = replace(threshold, head=self._known_head)
        elif threshold is not None:
            threshold = float(np.float32(as_result(threshold).threshold))
        self._threshold = threshold

    def read_names(self, model: Any) -> None:
        """Take the label names from the model's config. Raises `FreezeError` for a head that is not binary."""
        self._label = self._label.with_names_from(getattr(model, "config", None))
        if isinstance(self._threshold, ThresholdResult):
            self._label.check(self._threshold)

    def as_evaluate_metric(self) -> Any:
        """Return this as an `evaluate.Metric`, which works with `evaluate.combine` and offline.

        Its predictions are margins or pairs of logits, its references 0 and 1. It shares this object's threshold.
        """
        from hf_freeze.binary.evaluate_metric import BinaryClassificationMetric  # noqa: PLC0415 - evaluate loads slowly

        return BinaryClassificationMetric(self)

    def _read(self, logits: Any, labels: Any) -> EvaluatedRows:
        labels, weight = labels_and_weights(labels, self.sample_weight)
        return read_rows(
            logits, labels, weight, positive=self._label.id, head=self._head, label2id=self._label.label2id
        )

    def _join(self, batches: Sequence[EvaluatedRows]) -> EvaluatedRows:
        return join_rows(batches)

    def _warn_of_regression(self, config: Any) -> None:
        if text := _trains_as_regression(config):
            self._warn({"regression": text})

    def warn_of_calls(self, logits: Any) -> None:
        """Warn when far more or fewer of these rows, which have no labels, are called positive than was expected."""
        if self.result is not None and not is_of_tokens(take_logits(logits)):  # padding is like any token there
            margin = as_numpy(read_margin(logits, positive=self._label.id, head=self._head)[0])
            if text := calls_far_from_tuned(self.result, margin):
                self._warn({"calls": text})

    def _metrics_of(self, rows: EvaluatedRows) -> dict[str, float]:
        refuse_probabilities(rows.ranges, head=self._head)
        if rows.n_nan:
            text = f"{rows.n_nan} of {len(rows.margin)} scores are NaN: every metric is reported as 0. Did it diverge?"
            self._warn({"nonfinite": text})
            return self._zeros(rows) | self._about(rows)
        counts = count_scores(rows.margin, rows.positive, rows.weight)
        outcome = self._tune(counts, rows.n_ignored) if self.tunes else None
        if outcome is None and self.search.at_prevalence is None and self.result is not None:
            far = labels_far_from_tuned(self.result, counts)
            self._warn({} if far is None else {"prevalence": far})
        counts = counts.at_prevalence(self.search.at_prevalence)
        values = self._of_scores(counts, tuned=outcome is not None and outcome is self._threshold)
        values |= metrics_at(self.threshold, counts)
        values["f1_at_half"] = metrics_at(0.0, counts)["f1"]
        values |= self._objective_values(outcome, values) | self._about(rows)
        hidden = metric_values.recall_below_accuracy(
            accuracy=values["accuracy"], recall=values["recall"], n_pos=rows.n_pos
        )
        if hidden:
            self._warn({"low_recall": hidden})
        return values | self._extra_metrics(rows, values)

    def _of_scores(self, counts: ScoreCounts, *, tuned: bool) -> dict[str, float]:
        """Return the metrics of the scores; of probabilities as they are served, or out of bag if they were fitted."""
        served = self.result or as_result(0.0)
        values = metric_values.metrics_of_scores(counts, slope=served.slope, intercept=served.intercept)
        if self.search.calibrate is None:
            return values
        own = metric_values.metrics_of_scores(counts)
        before = {f"{name}_uncalibrated": own[name] for name in ("brier", "expected_calibration_error")}
        return values | before | (dict(served.calibration) if tuned else {})

    def _tune(self, counts: ScoreCounts, n_ignored: int) -> ThresholdResult | ThresholdError:
        """Tune, and adopt the threshold unless all scores are the same; return it, or why there is none."""
        try:
            result = self.search.run(counts)
        except ThresholdError as error:
            self._warn({error.status: f"{error} The threshold stays {self.threshold:.6g}."})
            return error
        result = replace(result, positive=self._label.id, head=self._known_head, n_ignored=n_ignored)
        self._warn(reasons_to_doubt(result))
        if result.status != "constant":
            self._threshold = result
        return result

    def _about(self, rows: EvaluatedRows) -> dict[str, float]:
        return {
            "threshold": self.threshold,
            "threshold_probability": (self.result or as_result(0.0)).probability,
            "n_pos": float(rows.n_pos),
            "n_neg": float(rows.n_neg),
            "n_ignored": float(rows.n_ignored),
            "n_nonfinite": float(rows.n_nan),
        }

    def _zeros(self, rows: EvaluatedRows) -> dict[str, float]:
        """Return the usual metrics, each at its worst value, for scores that are NaN."""
        values = self._worst_values(rows.n_pos, rows.n_neg)
        if self.search.calibrate is not None:
            values |= {"brier_uncalibrated": 0.0, "expected_calibration_error_uncalibrated": 0.0}
        return values | dict.fromkeys(self._extra_metrics(rows, values | self._about(rows)), 0.0)

    def _extra_metrics(self, rows: EvaluatedRows, values: dict[str, float]) -> dict[str, float]:
        if not self.extra or not len(rows.margin):
            return {}
        predicted = rows.margin >= np.float32(self.threshold)
        found, left_out = metric_values.extra_metrics(self.extra, predicted, rows.positive, taken=values)
        if left_out:
            self._warn({"extra": f"Extra metrics {left_out} are left out, because they are not single numbers."})
        return found


def _trains_as_regression(config: Any) -> str | None:
    """Return a warning when a head of one output will be trained with the squared error."""
    if getattr(config, "num_labels", None) != 1 or getattr(config, "problem_type", None) not in (None, "regression"):
        return None
    return (
        "num_labels=1 without a problem_type trains as regression, with the squared error, so the output is not a "
        'logit and its sigmoid not a probability. Use num_labels=2, or problem_type="multi_label_classification" with '
        "float labels of shape (n, 1)."
    )


def _checked_column(sample_weight: Any) -> str | None:
    if not isinstance(sample_weight, str | None) or sample_weight in ("", "label", "labels"):
        raise FreezeError(
            f"sample_weight={short(sample_weight)} must be the name of a column of the eval set, other than that of "
            "the labels."
        )
    return sample_weight
