"""Checks of the logits: finite, repeatable, moved by their inputs, logits at all, of a size that a new head has."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_freeze.debugging.passes import Pass, Runner, distance, noise, reads_labels
from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning
from hf_freeze.errors import in_one_line
from hf_freeze.model_inputs.inspected_model import InspectedModel

# What a graph may go through without changing values.
_TRANSPARENT = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "ToCopy", "Select", "Slice", "Alias", "Clone")
_SQUASHES = {"SigmoidBackward0": "sigmoid", "SoftmaxBackward0": "softmax"}
NEW_HEAD_EXCESS, ANY_HEAD_EXCESS = 1.5, 10.0


def no_logits(error: Exception | None) -> Check:
    """Say that the model did not run, or returned nothing to look at."""
    if error is None:
        return failed(
            "forward", "The model returned no floating-point tensor that could be logits. What does forward return?"
        )
    return failed("forward", f"The model raised {in_one_line(error)}")


def check_finite(runner: Runner, batch: Mapping[str, Any], logits: torch.Tensor) -> Check:
    """Look for NaN and infinity among the logits, and for where they begin."""
    if bool(torch.isfinite(logits).all()):
        return ok("logits_finite", "Every logit is finite.")
    with _first_overflow(runner.inspected.model) as places:
        runner.run(batch, score=False)
    place = f" They begin in {places[0]}." if places else ""
    half = any(p.dtype == torch.float16 for p in runner.inspected.model.parameters()) or logits.dtype == torch.float16
    cause = (
        "float16 ends at 65,504: use bfloat16 or float32."
        if half
        else "The weights are finite, so look for a division by zero, a log of zero or a row that is masked entirely."
    )
    count = int((~torch.isfinite(logits)).sum())
    return failed("logits_finite", f"{count} of {logits.numel()} logits are NaN or infinite.{place} {cause}")


@contextmanager
def _first_overflow(model: nn.Module) -> Iterator[list[str]]:
    places: list[str] = []

    def look(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, torch.Tensor) and first.is_floating_point() and not bool(first.isfinite().all()):
                places.append(path)

        return hook

    leaves = [(path, module) for path, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(look(path)) for path, module in leaves]
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def check_repeatable(one: torch.Tensor, other: torch.Tensor) -> Check:
    """Compare two passes of the same row in eval mode."""
    gap = distance(one, other)
    if gap <= noise(one):
        return ok("repeatable", "Two passes in eval mode give the same logits.")
    return failed(
        "repeatable",
        f"Two passes of the same row in eval mode differ by {gap:.3g}: something draws random numbers outside of "
        "train mode. Look for functional.dropout without training=self.training.",
    )


def check_sensitive(one: torch.Tensor, other: torch.Tensor) -> Check:
    """Tell whether the logits depend on the input at all."""
    gap = distance(one, other) if one.shape == other.shape else math.inf
    if gap > 2 * torch.finfo(one.dtype).eps * float(one.abs().max()) or (gap > 0 and one.element_size() < 4):
        return ok("sensitive", f"Changing the contents of the row changes the logits, by {gap:.3g}.")
    return failed(
        "sensitive",
        "Changing the contents of the row does not change the logits: the output is constant. Is the head's weight "
        "zero, an input overwritten, or every token masked?",
    )


def check_no_probabilities(logits: torch.Tensor, seen: list[torch.Tensor], *, loss_kind: str | None) -> Check:
    """Tell whether the model applies a sigmoid or softmax to what should be logits."""
    last_layer = squashed_by(logits) or _sums_to_one([logits, *seen])
    name: CheckName = "logits_not_probabilities"
    if last_layer is None:
        return ok(name, "The outputs are logits, not probabilities.")
    if loss_kind == "binary cross entropy of probabilities":
        return warning(
            name,
            f"The model ends in a {last_layer}, which its loss allows for, but thresholds and metrics do not. Return "
            'logits and use a loss "with logits", or say head="probability" to BinaryClassificationMetrics.',
        )
    return failed(
        name,
        f"The model ends in a {last_layer}: these are probabilities, where loss and metrics expect logits. Gradients "
        f"are squashed twice and learning is slow; remove the {last_layer}.",
    )


def squashed_by(logits: torch.Tensor | None) -> str | None:
    """Return what made the logits, where their graph shows that it was a sigmoid or a softmax."""
    node = None if logits is None else logits.grad_fn
    while node is not None and node.name().startswith(_TRANSPARENT):
        node = node.next_functions[0][0] if node.next_functions else None
    return None if node is None else _SQUASHES.get(node.name())


def _sums_to_one(seen: list[torch.Tensor]) -> str | None:
    if len(seen) < 2 or any(values.ndim != 2 or values.shape[-1] < 2 for values in seen):
        return None
    rows = torch.cat([values.detach().double().cpu() for values in seen if values.shape[-1] == seen[0].shape[-1]])
    tolerance = 4 * torch.finfo(seen[0].dtype).eps
    inside = bool((rows >= 0).all() and ((rows.sum(-1) - 1).abs() < tolerance).all())
    return "softmax" if inside else None


def check_initial_loss(inspected: InspectedModel, logits: torch.Tensor, *, is_classifier: bool) -> Check | None:
    """Compare the loss, averaged over all labels that the row could have, with ln(classes), which a new head gives."""
    step = getattr(getattr(inspected.trainer, "state", None), "global_step", 0)
    if not is_classifier or step or logits.ndim > 2 or not bool(torch.isfinite(logits).all()):
        return None
    row = logits.detach().float().flatten()
    classes = max(len(row), 2)
    if len(row) == 1:
        mean = float(nn.functional.softplus(row.abs()) - row.abs() / 2)
    else:
        mean = float(row.logsumexp(0) - row.mean())
    new = _head_is_new(inspected.model, len(row))
    excess = mean - math.log(classes)
    if excess > (NEW_HEAD_EXCESS if new else ANY_HEAD_EXCESS):
        kind = "a new head" if new else "any head before training"
        return warning(
            "initial_loss",
            f"Averaged over the {classes} labels, the loss is {mean:.3g}; {kind} should be near ln({classes}) = "
            f"{math.log(classes):.3g}. Its weights, or the features that it reads, are too large: look at "
            "initialisation and normalisation.",
        )
    about = "as expected of a new head" if new else "within what a trained head may give"
    return ok("initial_loss", f"Averaged over all labels {mean:.3g}, ln({classes}) = {math.log(classes):.3g}: {about}.")


def _head_is_new(model: nn.Module, columns: int) -> bool:
    """Tell a new head by its bias of zeros, which no trained head has."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == columns]
    bias = linear[-1].bias if linear else None
    return bias is not None and bias.numel() > 0 and not bool(bias.detach().any())


