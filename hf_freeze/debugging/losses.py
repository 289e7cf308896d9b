"""Which function the loss is, found by computing it again from the logits, and from its graph."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from hf_freeze.debugging.sample_check import Check, failed, ok, warning
from hf_freeze.errors import in_one_line
from hf_freeze.model_inputs.inspected_model import InspectedModel

_PROBABILITY_LOSS = "BinaryCrossEntropyBackward0"
_NODES_TO_READ = 40


@dataclass(frozen=True)
class LossCandidate:
    """A way to compute the loss from the logits. `fault` says what is wrong with a loss that is computed so."""

    kind: str
    value: float
    fault: str | None = None


@dataclass(frozen=True)
class LossFinding:
    """The loss, what was recomputed, and which candidate explains it."""

    value: float | None
    plain: LossCandidate | None
    explained: LossCandidate | None

    @property
    def kind(self) -> str | None:
        """What the loss is, where that is known."""
        return None if self.explained is None else self.explained.kind


def explain(inspected: InspectedModel, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> LossFinding:
    """Compute the loss again in every way that is usual for such logits and labels, and see which fits."""
    value = float(loss.detach())
    hints = _hints(loss)
    z, y = logits.detach().float(), labels.detach().to(logits.device)
    try:
        candidates = list(_candidates(inspected, z, y, hints))
    except (RuntimeError, ValueError, IndexError):
        candidates = []
    if candidates and (weighted := getattr(inspected.trainer, "weighted_loss", None)) is not None:
        candidates.append(LossCandidate(str(weighted), float(weighted.of(z, y).loss)))
    tolerance = (3e-2 if _is_half(inspected, logits) else 1e-3) * abs(value) + 1e-5
    fitting = [candidate for candidate in candidates if abs(candidate.value - value) <= tolerance]
    sound = [candidate for candidate in fitting if candidate.fault is None]
    options: list[LossCandidate] = sound or fitting
    # What is known to be in the loss comes before what equals it by chance, as class weights may on one row.
    explained = next((one for one in reversed(options) if " with " in one.kind), options[0] if options else None)
    return LossFinding(value, candidates[0] if candidates else None, explained)


def _is_half(inspected: InspectedModel, logits: torch.Tensor) -> bool:
    mixed = getattr(getattr(inspected.trainer, "accelerator", None), "mixed_precision", "no")
    half = any(p.is_floating_point() and p.element_size() == 2 for p in inspected.model.parameters())
    return logits.element_size() < 4 or half or mixed not in ("no", None)


def _hints(loss: torch.Tensor) -> dict[str, Any]:
    """Read from the graph of a loss which function of torch it is, and with what weights."""
    hints: dict[str, Any] = {}
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < _NODES_TO_READ:
        node, seen = waiting.pop(0), seen + 1
        if node is None:
            continue
        if node.name() == _PROBABILITY_LOSS:
            hints["probabilities"] = True
        for name in ("weight", "pos_weight"):
            kept = getattr(node, f"_saved_{name}", None) if "Loss" in node.name() or "Entropy" in node.name() else None
            if isinstance(kept, torch.Tensor):
                hints[name] = kept.detach().float()
        waiting += [following for following, _ in node.next_functions]
    return hints


def _candidates(
    inspected: InspectedModel, z: torch.Tensor, y: torch.Tensor, hints: dict[str, Any]
) -> Iterator[LossCandidate]:
    columns = 1 if z.ndim == 1 else z.shape[-1]
    if z.ndim == 3:
        yield from _of_tokens(inspected, z, y)
    elif columns == 1:
        yield from _of_one_logit(z, y, hints)
    elif y.numel() == columns and y.is_floating_point():
        yield LossCandidate("binary cross entropy", float(functional.binary_cross_entropy_with_logits(z, y.view_as(z))))
        yield LossCandidate("cross entropy", float(functional.cross_entropy(z, y.view_as(z))))
        yield LossCandidate("mean squared error", float(functional.mse_loss(z, y.view_as(z).float())))
    elif y.numel() == 1:
        yield from _of_classes(inspected, z.view(1, -1), y.long().view(1), hints)


def _of_classes(
    inspected: InspectedModel, z: torch.Tensor, y: torch.Tensor, hints: dict[str, Any]
) -> Iterator[LossCandidate]:
    plain = float(functional.cross_entropy(z, y))
    yield LossCandidate("cross entropy", plain)
    smoothing = _smoothing(inspected)
    if smoothing:
        smooth = float(functional.cross_entropy(z, y, label_smoothing=smoothing))
        yield LossCandidate(f"cross entropy with label smoothing {smoothing:g}", smooth)
    weight = hints.get("weight")
    if weight is not None and weight.numel() == z.shape[-1]:
        weight = weight.to(z.device)
        shown = [round(float(w), 4) for w in weight]
        weighted = float(functional.cross_entropy(z, y, weight=weight, reduction="sum"))
        yield LossCandidate(f"cross entropy with class weights {shown}", weighted)
        yield LossCandidate(f"cross entropy with class weights {shown}", plain)
    twice = float(functional.cross_entropy(z.softmax(-1), y))
    yield LossCandidate(
        "cross entropy of softmax(logits)", twice, "softmax is applied to the logits before cross entropy"
    )
    for other in range(z.shape[-1]) if z.shape[-1] <= 64 else ():
        if other != int(y):
            value = float(functional.cross_entropy(z, torch.full_like(y, other)))
            yield LossCandidate(
                f"cross entropy of class {other}", value, f"the loss is that of class {other}, the label is {int(y)}"
            )
    for parts in {getattr(getattr(inspected.trainer, "args", None), "gradient_accumulation_steps", 1)} - {1}:
        fault = f"the loss is divided by gradient_accumulation_steps={parts}, and the Trainer does so again"
        yield LossCandidate("cross entropy, divided", plain / parts, fault)


def _smoothing(inspected: InspectedModel) -> float:
    found = getattr(getattr(inspected.trainer, "args", None), "label_smoothing_factor", 0.0)
    return float(found or 0.0)


def _of_one_logit(z: torch.Tensor, y: torch.Tensor, hints: dict[str, Any]) -> Iterator[LossCandidate]:
    z, y = z.flatten(), y.flatten().float()
    if z.shape != y.shape:
        return
    if hints.get("probabilities"):
        clamped = z.clamp(0, 1)
        yield LossCandidate("binary cross entropy of probabilities", float(functional.binary_cross_entropy(clamped, y)))
    squared = LossCandidate("mean squared error", float(functional.mse_loss(z, y)))
    is_class = bool(((y == 0) | (y == 1)).all())
    if not is_class:
        yield squared
    binary = float(functional.binary_cross_entropy_with_logits(z, y))
    yield LossCandidate("binary cross entropy", binary, None if bool(((y >= 0) & (y <= 1)).all()) else _NO_PROBABILITY)
    if (weight := hints.get("pos_weight")) is not None:
        weighted = float(functional.binary_cross_entropy_with_logits(z, y, pos_weight=weight.to(z.device)))
        yield LossCandidate(f"binary cross entropy with pos_weight {float(weight.flatten()[0]):g}", weighted)
    yield squared
    yield LossCandidate("mean absolute error", float(functional.l1_loss(z, y)))
    twice = float(functional.binary_cross_entropy_with_logits(z.sigmoid(), y))
    yield LossCandidate(
        "binary cross entropy of sigmoid(logit)", twice, "sigmoid is applied to the logit before the loss"
    )


_NO_PROBABILITY = "binary cross entropy takes labels from 0 to 1"


def _of_tokens(inspected: InspectedModel, z: torch.Tensor, y: torch.Tensor) -> Iterator[LossCandidate]:
    if z.shape[:2] != y.shape:
        return
    flat = z.flatten(0, 1)
    smoothing = _smoothing(inspected)
    next_token = functional.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())
    per_token = functional.cross_entropy(flat, y.flatten())
    shifted = LossCandidate("cross entropy of the next token", float(next_token))
    aligned = LossCandidate("cross entropy per token", float(per_token))
    yield from (shifted, aligned) if "CausalLM" in type(inspected.task_model).__name__ else (aligned, shifted)
    if smoothing:
        yield LossCandidate(f"cross entropy with label smoothing {smoothing:g}", float("nan"))


def check_loss(inspected: InspectedModel, found: LossFinding, *, binary: bool, warned: tuple[str, ...]) -> Check:
    """Say what the loss is, and whether it follows from the logits and the label."""
    if broadcast := next((text for text in warned if "target size" in text), None):
        return failed(
            "loss", f"The loss broadcasts: {broadcast.splitlines()[0]:.150} Bring logits and labels to one shape."
        )
    value = found.value
    if value is None or not math.isfinite(value):
        return failed(
            "loss", f"The loss is {value}, though the logits are finite. Are all labels -100, or is it a log of 0?"
        )
    if found.explained is None:
        return _unexplained(inspected, value, found.plain)
    return _explained(value, found.explained, found.plain, binary=binary)


def _explained(value: float, explained: LossCandidate, plain: LossCandidate | None, *, binary: bool) -> Check:
    if explained.fault:
        return failed("loss", f"The loss, {value:.4g}, is wrong: {explained.fault}. Look at compute_loss or forward.")
    if explained.kind == "mean squared error" and binary:
        return warning(
            "loss",
            "The labels are 0 and 1 and the loss is the mean squared error on one logit: transformers trains "
            "regression when num_labels=1. Use num_labels=2, or problem_type='multi_label_classification'.",
        )
    note = "" if explained is plain or plain is None else f" ({plain.kind}: {plain.value:.4g})"
    return ok("loss", f"The loss, {value:.4g}, is the {explained.kind} of the logits{note}.")


def _unexplained(inspected: InspectedModel, value: float, plain: LossCandidate | None) -> Check:
    if plain is None:
        return ok("loss", f"The loss is {value:.4g}; for such outputs it is not recomputed.")
    times = f", {value / plain.value:.3g} times that" if plain.value else ""
    if inspected.own_loss or _adds_to_loss(inspected):
        return ok("loss", f"The loss is {value:.4g}, the {plain.kind} {plain.value:.4g}: a custom loss{times}.")
    if smoothed := _smoothing(inspected):
        return ok(
            "loss", f"The loss is {value:.4g} with label smoothing {smoothed:g}, the {plain.kind} {plain.value:.4g}."
        )
    return warning(
        "loss",
        f"The loss is {value:.4g}, the {plain.kind} of the logits {plain.value:.4g}{times}. Are the labels shifted, "
        "or is the loss computed from something else?",
    )


def _adds_to_loss(inspected: InspectedModel) -> bool:
    config = inspected.config
    adds = any(getattr(config, name, None) for name in ("router_aux_loss_coef", "output_router_logits"))
    return adds or not type(inspected.task_model).__name__.endswith(
        ("ForSequenceClassification", "ForImageClassification")
    )


def raises_in_loss(error: Exception) -> Check:
    """Say that the model runs, but its loss raises."""
    return failed(
        "loss",
        f"Without labels the model runs; with them it raised {in_one_line(error)}. "
        "Look at compute_loss or the loss in forward.",
    )


def no_loss(trainer: bool, found: Any) -> Check:
    """Say that no loss came back."""
    shape = f" (what came first has the shape {tuple(found.shape)})" if isinstance(found, torch.Tensor) else ""
    who = (
        "The Trainer takes the loss from output['loss'] or output[0]"
        if trainer
        else "A loss is output['loss'] or output[0]"
    )
    return failed(
        "loss", f"The model was given a label and returned no loss{shape}. {who}; return one, or override compute_loss."
    )


def is_scalar(loss: Any) -> bool:
    """Tell whether this is a loss: a tensor of one floating-point number."""
    return isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.is_floating_point()
