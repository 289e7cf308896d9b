"""What the logits of a model are for."""

from __future__ import annotations

import torch

from hf_freeze.model_inputs.inspected_model import InspectedModel


def kind_of(inspected: InspectedModel, logits: torch.Tensor, labels: torch.Tensor | None, loss_kind: str | None) -> str:
    """Tell what the logits are for: binary, classes, several labels, regression or tokens."""
    if logits.ndim > 2:
        return "tokens"
    columns = 1 if logits.ndim == 1 and len(logits) == 1 else logits.shape[-1]
    problem = getattr(inspected.config, "problem_type", None)
    several = labels is not None and labels.is_floating_point() and labels.numel() == columns > 1
    if columns > 1 and (several or problem == "multi_label_classification"):
        return "several labels"
    if columns > 1:
        return ("binary" if columns == 2 else "classes") if problem != "regression" else "values"
    if (loss_kind or "").startswith("binary cross entropy") or inspected.threshold is not None or is_binary(inspected):
        return "binary"
    return "regression"


def is_binary(inspected: InspectedModel) -> bool:
    """Whether the Trainer's metrics are those of a binary classifier with a threshold."""
    metrics = getattr(inspected.trainer, "compute_metrics", None)
    return hasattr(metrics, "threshold") and hasattr(metrics, "search")
