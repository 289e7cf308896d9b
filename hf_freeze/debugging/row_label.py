"""Checks of the label: is it there, does it fit the head, do data and model use the same names."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning
from hf_freeze.errors import in_one_line
from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.model_inputs.input_rows import Row
from hf_freeze.model_inputs.inspected_model import InspectedModel

REMEDY = "Load the model with num_labels= the number of classes, and number them from 0."


def label_in(inspected: InspectedModel, batch: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the label tensor of a batch."""
    found = [batch[name] for name in inspected.label_names if isinstance(batch.get(name), torch.Tensor)]
    return found[0] if found else None


def no_number(inspected: InspectedModel, label: str | None) -> Check:
    """Say that the label of the row is a text, or missing."""
    if label is None:
        return failed("labels", "The label of the row is None. Leave such rows out, or give them a label.")
    known = sorted(getattr(inspected.config, "label2id", None) or {})
    return failed("label_dtype", f"The label is the text {label!r}, but losses need ids. Map it by label2id ({known}).")


def check_present(inspected: InspectedModel, row: Row, batch: Mapping[str, Any]) -> Check | None:
    """Tell whether the label of the row reaches the model."""
    in_batch = [name for name in inspected.label_names if batch.get(name) is not None]
    in_row = [name for name in inspected.label_names if isinstance(row.value, Mapping) and name in row.value]
    if in_batch:
        return ok("labels", f"The label reaches the model as {in_batch[0]!r}.")
    if in_row:
        return failed(
            "labels",
            f"The row has {in_row[0]!r}, the batch does not: it has {sorted(batch)}. The collator drops it, or "
            "remove_unused_columns does; keep the column, or name it in label_names=.",
        )
    given = row.origin.startswith("the sample") or row.origin.startswith("the text")
    if inspected.trainer is None or given:
        return None
    return failed(
        "labels",
        f"The row has no label: its columns are {_columns(row.value)}. The Trainer computes no loss without "
        f"{inspected.label_names[0]!r}; rename the column, or set label_names=.",
    )


def _columns(value: Any) -> list[str] | str:
    return sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__


def _unfit_dtype(inspected: InspectedModel, labels: torch.Tensor, logits: torch.Tensor) -> str | None:
    """Say what is unusual about the type or shape of a label under these logits; None for what fits."""
    if logits.ndim > 2 or labels.ndim > 2:
        return "labels of single tokens must be integers" if labels.is_floating_point() else None
    columns = 1 if logits.ndim == 1 else logits.shape[-1]
    whole = not labels.is_floating_point()
    dtype, problem = str(labels.dtype).removeprefix("torch."), getattr(inspected.config, "problem_type", None)
    if columns == 1:
        if whole:
            reads = "binary cross entropy needs floats" if problem == "multi_label_classification" else "regression"
            return f"{dtype} labels on one logit ({reads})"
        if problem == "single_label_classification":
            return "one logit under problem_type='single_label_classification', whose cross entropy is always 0"
        if problem == "multi_label_classification" and labels.shape != logits.shape:
            return f"labels of shape {tuple(labels.shape)} under logits of shape {tuple(logits.shape)}"
        return None
    if labels.numel() == 1:
        return None if labels.dtype == torch.long else f"{dtype} labels for {columns} logits"
    if labels.numel() == columns:
        return f"{dtype} labels for each of {columns} logits" if whole else None
    return None


def check_dtype(
    inspected: InspectedModel, labels: torch.Tensor, logits: torch.Tensor, error: Exception | None
) -> Check | None:
    """Judge the label's dtype: by rule for transformers' own losses, by what was raised for others'."""
    unfit = _unfit_dtype(inspected, labels, logits)
    if unfit and (error is not None or not inspected.own_loss):
        raised = f" The loss raised {in_one_line(error, most=90)}." if error is not None else ""
        return failed(
            "label_dtype",
            f"{unfit[0].upper()}{unfit[1:]}.{raised} Two or more logits take class ids (int64); one logit takes "
            "floats, (n,) for regression, or (n, 1) with problem_type='multi_label_classification' for two classes.",
        )
    return ok("label_dtype", f"{str(labels.dtype).removeprefix('torch.')} labels fit {_head(logits)}.")


def _head(logits: torch.Tensor) -> str:
    columns = 1 if logits.ndim == 1 else logits.shape[-1]
    return f"{columns:,} logits" if columns > 1 else "one logit"


def check_range(inspected: InspectedModel, labels: torch.Tensor, logits: torch.Tensor) -> Check | None:
    """Check the label of the row against the number of classes."""
    columns = 1 if logits.ndim == 1 else logits.shape[-1]
    if logits.ndim == 2 and columns > 1 and labels.numel() not in (1, columns) and not inspected.own_loss:
        return failed(
            "label_range",
            f"The row has {labels.numel()} labels and the head {columns} logits. Give one label, or one per logit.",
        )
    if columns == 1 or labels.is_floating_point() or (logits.ndim == 2 and labels.numel() != 1):
        return None
    name: CheckName = "label_range"
    strange = sorted({int(value) for value in labels.flatten() if not _fits(int(value), columns)})
    if strange:
        return failed(
            name,
            f"Label {strange[0]} is not a class of the head with {columns:,} logits (0 to {columns - 1:,}). {REMEDY}",
        )
    if bool((labels == IGNORED_LABEL).all()):
        return warning(name, "Every label is -100, which the loss leaves out: this row teaches nothing.")
    return ok(name, f"Labels lie in the {columns:,} classes of the head.")


def _fits(value: int, columns: int) -> bool:
    return 0 <= value < columns or value == IGNORED_LABEL


def check_names(inspected: InspectedModel, row: Row) -> Check | None:
    """Compare the names of the classes in the data with those in the model's config."""
    names = {int(i): str(name) for i, name in (getattr(inspected.config, "id2label", None) or {}).items()}
    back = {str(name): int(i) for name, i in (getattr(inspected.config, "label2id", None) or {}).items()}
    if not names:
        return None
    for i, name in names.items():
        if back and len(set(names.values())) == len(names) and back.get(name) != i:
            return failed(
                "label_names",
                f"config.id2label calls class {i} {name!r}, config.label2id gives {name!r} the id {back.get(name)}. "
                "Set both from one list of names.",
            )
    theirs = row.class_names
    differs = [i for i, name in enumerate(theirs) if names.get(i) != name]
    if differs and set(theirs) == set(names.values()):
        i = differs[0]
        return failed(
            "label_names",
            f"Class {i} is {theirs[i]!r} in the data and {names[i]!r} in config.id2label: the names are shuffled. "
            "Set id2label and label2id from the data set's features.",
        )
    return ok("label_names", f"Classes: {', '.join(f'{i} {name}' for i, name in list(names.items())[:4])}.")
