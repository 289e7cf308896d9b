"""The metrics as an `evaluate.Metric`, for code that collects its metrics that way. Needs no access to the Hub."""

from collections.abc import Callable
from typing import Any

import datasets
import evaluate


class BinaryClassificationMetric(evaluate.Metric):  # type: ignore[misc] # evaluate has no type stubs
    """Compute the metrics of `BinaryClassificationMetrics` from margins, or pairs of logits, and labels 0 and 1.

    Built by `BinaryClassificationMetrics.as_evaluate_metric()`, whose threshold it shares.
    """

    def __init__(self, metrics: Callable[[tuple[Any, Any]], dict[str, float]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._metrics = metrics

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Binary classification at a decision threshold.",
            citation="",
            inputs_description="predictions: margins, or pairs of logits. references: 0 and 1.",
            features=[
                datasets.Features({"predictions": prediction, "references": datasets.Value("int64")})
                for prediction in (datasets.Sequence(datasets.Value("float32")), datasets.Value("float32"))
            ],
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return self._metrics((predictions, references))
