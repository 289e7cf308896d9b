"""Checks of all labels of a data set against the head: faults that one row does not show, but training meets later."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_freeze.debugging.label_survey import LabelSurvey, survey_labels, survey_stream
from hf_freeze.debugging.row_label import REMEDY, label_in
from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning
from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.model_inputs.input_rows import Row, every_dataset, row_at
from hf_freeze.model_inputs.inspected_model import InspectedModel


@dataclass(frozen=True)
class Head:
    """What labels may be: `kind` is "classes", "tokens", "several", "binary" or "values"."""

    kind: str
    columns: int
    learns_classes: bool = True
    """False where one logit is regressed on 0 and 1, which another check reports."""

    def wrong(self, value: Any) -> tuple[CheckName, str] | None:
        """Return the check that a label fails, and why; None for one that fits."""
        if value is None:
            return "labels", "has no label (None). Leave the row out, or give it one."
        if isinstance(value, str):
            return "label_dtype", f"has the text {value!r} as its label, but losses need ids. Map it by label2id."
        if isinstance(value, float) and not math.isfinite(value):
            return "label_range", f"has the label {value}, which makes the loss {value}. Leave the row out."
        if self.kind in ("several", "binary"):
            return None if 0 <= value <= 1 or value == IGNORED_LABEL else ("label_range", self._no_share(value))
        if self.kind == "values":
            return None
        if value != int(value):
            return "label_dtype", f"has the label {value}; {self.columns:,} logits take the ids of classes."
        if 0 <= value < self.columns or value == IGNORED_LABEL:
            return None
        return "label_range", f"has the label {int(value)}; the head has {self.columns:,} logits. {REMEDY}"

    def _no_share(self, value: Any) -> str:
        if self.kind == "several":
            return f"has the label {value:g}; binary cross entropy takes 0 and 1, for each of {self.columns} logits."
        return f"has the label {value:g}; one logit is for two classes, 0 and 1. For more classes, set num_labels=."


def head_of(
    inspected: InspectedModel, labels: torch.Tensor, logits: torch.Tensor, *, loss_kind: str | None, binary: bool
) -> Head:
    """Tell what the labels of this head may be."""
    columns = 1 if logits.ndim == 1 else logits.shape[-1]
    cross_entropy = (loss_kind or "").startswith("binary cross entropy")
    if type(inspected.task_model).__name__.endswith("ForQuestionAnswering"):
        return Head("values", columns)  # places in a text, each with a length of its own
    if logits.ndim > 2:
        return Head("values" if labels.is_floating_point() else "tokens", columns)
    if columns == 1:
        return Head("binary" if cross_entropy or binary else "values", 1, learns_classes=cross_entropy)
    if getattr(inspected.config, "problem_type", None) == "regression":
        return Head("values", columns)
    if labels.numel() == 1:
        return Head("classes", columns)
    return Head("several" if cross_entropy else "values", columns)


def surveys(inspected: InspectedModel, row: Row, dataset: Any) -> Iterator[LabelSurvey]:
    """Look at the labels of every data set that training or this look uses."""
    ids = {} if inspected.trainer is not None else _ids_by_name(inspected)
    for data, origin in every_dataset(inspected, dataset):
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            known = row.index if row.dataset is data and row.index is not None else 0
            if not len(data):
                continue
            found = survey_labels(
                data, origin, inspected.label_names, _reader(inspected, data), known_row=known, ids=ids
            )
        elif isinstance(data, Iterable) and iter(data) is not data:
            found = survey_stream(data, origin, lambda value: _label_of(inspected, value))
        else:
            continue
        if found is not None:
            yield found


def _reader(inspected: InspectedModel, data: Any) -> Callable[[int], Any]:
    return lambda index: _label_of(inspected, lambda: row_at(inspected, data, index).value)


def _label_of(inspected: InspectedModel, row: Any) -> Any:
    """Return the label of a row as it reaches the model; None where none does, or the row cannot be made."""
    try:
        label = label_in(inspected, inspected.collate([row() if callable(row) else row]))
    except Exception:
        return None
    return None if label is None else label.tolist()


def _ids_by_name(inspected: InspectedModel) -> Mapping[str, int]:
    return {str(name): int(i) for name, i in (getattr(inspected.config, "label2id", None) or {}).items()}


def check_surveys(head: Head, found: Sequence[LabelSurvey], class_names: Sequence[str]) -> list[Check]:
    """Check that all labels fit the head, and that every class occurs in the training data."""
    classes = max(head.columns, 2)
    checks = [wrong for survey in found if (wrong := _wrong_label(head, survey)) is not None]
    if not checks and head.kind in ("classes", "binary") and len(class_names) > classes:
        checks = [
            failed(
                "label_range", f"The data has {len(class_names)} classes, but the head has {classes} logits. {REMEDY}"
            )
        ]
    trained = next((survey for survey in found if survey.origin == "train"), found[0] if found else None)
    if not checks and trained is not None and (missing := _missing_class(head, trained)) is not None:
        checks = [missing]
    looked = "; ".join(map(str, found))
    return checks or ([ok("label_range", f"Labels fit the head: {looked}.")] if found else [])


def _wrong_label(head: Head, survey: LabelSurvey) -> Check | None:
    for value, row in survey.first.items():
        wrong = head.wrong(value)
        if wrong is not None and _reaches_the_model(head, survey, row):
            return failed(wrong[0], f"Row {row:,} of {survey.origin} {wrong[1]}{_sentence(survey)}")
    odd = next((width for width in survey.widths if width != head.columns), None)
    if head.kind == "several" and odd is not None:
        return failed(
            "label_range",
            f"Row {survey.widths[odd]:,} of {survey.origin} has {odd} labels, but the head has {head.columns} logits; "
            f"each logit needs one.{_sentence(survey)}",
        )
    return None


def _missing_class(head: Head, survey: LabelSurvey) -> Check | None:
    classes = max(head.columns, 2)
    missing = [i for i in range(classes) if i not in survey.first]
    if (
        head.kind not in ("classes", "binary")
        or not head.learns_classes
        or not missing
        or survey.looked_at < 8 * (classes - 1)
    ):
        return None
    which = f"class {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    return warning(
        "label_range",
        f"No row of {survey.origin} belongs to {which}; the head has {classes} classes. Were rows "
        f"sorted, or filtered, before they were split?{_sentence(survey)}",
    )


def _sentence(survey: LabelSurvey) -> str:
    said = str(survey)
    return f" {said[0].upper()}{said[1:]}."


def _reaches_the_model(head: Head, survey: LabelSurvey, row: int) -> bool:
    """Make the row in question: a transform or a collator may have corrected its label."""
    label = survey.label_at(row)
    values = label if isinstance(label, list) else [label]
    flat = torch.tensor(values).flatten().tolist() if all(v is not None for v in values) else [None]
    return any(head.wrong(value) is not None for value in flat)