def check_neighbours(
    runner: Runner, batch: Mapping[str, Any], other: Mapping[str, Any], logits: torch.Tensor | None, gap: float
) -> Check | None:
    """Run the row together with another one, and tell whether the two influence each other."""
    both = {
        key: torch.cat([value, other[key]]) if isinstance(value, torch.Tensor) and value.ndim else value
        for key, value in batch.items()
    }
    made = runner.run(both, score=reads_labels(runner.inspected))
    if made.logits is None or logits is None or made.logits[:1].shape != logits.shape:
        return None
    moved = distance(logits, made.logits[:1])
    share = 1e-3 if logits.element_size() > 2 else 0.2
    if moved <= max(noise(logits), share * gap):
        return ok("neighbours", "Another row in the batch does not change the logits.")
    return failed(
        "neighbours",
        f"Another row in the batch changes the logits by {moved:.3g}: rows are mixed. Look for a mean or a norm over "
        "the batch, or a view with the wrong shape.",
    )


def check_train_mode(made: Pass, has_loss: bool) -> Check | None:
    """Judge a pass in train mode."""
    name: CheckName = "train_mode"
    error = made.error
    if error is not None and "more than 1 value per channel" in str(error):
        return None  # one row has no batch statistics
    if error is not None:
        return failed(name, f"In train mode the model raised {in_one_line(error)}")
    values = made.loss if has_loss else made.logits
    if isinstance(values, torch.Tensor) and not bool(torch.isfinite(values).all()):
        return failed(
            name,
            "In train mode the loss is NaN or infinite, in eval mode it is not. Does dropout act on a scale?",
        )
    return ok(name, "A pass in train mode is finite too.")


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
    """Tell whether the Trainer's metrics are those of a binary classifier with a threshold."""
    metrics = getattr(inspected.trainer, "compute_metrics", None)
    return hasattr(metrics, "threshold") and hasattr(metrics, "search")
