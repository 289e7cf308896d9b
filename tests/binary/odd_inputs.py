"""Odd scores, labels and settings, and what each gets: the beginning of a sentence, or None where it is read as meant."""

import numpy as np
import pandas as pd
import torch

from hf_freeze import ThresholdResult

LABELS = np.arange(64) % 2
SCORES = np.linspace(-3.0, 3.0, 64)
NUMBERS = "Logits must be (real )?numbers"

ODD_SCORES = {
    "none": (None, r"Logits of shape \(\) are not binary"),
    "a text": ("abc", NUMBERS),
    "texts": (["a", "b"], NUMBERS),
    "numbers as texts": (["1.0"] * 64, NUMBERS),
    "bytes": (b"abc", NUMBERS),
    "booleans": (LABELS.astype(bool), "Logits of True and False are labels"),
    "boolean tensor": (torch.tensor(LABELS).bool(), "Logits of True and False are labels"),
    "complex": (SCORES + 0j, NUMBERS),
    "complex tensor": (torch.tensor(SCORES + 0j), NUMBERS),
    "dates": (np.array(["2020-01-01"] * 64, dtype="datetime64"), NUMBERS),
    "records": (np.zeros(64, dtype=[("a", "f4")]), NUMBERS),
    "objects": (SCORES.astype(object), None),
    "objects of all kinds": (np.array([1, "a", *range(62)], dtype=object), NUMBERS),
    "integers beyond a float": ([10**400] * 64, NUMBERS),
    "ragged": ([[1.0, 2.0], [3.0]], "Logits of type list cannot be read as an array"),
    "a generator": ((score for score in SCORES), NUMBERS),
    "a scalar": (1.0, r"Logits of shape \(\) are not binary"),
    "(n, 1, 1)": (SCORES.reshape(-1, 1, 1), r"Logits of shape \(64, 1, 1\)"),
    "(n, 1, 2)": (np.zeros((64, 1, 2)), r"Logits of shape \(64, 1, 2\)"),
    "(n, 3)": (np.zeros((64, 3)), r"Logits of shape \(64, 3\)"),
    "(n, 0)": (np.zeros((64, 0)), r"Logits of shape \(64, 0\)"),
    "no rows": ([], "no labelled rows|0 scores but 64 labels"),
    "no output": ({}, r"None of \[\] is an array"),
    "logits that are none": ({"logits": None}, r"None of \['NoneType'\]"),
    "tensor without values": (torch.zeros(64, device="meta"), "Logits on meta"),
    "sparse": (torch.eye(64)[:, :2].to_sparse(), r"Logits on cpu \(torch.sparse_coo\)"),
    "masked": (np.ma.masked_array(SCORES, LABELS), "Logits are a masked array.* 32 "),
    "masked nowhere": (np.ma.masked_array(SCORES, 0 * LABELS), None),
    "batches of two widths": ([np.zeros((32, 2)), np.zeros((32, 1))], "batches .* one column .* two"),
    "batches of torch and numpy": ([torch.tensor(SCORES[:32]), SCORES[32:]], None),
    "NaN": (np.where(LABELS, np.nan, SCORES), "32 of 64 scores are NaN"),
    "infinity minus infinity": (np.full((64, 2), np.inf), "64 of 64 scores are NaN"),
    "infinite": (np.where(LABELS, np.inf, -np.inf), None),
    "beyond float32": (SCORES * 1e300, None),
    "bfloat16": (torch.tensor(SCORES).bfloat16(), None),
    "integers": (np.arange(64), None),
    "unsigned": (np.arange(64, dtype=np.uint64), None),
    "a tensor with a gradient": (torch.tensor(SCORES, requires_grad=True), None),
    "tensors in a list": ([torch.tensor([score]) for score in SCORES], None),
    "series": (pd.Series(SCORES), None),
    "frame of two columns": (pd.DataFrame({"no": -SCORES, "yes": SCORES}), None),
    "extended precision": (SCORES.astype(np.longdouble), None),
}

OCCUR = "Labels must be 0 or 1"
ODD_LABELS = {
    "none": (None, "label is None"),
    "one is none": (np.array([None, *[1] * 63], dtype=object), "label is None"),
    "texts": (["a"] * 64, r"names \(a\)"),
    "numbers as texts": (["0", "1"] * 32, r"names \(0, 1\)"),
    "bytes": ([b"0"] * 64, r"names \(0\)"),
    "NaN": (np.full(64, np.nan), OCCUR),
    "NaN as an object": (np.array([float("nan"), *[1] * 63], dtype=object), OCCUR),
    "infinite": (np.full(64, np.inf), OCCUR),
    "probabilities": (np.linspace(0, 1, 64), OCCUR),
    "1 and 2": (LABELS + 1, OCCUR),
    "integers beyond a float": ([10**400] * 64, OCCUR),
    "complex": (LABELS + 0j, "Labels must be .*0j"),
    "dates": (np.array(["2020-01-01"] * 64, dtype="datetime64"), "Labels must be .*2020"),
    "a set": (set(LABELS.tolist()), r"Labels must be .*\{0, 1\}"),
    "a generator": ((label for label in LABELS), "Labels must be .*generator"),
    "masked": (np.ma.masked_array(LABELS, LABELS), "Labels are a masked array.* 32 "),
    "ragged": ([[1], [1, 0]], "Labels of type list cannot be read as an array"),
    "(n, 1, 1)": (LABELS.reshape(-1, 1, 1), r"Labels of shape \(64, 1, 1\)"),
    "three columns": (np.eye(3)[LABELS], r"Labels of shape \(64, 3\)"),
    "too few": (LABELS[:3], "64 scores but 3 labels"),
    "one class": (np.ones(64, int), "All 64 rows are positive"),
    "all left out": (np.full(64, -100), "no labelled rows"),
    "tensor without values": (torch.zeros(64, device="meta"), "Labels of type Tensor cannot be read"),
    "objects": (LABELS.astype(object), None),
    "boolean objects": (LABELS.astype(bool).astype(object), None),
    "nullable": (pd.Series(LABELS, dtype="Int64"), None),
    "categories": (pd.Categorical(LABELS), None),
    "tensors in a list": ([torch.tensor(int(label)) for label in LABELS], None),
    "half precision": (LABELS.astype(np.float16), None),
}


