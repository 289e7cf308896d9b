"""Apply a threshold: to logits, in a `transformers.pipeline`, or folded into the bias of the model's head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from transformers import TextClassificationPipeline

from hf_freeze.binary.labelled_rows import PositiveLabel
from hf_freeze.binary.margin import Head, binary_margin, is_batches, is_of_tokens, take_logits
from hf_freeze.binary.result import ThresholdResult, as_result, short, sigmoid
from hf_freeze.binary.saved_threshold import load_threshold, set_config_threshold
from hf_freeze.errors import FreezeError, UnsupportedSetupError


@dataclass(frozen=True, eq=False)
class BinaryPrediction:
    """The predictions for n rows, as torch tensors or numpy arrays like the logits that they were made from.

    Args:
        probability: (n,) float32, of the positive class: the sigmoid of the margin, or what a calibration and a
            prevalence made of it when the threshold was tuned. For display: a row may be labelled positive below 0.5.
        label: (n,) int64, the label ids that follow from margin and threshold.
    """

    probability: Any
    label: Any


def predict_binary(
    logits: Any,
    threshold: float | ThresholdResult | None = None,
    *,
    positive: int | None = None,
    head: Head = "auto",
) -> BinaryPrediction:
    """Return the probability and the label of every row, by the comparison that the threshold was tuned with.

    Args:
        logits: The model's outputs, in any form that `binary_margin` reads.
        threshold: A margin in logit units, or what `tune_threshold` or `load_threshold` returned. None is margin 0: the
            usual argmax, or probability 0.5.
        positive: Id of the positive class. By default that of the result, else 1.
        head: As in `binary_margin`. By default as the result was tuned: one tuned on probabilities reads probabilities.

    Returns:
        Torch tensors for a torch tensor, otherwise numpy arrays; (n, T) for logits of tokens. A row whose
        margin is NaN is labelled negative.

    Raises:
        FreezeError: For logits that are not binary, and a threshold that is not a finite number.

    >>> predict_binary([[0.0, 2.0], [1.5, 0.5]], threshold=-1.5).label
    array([1, 1])
    """
    tuned = as_result(0.0 if threshold is None else threshold)
    positive = tuned.positive if positive is None else positive
    if head == "auto" and tuned.head == "probability":
        head = "probability"
    margin = binary_margin(logits, positive=positive, head=head)
    if not is_batches(logits) and is_of_tokens(taken := take_logits(logits)):
        margin = margin.reshape(taken.shape[:2])
    log_odds = tuned.log_odds if positive == tuned.positive else as_result(0.0).log_odds
    is_positive = margin >= float(np.float32(tuned.threshold))
    if isinstance(margin, torch.Tensor):
        probability = torch.sigmoid(log_odds(margin))
        return BinaryPrediction(probability, (is_positive == bool(positive)).long())
    return BinaryPrediction(sigmoid(log_odds(margin)), (is_positive == bool(positive)).astype(np.int64))


class BinaryClassificationPipeline(TextClassificationPipeline):
    """Classify texts by margin and threshold, where the stock pipeline takes the largest probability.

    For `pipeline("text-classification", model=..., pipeline_class=BinaryClassificationPipeline)`. Each answer has the
    stock form, `{"label": ..., "score": ...}`; with `top_k=None` there are both labels, the predicted one first. The
    score is the probability of that label, so it may lie below 0.5.

    Args:
        threshold: A margin or a `ThresholdResult`; by default the model's own, `config.decision_threshold`. For a PEFT
            adapter give `load_threshold(folder)`, because a pipeline loads the base model with the config of that.
        labels: The two names (negative, positive) for a head of one logit; by default "LABEL_0" and "LABEL_1".
        **kwargs: As for `TextClassificationPipeline`, except `function_to_apply`.

    Raises:
        FreezeError: When there is no threshold, or the model has more than two labels.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call] # transformers does not annotate it
        PositiveLabel().with_names_from(self.model.config)  # refuses more than two labels
        if "threshold" not in self._postprocess_params:
            self._postprocess_params["threshold"] = load_threshold(self.model)

    def _sanitize_parameters(self, function_to_apply: Any = None, top_k: Any = "", **kwargs: Any) -> Any:
        if function_to_apply is not None:
            raise FreezeError(
                f"Leave out function_to_apply={function_to_apply!r}: the label follows from the margin, and the score "
                "is its probability."
            )
        threshold, labels = kwargs.pop("threshold", None), kwargs.pop("labels", None)
        preprocess, forward, postprocess = super()._sanitize_parameters(top_k=top_k, **kwargs)  # type: ignore[no-untyped-call]
        if threshold is not None:
            postprocess["threshold"] = as_result(threshold)
        if labels is not None:
            postprocess["labels"] = _two_names(labels)
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
        """Return the predicted label, or with `top_k` both, as dicts of label and score."""
        prediction = predict_binary(model_outputs["logits"], threshold, head=threshold.head)
        predicted, probability = int(prediction.label[0]), float(prediction.probability[0])
        names = labels or _label_names(self.model.config)
        both = [
            {"label": names[label], "score": probability if label == threshold.positive else 1.0 - probability}
            for label in (predicted, 1 - predicted)
        ]
        return both[0] if top_k == 1 and _legacy else both[:top_k]


