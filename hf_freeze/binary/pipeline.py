"""`transformers.pipeline` with the decision threshold: `pipeline(..., pipeline_class=BinaryClassificationPipeline)`."""

from __future__ import annotations

from typing import Any

from transformers import TextClassificationPipeline

from hf_freeze.binary.checkpoint import load_threshold
from hf_freeze.binary.inference import predict_binary
from hf_freeze.binary.labels import PositiveLabel
from hf_freeze.binary.result import ThresholdResult, as_result
from hf_freeze.errors import FreezeError


class BinaryClassificationPipeline(TextClassificationPipeline):
    """Classify texts by the margin and its threshold, where the stock pipeline takes the largest probability.

    The threshold is the model's own (`config.decision_threshold`), unless `threshold=` gives a margin or a
    `ThresholdResult`. For a PEFT adapter give `threshold=load_threshold(folder)`: a pipeline loads the base model with
    its config, and forgets the folder of the adapter. Raises `FreezeError` when there is neither.

    Output as of "text-classification": `{"label": ..., "score": ...}`, with `top_k=None` both labels, the one decided
    for first. The score is the probability of that label, so it may lie below 0.5. Heads of one logit are labelled by
    the two names in `labels=(negative, positive)`, or else "LABEL_0" and "LABEL_1".
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call] # transformers does not annotate it
        PositiveLabel().with_names_from(self.model.config)  # refuses more than two labels
        if "threshold" not in self._postprocess_params:
            self._postprocess_params["threshold"] = load_threshold(self.model)

    def _sanitize_parameters(self, function_to_apply: Any = None, top_k: Any = "", **kwargs: Any) -> Any:
        if function_to_apply is not None:
            raise FreezeError(
                f"function_to_apply={function_to_apply!r} has no place here: the label is decided on the margin, and "
                "the score is its probability."
            )
        threshold, labels = kwargs.pop("threshold", None), kwargs.pop("labels", None)
        preprocess, forward, postprocess = super()._sanitize_parameters(top_k=top_k, **kwargs)  # type: ignore[no-untyped-call]
        if threshold is not None:
            postprocess["threshold"] = as_result(threshold)
        if labels is not None:
            postprocess["labels"] = labels
        return preprocess, forward, postprocess

    def postprocess(  # type: ignore[override] # the base class takes **kwargs, as its own subclasses do not
        self,
        model_outputs: Any,
        function_to_apply: Any = None,
        top_k: int | None = 1,
        _legacy: bool = True,
        *,
        threshold: ThresholdResult,
        labels: tuple[str, str] | None = None,
    ) -> Any:
        """Return the label decided for, or with `top_k` both, as dicts of label and score."""
        prediction = predict_binary(model_outputs["logits"], threshold, head=threshold.head)
        decided, probability = int(prediction.label[0]), float(prediction.probability[0])
        names = labels or _label_names(self.model.config)
        both = [
            {"label": names[label], "score": probability if label == threshold.positive else 1.0 - probability}
            for label in (decided, 1 - decided)
        ]
        return both[0] if top_k == 1 and _legacy else both[:top_k]


def _label_names(config: Any) -> tuple[str, str]:
    names = config.id2label
    if len(names) == 2:
        return names[0], names[1]
    only = names[0]
    return ("LABEL_0", "LABEL_1") if only == "LABEL_0" else (f"not {only}", only)