def objective(function, said):
    return {"objective": function}, said


ODD_SETTINGS = [
    *[({"objective": value}, "objective=") for value in (None, "F1", 3, ["f1"], {}, b"f1")],
    *[({"objective": value}, "objective=.*no threshold can maximise it") for value in ("auroc", "average_precision", "brier")],
    objective(lambda *counts: 1 / 0, "objective '<lambda>' failed on arrays of counts .ZeroDivisionError"),
    objective(lambda tp, fp, fn, tn: tp if tp > 0 else fp, "objective '<lambda>' failed .*truth value"),
    objective(lambda tp: tp, "objective '<lambda>' failed .*positional"),
    objective(lambda *counts: "x", "objective '<lambda>' failed"),
    objective(lambda tp, fp, fn, tn: tp * 1j, "objective '<lambda>' failed .*returned complex numbers"),
    objective(lambda *counts: 1.0, r"returned shape \(\)"),
    objective(lambda tp, fp, fn, tn: tp[:1], r"returned shape \(1,\)"),
    *[
        ({"objective": "fbeta", "beta": value}, "beta=.*positive number")
        for value in (0, -1, float("nan"), float("inf"), "2", None, True, 10**400, [1])
    ],
    *[
        ({"objective": "cost", "costs": value}, "must be two positive numbers|needs costs")
        for value in (
            None, 5, "ab", [1, 2], {}, {"fp": 1}, {"fp": 1, "fn": 0}, {"fp": -1, "fn": 1}, {"fp": float("nan"), "fn": 1},
            {"fp": 1, "fn": float("inf")}, {"fp": "1", "fn": 1}, {"fp": 1, "fn": 10**400}, {"fp": 1, "fn": 1, "tp": 1},
        )
    ],
    *[
        ({name: value}, f"{name}=.* from 0 to 1")
        for name in ("min_precision", "min_recall", "max_fpr")
        for value in (-0.1, 1.1, float("nan"), "0.9", True, [0.9], 1j, 10**400)
    ],
    *[
        ({"min_recall": 0.5, "confidence": value}, r"confidence=.* from 0\.5 to below 1")
        for value in (0.0, 0.49, 1.0, 95, float("nan"), "0.95", True, [0.9])
    ],
    *[({"n_boot": value}, "n_boot=.*(whole number|negative|more than)") for value in (-1, 1.5, "200", None, True, 10**9)],
    *[({"seed": value}, "seed=.*(whole number|negative)") for value in (-1, 0.5, "0", None, True, [1])],
    *[({"select": value}, 'select=.*"exact", "bagged" or "smoothed"') for value in (None, "best", 1, ["exact"])],
    *[({"head": value}, "head=.*'auto', 'logits', 'probability'") for value in (None, "sigmoid", 1, ["auto"], np.array([1, 2]))],
]  # fmt: skip

ODD_METRICS = [
    *[({"positive": value}, "positive=.*0 or 1") for value in (None, 2, -1, 1.0, 0.5, [1], 1j)],
    *[
        ({"threshold": value}, "threshold=.*(\"tune\"|finite number)")
        for value in (None, "0.5", float("nan"), float("inf"), 1e39, True, [0.5], 10**400, {})
    ],
    *[({"tune_on": value}, "tune_on=.*name of an eval set") for value in (None, 0, ["eval"])],
    *[
        ({"id2label": value}, "id2label=.*two classes, 0 and 1")
        for value in ({}, {0: "a"}, {1: "a", 2: "b"}, ["a", "b"], "ab", {"a": 0, "b": 1}, 5)
    ],
    *[({"id2label": {0: name, 1: "b"}}, "id2label=.* strings") for name in (None, 0, ["a"])],
    ({"id2label": {0: "a", 1: "a"}, "positive": "a"}, "Both classes are called 'a'"),
    ({"extra": ["f1"]}, r"extra=\['f1'\].*evaluate\.load\('f1'\)"),
    ({"extra": "f1"}, "extra='f1'.*list of metrics"),
    ({"extra": None}, "extra=None.*list of metrics"),
    ({"extra": [None]}, "NoneType cannot be called with predictions= and references="),
    ({"extra": [len]}, "len cannot be called with predictions= and references="),
    ({"extra": [lambda y_true, y_pred: {}]}, "<lambda> cannot be called with"),
    ({"threshold": ThresholdResult(threshold=0.1, head="probability")}, 'tuned on probabilities.*head="probability"'),
]  # fmt: skip
