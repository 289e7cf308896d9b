"""Weights of classes in the loss, held against the labels of a model and of its training set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_freeze.errors import PlanError, UnsupportedSetupError
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.given_weights import BALANCED, read_gamma, read_weights
from hf_freeze.training.label_counts import count_classes


@dataclass(frozen=True)
class LossWeights:
    """The weight of each label in the loss, by its number.

    Attributes:
        classes: The weight of each class.
        positives: The weight of a positive label: one number for all labels, or one for each.
        gamma: The exponent of the focal loss.
        names: What the labels are called, to say it in messages and in the model card.
    """

    classes: tuple[float, ...] | None = None
    positives: tuple[float, ...] | None = None
    gamma: float | None = None
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [] if self.classes is None else [f"class weights {self._shown(self.classes)}"]
        said += [] if self.positives is None else [f"pos_weight {self._shown(self.positives)}"]
        said += [] if self.gamma is None else [f"focal_gamma {self.gamma:g}"]
        return " and ".join(said)

    def _shown(self, weights: Sequence[float]) -> str:
        if len(weights) == 1:
            return f"{weights[0]:.4g}"
        names = self.names if len(self.names) == len(weights) else [str(i) for i in range(len(weights))]
        listed = [f"{name}: {weight:.4g}" for name, weight in zip(names, weights, strict=True)]
        return f"{{{', '.join(listed[:8])}{', ...' if len(listed) > 8 else ''}}}"


def resolve_weights(given: FreezeArguments, model: nn.Module, *, counted: Sequence[float] | None) -> LossWeights | None:
    """Check declared weights against the labels of a model; None where none are declared.

    `counted` are the weights that "balanced" stands for; None while the labels have not been counted.

    Raises:
        PlanError: For an unknown label, weights in the wrong number or without effect, and arguments that contradict
            each other or the head.
    """
    if not _declares_weights(given):
        return None
    config = getattr(unwrap(model), "config", None)
    _refuse_unfit(given, config)
    names = _label_names(model)
    declared, positive = (
        read_weights(given.class_weights, "class_weights"),
        read_weights(given.pos_weight, "pos_weight"),
    )
    classes = counted if declared == BALANCED else _by_label(declared, "class_weights", names)
    positives = (positive,) if isinstance(positive, float) else _by_label(positive, "pos_weight", names)
    if classes is not None and sum(weight > 0 for weight in classes) < 2:
        raise PlanError(
            f"class_weights={given.class_weights!r} leaves {sum(weight > 0 for weight in classes)} of {len(classes)} "
            "classes a weight above 0: the model would learn to predict that class for everything. Give at least two "
            "classes a weight."
        )
    return LossWeights(
        None if classes is None else tuple(map(float, classes)),
        None if positives is None else tuple(map(float, positives)),
        read_gamma(given.focal_gamma),
        tuple(names or ()),
    )


def _declares_weights(given: FreezeArguments) -> bool:
    """Tell whether the arguments ask for another loss than the plain one."""
    return any(value is not None for value in (given.class_weights, given.pos_weight, given.focal_gamma))


def _label_names(model: nn.Module) -> list[str] | None:
    """Return what a model calls its labels, in their order; None for a model that does not say how many it has."""
    config = getattr(unwrap(model), "config", None)
    count = getattr(config, "num_labels", None)
    if not isinstance(count, int):
        return None
    known = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    return [known.get(index, str(index)) for index in range(count)]


def balanced_weights(dataset: Any, names: Sequence[str], model: nn.Module, **reading: Any) -> list[float]:
    """Return n / (C * n_c) for each class c, as scikit-learn's `compute_class_weight("balanced")` does.

    Raises:
        PlanError: For data without a length or labels, labels that are not class ids, and a class without a row.
    """
    known = _label_names(model)
    counts = count_classes(dataset, names, ids={name: i for i, name in enumerate(known or ())}, **reading)
    classes = len(known) if known else max(counts, default=0) + 1
    strange = [label for label in counts if not 0 <= label < classes]
    if strange:
        raise PlanError(
            f'class_weights="balanced": train_dataset has the label {strange[0]}, and the model has {classes} classes '
            f"(0 to {classes - 1}). Load it with num_labels= the number of classes."
        )
    absent = [index for index in range(classes) if not counts.get(index)]
    if absent or classes < 2:
        name = (known or [str(i) for i in range(classes)])[absent[0]] if absent else "0"
        found = f"class {name!r} has no row in train_dataset" if absent else "train_dataset has one class only"
        raise PlanError(
            f'class_weights="balanced": {found}, so that its weight would be infinite. Give the weights as a list or '
            "by name, or load the model without that class."
        )
    total = sum(counts.values())
    return [total / (classes * counts[index]) for index in range(classes)]


def _by_label(given: Any, name: str, names: Sequence[str] | None) -> list[float] | None:
    """Return one weight for each label; what a mapping leaves out weighs 1."""
    if given is None or isinstance(given, list):
        if given is not None and names is not None and len(given) != len(names):
            raise PlanError(f"{name} has {len(given)} weights, and the model {len(names)} labels: {_listed(names)}.")
        return given
    if names is None:
        raise PlanError(
            f"{name}={given!r} names labels, but the model has no config with their names. Give a list instead."
        )
    weights: dict[int, float] = {}
    for label, weight in given.items():
        index = _index_of(label, names)
        if index is None:
            raise PlanError(f"{name}={given!r}: {label!r} is not a label of the model. Its labels: {_listed(names)}.")
        if index in weights:
            raise PlanError(f"{name}={given!r} gives label {names[index]!r} two weights. Keep one.")
        weights[index] = weight
    return [weights.get(index, 1.0) for index in range(len(names))]


def _index_of(label: Any, names: Sequence[str]) -> int | None:
    if label in names:
        return names.index(label)
    text = str(label)
    return int(text) if text.isdigit() and int(text) < len(names) else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{index} {name!r}" for index, name in enumerate(names[:20]))
    return f"{shown}, ..." if len(names) > 20 else shown


def _refuse_unfit(given: FreezeArguments, config: Any) -> None:
    """Refuse what the head, as its configuration describes it, cannot be trained with."""
    labels, problem = getattr(config, "num_labels", None), getattr(config, "problem_type", None)
    if given.class_weights is not None and given.pos_weight is not None:
        raise PlanError("class_weights and pos_weight both weight the loss. Keep one.")
    if given.class_weights is not None and (labels == 1 or problem == "multi_label_classification"):
        head = "one logit" if labels == 1 else "several labels, each of them yes or no,"
        raise PlanError(f"class_weights={given.class_weights!r}, and the model has {head}: give pos_weight= instead.")
    if given.pos_weight is not None and problem == "single_label_classification":
        raise PlanError(
            f"pos_weight={given.pos_weight!r} is for one logit or for several labels, and the model chooses one of "
            f"{labels} classes. Give class_weights= instead."
        )
    if problem == "regression":
        raise PlanError(
            f"config.problem_type is 'regression', whose loss is not a cross entropy, and {_first_given(given)} asks "
            "for one. transformers sets it when a model with one logit is first called with labels: for two classes "
            "on one logit set model.config.problem_type = None."
        )


def _first_given(given: FreezeArguments) -> str:
    names = ("class_weights", "pos_weight", "focal_gamma")
    return next(f"{name}={getattr(given, name)!r}" for name in names if getattr(given, name) is not None)


def refuse_unapplied(args: Any) -> None:
    """Raise `UnsupportedSetupError` where a plain Trainer was given weights that nothing would apply."""
    if isinstance(args, FreezeArguments) and _declares_weights(args):
        raise UnsupportedSetupError(
            f"{_first_given(args)} weights the loss, which a callback cannot do: this Trainer would ignore it. Use "
            "FreezeTrainer, or freezing(...) of your Trainer class, with the plan as freeze_plan=."
        )
