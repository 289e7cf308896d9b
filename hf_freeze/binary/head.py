"""Move the threshold into the head's bias, for servers that can only take an argmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_freeze.binary.checkpoint import load_threshold, set_config_threshold
from hf_freeze.binary.result import ThresholdResult, as_result
from hf_freeze.errors import UnsupportedSetupError


def fold_threshold_into_head(model: nn.Module, threshold: float | ThresholdResult | None = None) -> str:
    """Shift the head's bias by the threshold, in place, so that argmax (one logit: > 0) decides as the threshold did.

    Returns the name of the bias. Explicit because of its price: every probability shifts with the bias, so scores are
    calibrated no more, and what was at the threshold now reads 0.5. Rows are labelled as before except where the margin
    is within rounding of the threshold. `threshold` defaults to the model's own; afterwards
    the model's `decision_threshold` is 0, so that it is not applied twice.

    Raises `UnsupportedSetupError` when the head is no single linear layer with a bias, as after PEFT: merge first.
    """
    if threshold is None:
        threshold = load_threshold(model)
    tuned = as_result(threshold)
    name, head = _output_layer(model)
    if head.bias is None:
        raise UnsupportedSetupError(
            f"{name} has no bias to move the threshold into, and an added one would not be loaded again. Serve with "
            "BinaryClassificationPipeline or predict_binary."
        )
    row = tuned.positive if head.out_features == 2 else 0
    sign = 1.0 if head.out_features == 2 or tuned.positive == 1 else -1.0
    with torch.no_grad():
        head.bias[row] -= sign * tuned.threshold
    set_config_threshold(model, ThresholdResult(threshold=0.0, positive=tuned.positive, head=tuned.head))
    return f"{name}.bias"


def _output_layer(model: nn.Module) -> tuple[str, nn.Linear]:
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
