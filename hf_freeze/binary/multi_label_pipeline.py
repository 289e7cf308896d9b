"""Serve a multi-label model by its own thresholds in a `transformers.pipeline`."""

from typing import Any

from transformers import Pipeline, TextClassificationPipeline

from hf_freeze.binary.label_thresholds import LabelThresholds, predict_multi_label
from hf_freeze.binary.saved_threshold import load_label_thresholds
from hf_freeze.errors import FreezeError


class MultiLabelPipeline(TextClassificationPipeline):
    """Give each text the labels whose logits reach their thresholds, where the stock pipeline gives the likeliest one.

    For `pipeline("text-classification", model=..., pipeline_class=MultiLabelPipeline)`. The answer to a text is a list,
    empty where it has no label, of `{"label": ..., "score": ...}`, the likeliest first. The score is the label's
    probability, so it may lie below 0.5.

    Args:
        thresholds: `LabelThresholds`, or margins by name; by default the model's own, `config.decision_thresholds`. For
            a PEFT adapter give `load_label_thresholds(folder)`.
        **kwargs: As for `TextClassificationPipeline`, except `function_to_apply` and `top_k`.

    Raises:
        FreezeError: When there are no thresholds, or they are of another number of labels than the model has.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call] # transformers does not annotate it
        if "thresholds" not in self._postprocess_params:
            self._postprocess_params["thresholds"] = load_label_thresholds(self.model)
        self._check(self._postprocess_params["thresholds"])

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a list of labels for a text, and a list of such lists for several."""
        return Pipeline.__call__(self, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _check(self, thresholds: LabelThresholds) -> None:
        if len(thresholds.by_label) != self.model.config.num_labels:
            raise FreezeError(
                f"The model has {self.model.config.num_labels} labels, the thresholds {thresholds.labels}."
            )

    def _sanitize_parameters(self, function_to_apply: Any = None, top_k: Any = "", **kwargs: Any) -> Any:
        for name, given in (("function_to_apply", function_to_apply), ("top_k", top_k)):
            if given not in (None, ""):
                raise FreezeError(f"Leave out {name}=: which labels a text has follows from their thresholds.")
        thresholds = kwargs.pop("thresholds", None)
        preprocess, forward, postprocess = super()._sanitize_parameters(top_k="", **kwargs)  # type: ignore[no-untyped-call]
        if thresholds is not None:
            given = thresholds if isinstance(thresholds, LabelThresholds) else LabelThresholds(thresholds)
            self._check(given)
            postprocess["thresholds"] = given
        return preprocess, forward, postprocess

    def postprocess(self, model_outputs: Any, *, thresholds: LabelThresholds, **_: Any) -> Any:  # type: ignore[override]
        """Return the labels that the text has, as dicts of label and score."""
        predicted = predict_multi_label(model_outputs["logits"], thresholds)
        found = zip(predicted.names, predicted.probability[0].tolist(), predicted.label[0].tolist(), strict=True)
        return sorted(
            ({"label": name, "score": score} for name, score, has_label in found if has_label),
            key=lambda answer: -answer["score"],
        )