def _two_names(labels: Any) -> tuple[str, str]:
    two = isinstance(labels, list | tuple) and len(labels) == 2 and labels[0] != labels[1]
    if not two or not all(isinstance(name, str) for name in labels):
        raise FreezeError(f"labels={short(labels)} must be two names, (negative, positive).")
    return labels[0], labels[1]


def _label_names(config: Any) -> tuple[str, str]:
    names = config.id2label
    if len(names) == 2:
        return names[0], names[1]
    only = names[0]
    return ("LABEL_0", "LABEL_1") if only == "LABEL_0" else (f"not {only}", only)


def fold_threshold_into_head(model: nn.Module, threshold: float | ThresholdResult | None = None) -> str:
    """Shift the bias of the head by the threshold, in place, for servers that only take an argmax (one logit: > 0).

    Rows get the same labels as before, except where the margin is within rounding of the threshold. The price: every
    probability shifts with the bias, so scores are no longer calibrated, and a row at the threshold now reads 0.5. The
    model's own `decision_threshold` becomes 0, so that it is not applied twice.

    Args:
        model: A model whose head is a single linear layer with a bias and one or two outputs.
        threshold: A margin or a `ThresholdResult`; by default the model's own.

    Returns:
        The name of the bias that was shifted.

    Raises:
        UnsupportedSetupError: For any other head. Merge a PEFT adapter first.
        FreezeError: When the threshold is left out and the model has none.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    >>> fold_threshold_into_head(model, 0.5)
    '1.bias'
    """
    if threshold is None:
        threshold = load_threshold(model)
    tuned = as_result(threshold)
    name, head = _output_layer(model)
    if head.bias is not None and (is_lazy(head.bias) or head.bias.is_meta):
        raise UnsupportedSetupError(f"{name or 'The head'} has no values yet. Load the weights first.")
    if head.bias is None:
        raise UnsupportedSetupError(
            f"{name} has no bias to move the threshold into, and an added one would not be loaded again. Serve with "
            "BinaryClassificationPipeline or predict_binary."
        )
    row = tuned.positive if head.out_features == 2 else 0
    sign = 1.0 if head.out_features == 2 or tuned.positive == 1 else -1.0
    shifted = head.bias.detach()[row] - sign * tuned.threshold
    if not shifted.isfinite():
        raise UnsupportedSetupError(f"The threshold {tuned.threshold:g} is too large for a bias of {head.bias.dtype}.")
    with torch.no_grad():
        head.bias[row] = shifted
    folded = ThresholdResult(threshold=0.0, positive=tuned.positive, head=tuned.head, prevalence=tuned.prevalence)
    set_config_threshold(model, folded)
    return f"{name}.bias" if name else "bias"


def _output_layer(model: Any) -> tuple[str, nn.Linear]:
    if not isinstance(model, nn.Module):
        raise UnsupportedSetupError(f"{short(model)} is not a torch module. Give the model itself.")
    backbone = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    inside = set(backbone.modules()) if isinstance(backbone, nn.Module) and backbone is not model else set()
    config: Any = getattr(model, "config", None)
    widths = (config.num_labels,) if getattr(config, "num_labels", None) in (1, 2) else (1, 2)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features in widths and module not in inside
    ]
    if len(found) != 1:
        raise UnsupportedSetupError(
            f"Expected one linear output layer with one or two features outside the backbone, found "
            f"{[name for name, _ in found] or 'none'}. Serve with BinaryClassificationPipeline or predict_binary."
        )
    return found[0]
