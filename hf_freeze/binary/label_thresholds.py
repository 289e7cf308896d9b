"""One threshold per label, by the label's name, as one thing to save, load and apply."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_freeze.binary.margin import Head, as_numpy, is_batches, read_array, read_margin, refuse_probabilities
from hf_freeze.binary.result import ThresholdResult, is_number, plain, read_json_object, short, sigmoid
from hf_freeze.errors import FreezeError
from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.whole_files import write_text


@dataclass(frozen=True)
class LabelThresholds:
    """The thresholds of a multi-label model: a row has a label if and only if its logit is at least the threshold.

    Args:
        by_label: A `ThresholdResult`, or a margin, for each label by name, in the order of the model's outputs.

    Raises:
        FreezeError: For anything else, and results read from different heads.

    >>> thresholds = LabelThresholds({"toxic": 0.5, "spam": -1.0})
    >>> thresholds["spam"].threshold, thresholds.margins
    (-1.0, {'toxic': 0.5, 'spam': -1.0})
    """

    by_label: Mapping[str, ThresholdResult]

    def __post_init__(self) -> None:
        """Raise `FreezeError` for anything but thresholds by name; make results of bare margins."""
        given = self.by_label
        if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given):
            raise FreezeError(f"{short(given)} must be thresholds by the labels' names.")
        results = {}
        for name, found in given.items():
            if not (isinstance(found, ThresholdResult) or is_number(found)):
                raise FreezeError(f"The threshold of {name!r} is {short(found)}. Give a margin or a ThresholdResult.")
            results[name] = found if isinstance(found, ThresholdResult) else ThresholdResult(threshold=found)
        if len({result.head for result in results.values()}) > 1:
            raise FreezeError("Some thresholds are of logits and others of probabilities. Give all of one kind.")
        if reversed_labels := [name for name, result in results.items() if result.positive != 1]:
            raise FreezeError(
                f"The thresholds of {reversed_labels} were tuned with class 0 as the positive one, but with several "
                "labels class 1 always means that a row has the label."
            )
        object.__setattr__(self, "by_label", results)

    def __getitem__(self, label: str) -> ThresholdResult:
        """Return the result of one label."""
        return self.by_label[label]

    @property
    def labels(self) -> list[str]:
        """The names, in the order of the model's outputs."""
        return list(self.by_label)

    @property
    def margins(self) -> dict[str, float]:
        """The margin of each label, by name."""
        return {name: float(result.threshold) for name, result in self.by_label.items()}

    @property
    def head(self) -> str:
        """How the model's outputs are read, as in `binary_margin`."""
        return next(iter(self.by_label.values())).head

    def __str__(self) -> str:
        return "\n".join(f"{name}: {result}" for name, result in self.by_label.items())

    def save(self, path: str | Path) -> None:
        """Write the thresholds as JSON, one line per label, whole or not at all."""
        lines = [f"    {json.dumps(n)}: {json.dumps(r.to_dict(), default=plain)}" for n, r in self.by_label.items()]
        write_text(Path(path), '{\n  "labels": {\n' + ",\n".join(lines) + "\n  }\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> "LabelThresholds":
        """Read what `save` wrote. Raises `FreezeError` when the file holds something else."""
        values = read_json_object(path)
        labels = values.get("labels")
        if not isinstance(labels, dict) or set(values) != {"labels"}:
            raise FreezeError(f"{path} does not hold thresholds by label. Use load_threshold for that of one label.")
        try:
            return cls({name: ThresholdResult.from_dict(result) for name, result in labels.items()})
        except FreezeError as error:
            raise FreezeError(f"{path}: {error} Was it edited, or written by another version?") from error


@dataclass(frozen=True, eq=False)
class MultiLabelPrediction:
    """The predictions for n rows and L labels, as torch tensors or numpy arrays like the logits.

    Args:
        probability: (n, L) float32, of each label. For display: a row may have a label below 0.5.
        label: (n, L) int64, 1 where the row has the label.
        names: The L names.
    """

    probability: Any
    label: Any
    names: tuple[str, ...]


def predict_multi_label(logits: Any, thresholds: LabelThresholds) -> MultiLabelPrediction:
    """Return the probability and the decision of every label, by the comparison that the thresholds were tuned with.

    Args:
        logits: The model's outputs (n, L), one column per label in the order of the thresholds.
        thresholds: What `load_label_thresholds` returned, or `MultiLabelMetrics.result`.

    Returns:
        Torch tensors for a torch tensor, otherwise numpy arrays. A logit that is NaN does not give its label.

    Raises:
        FreezeError: For another number of columns than there are thresholds.

    >>> predict_multi_label([[0.0, 2.0]], LabelThresholds({"toxic": 0.5, "spam": 1.0})).label
    array([[0, 1]])
    """
    if not isinstance(thresholds, LabelThresholds):
        raise FreezeError(f"{short(thresholds)} is not a LabelThresholds. Give what load_label_thresholds returned.")
    head: Head = "probability" if thresholds.head == "probability" else "auto"
    margin, seen = read_margins(logits, head=head)
    refuse_probabilities([seen], head=head)
    if margin.shape[1] != len(thresholds.by_label):
        raise FreezeError(
            f"Logits of shape {tuple(margin.shape)} for {len(thresholds.by_label)} labels: {thresholds.labels}."
        )
    limits: Any = np.array(list(thresholds.margins.values()), np.float32)
    names = tuple(thresholds.labels)
    if isinstance(margin, torch.Tensor):
        has_label = margin >= torch.from_numpy(limits).to(margin.device)
        return MultiLabelPrediction(torch.sigmoid(margin), has_label.long(), names)
    return MultiLabelPrediction(sigmoid(margin), (margin >= limits).astype(np.int64), names)


def take_matrix(outputs: Any) -> Any:
    """Pick one logit per label out of what a model returned: "logits" by name, else the first array (n, L)."""
    if isinstance(outputs, Mapping):
        if outputs.get("logits") is not None:
            return outputs["logits"]
        outputs = tuple(outputs.values())
    if isinstance(outputs, tuple):
        found = [value for value in outputs if getattr(value, "ndim", 0) == 2]
        if not found:
            raise FreezeError("None of the model's outputs has two dimensions. Pass the logits themselves.")
        return found[0]
    return outputs


def read_margins(logits: Any, *, head: Head) -> tuple[Any, Any]:
    """Return one margin per row and label, (n, L) float32, and the range of the values, as `read_margin` does."""
    if is_batches(logits):
        parts = [as_numpy(take_matrix(batch)) for batch in logits]
        if len({part.shape[1:] for part in parts}) > 1 or parts[0].ndim != 2:
            raise FreezeError(f"Batches of logits of shapes {[part.shape for part in parts][:5]} do not fit together.")
        logits = np.concatenate(parts)
    matrix = take_matrix(logits)
    matrix = matrix if isinstance(matrix, torch.Tensor) else read_array(matrix, "Logits")
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise FreezeError(f"Logits of shape {tuple(matrix.shape)} are not (n, L), one logit per row and label.")
    margin, seen = read_margin(matrix.reshape(-1, 1), positive=1, head=head)
    return margin.reshape(matrix.shape), seen


def read_label_matrix(labels: Any, shape: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return (n, L) which rows have which label, and which are labelled at all: not -100 and not NaN."""
    if is_batches(labels):
        labels = np.concatenate([read_array(take_matrix(batch), "Labels") for batch in labels])
    values = read_array(take_matrix(labels), "Labels")
    if values.shape != tuple(shape):
        raise FreezeError(f"Labels of shape {values.shape} for logits of shape {tuple(shape)}. Give one per logit.")
    if values.dtype.kind not in "biuf":
        raise FreezeError(f"Multi-label targets are 0 and 1, of shape (n, L), not {values.dtype}.")
    if values.dtype == np.bool_:
        return values, np.ones(values.shape, dtype=bool)
    counted = ~np.isnan(values) & (values != IGNORED_LABEL)
    strange = np.unique(values[counted & (values != 0) & (values != 1)])
    if strange.size:
        raise FreezeError(
            f"Labels must be 0 or 1 (or -100, or NaN, to leave one out), but they include {strange[:5].tolist()}."
        )
    return values == 1, counted
