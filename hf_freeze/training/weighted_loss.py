"""The loss in which labels weigh differently, row by row, so that any cut into micro-batches adds up to one window.

| weights | loss of a window |
|---|---|
| class weights | sum of w[y] * CE over sum of w[y], as torch's `cross_entropy(weight=..., reduction="mean")` |
| pos_weight | mean of the binary cross entropies, as torch's `binary_cross_entropy_with_logits(pos_weight=...)` |
| focal_gamma | mean of alpha[y] * (1 - p)^gamma * CE (Lin et al. 2017, eq. 5), p being the probability of the label |

Labels of -100 are left out of sums and counts. alpha are the class weights, or 1 and pos_weight.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.training.class_weights import LossWeights

SHIFTED = (
    "Weights shift the probabilities: a label that weighs more is called more often than it occurs. A tuned threshold "
    'takes that into account; BinaryClassificationMetrics(calibrate="platt") corrects the probabilities too.'
)


class RowLosses(NamedTuple):
    """Of each row: the weighted losses of its labels and their weights, the plain losses and their number."""

    weighted: torch.Tensor
    weight: torch.Tensor
    plain: torch.Tensor
    number: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        """The weighted loss of these rows."""
        return divided(self.weighted.sum(), self.weight.sum())

    @property
    def plain_loss(self) -> torch.Tensor:
        """The loss of these rows without weights."""
        return divided(self.plain.sum(), self.number.sum())

    def detached(self) -> "RowLosses":
        """Return the same values without their graph."""
        return RowLosses(*(column.detach() for column in self))


class WeightedLoss:
    """A `compute_loss_func` of the Trainer.

    `last` are the losses of the rows that it was last called with, and `last_shape` is the shape of their logits.
    """

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights
        self.last: RowLosses | None = None
        self.last_shape = torch.Size()

    def __str__(self) -> str:
        kind = "binary cross entropy" if self.weights.positives is not None else "cross entropy"
        return f"{kind} with {self.weights}"

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of a micro-batch; `num_items_in_batch` is `weight_of` the labels of the whole window."""
        logits = logits_in(outputs)
        rows = self.of(logits, labels)
        self.last, self.last_shape = rows.detached(), logits.shape
        if num_items_in_batch is None:
            return rows.loss
        return divided(rows.weighted.sum(), torch.as_tensor(num_items_in_batch))

    def weight_of(self, labels: torch.Tensor) -> torch.Tensor:
        """Return what the loss of these labels is divided by: the sum of their weights, or their number."""
        kept = labels != IGNORED_LABEL
        if self.weights.classes is None or self.weights.gamma is not None:
            return kept.sum().float()
        weights = torch.tensor(self.weights.classes, device=labels.device)
        known = labels.long().clamp(0, len(weights) - 1)  # the loss itself says which label is out of range
        return (weights[known] * kept).sum()

    def of(self, logits: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        """Return the losses of each row.

        Args:
            logits: (B, C) or (B, T, C) under class ids; (B,), (B, 1) or (B, C) under labels that are yes or no.
            labels: (B,), (B, 1) or (B, T) class ids; or as many as there are logits, from 0 to 1.

        Raises:
            UnsupportedSetupError: For logits and labels of other shapes, or that the weights are not for.
        """
        logits = logits.float() if logits.element_size() < 4 else logits
        columns = 1 if logits.ndim == 1 else logits.shape[-1]
        labels = labels.to(logits.device)
        if columns == 1 and labels.numel() == logits.numel():
            found = self._of_yes_or_no(logits.reshape(-1, 1), labels.reshape(-1, 1))
        elif logits.ndim == 2 and labels.shape == logits.shape:
            found = self._of_yes_or_no(logits, labels)
        elif columns > 1 and labels.numel() * columns == logits.numel() and not labels.is_floating_point():
            found = self._of_classes(logits.reshape(-1, columns), labels.reshape(-1).long())
        else:
            raise UnsupportedSetupError(
                f"The loss cannot be weighted ({self.weights}): the model gives logits of shape {tuple(logits.shape)} "
                f"under {labels.dtype} labels of shape {tuple(labels.shape)}. It takes (B, C) or (B, T, C) logits with "
                "one class id per row or token, or one logit per label that is 0 or 1."
            )
        return RowLosses(*(column.reshape(len(logits), -1).sum(1) for column in found))

    def _of_classes(self, logits: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        weights, classes = self.weights, logits.shape[-1]
        if weights.positives is not None:
            raise UnsupportedSetupError(
                f"{weights} is for one logit or for several labels, and the labels are ids of {classes} classes. Give "
                "class_weights= instead."
            )
        if weights.classes is not None and len(weights.classes) != classes:
            raise UnsupportedSetupError(f"There are {len(weights.classes)} class weights, but {classes} logits.")
        is_first = self.last is None
        if is_first or labels.device.type == "cpu":  # a look waits for the device, whose kernel asserts the same
            _refuse_unknown(labels, classes)
        plain = functional.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
        number = (labels != IGNORED_LABEL).to(plain)
        weight = number
        if weights.classes is not None:
            weight = logits.new_tensor(weights.classes)[labels.clamp(min=0)] * number
        if weights.gamma is None:
            return RowLosses(weight * plain, weight, plain, number)
        return RowLosses(weight * plain * _power(-torch.expm1(-plain), weights.gamma), number, plain, number)

    def _of_yes_or_no(self, logits: torch.Tensor, labels: torch.Tensor) -> RowLosses:
        weights = self.weights
        if weights.classes is not None:
            raise UnsupportedSetupError(
                f"{weights} is for ids of classes, and each label is yes or no. Give pos_weight= instead."
            )
        positives = weights.positives or (1.0,)
        if len(positives) not in (1, logits.shape[1]):
            raise UnsupportedSetupError(f"There are {len(positives)} weights of labels, and {logits.shape[1]} logits.")
        kept = labels != IGNORED_LABEL
        y = labels.to(logits).where(kept, 0.0)
        if not bool(((y >= 0) & (y <= 1)).all()):
            raise UnsupportedSetupError(
                f"Binary cross entropy takes labels from 0 to 1, and there is {float(y[(y < 0) | (y > 1)][0]):g} among "
                "them. For regression leave pos_weight and focal_gamma out."
            )
        number = kept.to(logits)
        plain = functional.binary_cross_entropy_with_logits(logits, y, reduction="none") * number
        alpha = logits.new_tensor(positives)
        weighted = functional.binary_cross_entropy_with_logits(logits, y, pos_weight=alpha, reduction="none") * number
        if weights.gamma is not None:
            p = torch.sigmoid(logits)
            weighted = weighted * _power(p * (1 - y) + torch.sigmoid(-logits) * y, weights.gamma)
        return RowLosses(weighted, number, plain, number)


def _refuse_unknown(labels: torch.Tensor, classes: int) -> None:
    unknown = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= classes))]
    if unknown.numel():
        raise UnsupportedSetupError(
            f"A batch has the label {int(unknown[0])}, and the model has {classes} classes (0 to {classes - 1}). Load "
            f"it with num_labels= the number of classes; {IGNORED_LABEL} leaves a row out."
        )


def logits_in(outputs: Any) -> torch.Tensor:
    """Pick the logits out of what a model returned without labels: a mapping, a tuple or a tensor."""
    found = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    found = found[0] if isinstance(found, tuple | list) and found else found
    if isinstance(found, torch.Tensor):
        return found
    raise UnsupportedSetupError(
        f"The loss cannot be weighted: what the model returned has no logits ({type(outputs).__name__}"
        + (f" of {', '.join(map(str, outputs))})." if isinstance(outputs, Mapping) else ").")
    )


def divided(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Divide; where all weights are 0, so is the loss."""
    weight = weight.to(total)
    return total / weight.clamp_min(torch.finfo(total.dtype).tiny)


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    """Raise to a power whose derivative at 0 is finite, below an exponent of 1 too."""
    return base.clamp_min(torch.finfo(base.dtype).tiny) ** exponent
