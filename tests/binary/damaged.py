"""Damaged and foreign files where a threshold is read, and what each gets."""

import json

GOOD = {
    "threshold": 0.25,
    "positive": 1,
    "curve": {"threshold": [0.1, 0.2], "tp": [3, 1], "fp": [2, 0], "value": [0.5, 0.4]},
}


def changed(**values):
    return json.dumps({**GOOD, **values})


NUMBER = "threshold=.* must be a finite number"
CURVE = "curve=.* must be four columns of numbers, of one length, or None"

SIDECARS = {
    "empty": ("", "is not JSON"),
    "cut off": (json.dumps(GOOD)[:20], "is not JSON .*interrupted"),
    "not UTF-8": (b"\xb7\xff", "is not JSON .*decode"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), "is not JSON"),
    "zeros": (b"\0" * 64, "is not JSON"),
    "a byte-order mark": (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "is not JSON .*BOM"),
    "nested 100,000 deep": ("[" * 100_000, "is not JSON"),
    "two objects": (json.dumps(GOOD) * 2, "is not JSON"),
    "null": ("null", "holds None, not a JSON object"),
    "a number": ("0.3", r"holds 0\.3, not a JSON object"),
    "a text": ('"0.3"', "holds '0.3', not a JSON object"),
    "a list": (json.dumps([GOOD]), "not a JSON object"),
    "no keys": ("{}", "no threshold"),
    "a key twice": ('{"threshold": 1, "threshold": 2}', "'threshold' occurs twice"),
    "a foreign key": (changed(temperature=1.0), r"unknown keys \['temperature'\].*another version"),
    "another file": (json.dumps({"architectures": ["Bert"], "num_labels": 2}), "unknown keys"),
    "threshold null": (changed(threshold=None), NUMBER),
    "threshold a text": (changed(threshold="0.3"), NUMBER),
    "threshold a list": (changed(threshold=[1]), NUMBER),
    "threshold an object": (changed(threshold={}), NUMBER),
    "threshold true": (changed(threshold=True), NUMBER),
    "threshold NaN": (changed(threshold=float("nan")), NUMBER),
    "threshold infinite": (changed(threshold=float("-inf")), NUMBER),
    "threshold beyond float32": (changed(threshold=1e39), NUMBER),
    "threshold of 401 digits": ('{"threshold": 1' + "0" * 400 + "}", NUMBER),
    "threshold of 5,000 digits": ('{"threshold": 1' + "0" * 5000 + "}", "is not JSON .*digit"),
    "positive 2": (changed(positive=2), "positive=2 must be 0 or 1"),
    "positive a name": (changed(positive="spam"), "positive='spam'"),
    "positive null": (changed(positive=None), "positive=None"),
    "positive true": (changed(positive=True), "positive=True"),
    "positive 1.0": (changed(positive=1.0), r"positive=1\.0"),
    "head unknown": (changed(head="sigmoid"), "head='sigmoid'"),
    "head a list": (changed(head=[]), r"head=\[\]"),
    "curve a text": (changed(curve="x"), CURVE),
    "curve a list": (changed(curve=[1, 2]), CURVE),
    "curve lacks a column": (changed(curve={"threshold": [1.0]}), CURVE),
    "curve of two lengths": (changed(curve={**GOOD["curve"], "tp": [1]}), CURVE),
    "curve of texts": (changed(curve={**GOOD["curve"], "tp": ["1", "2"]}), CURVE),
    "curve with null": (changed(curve={**GOOD["curve"], "value": [None, 1.0]}), CURVE),
    "interval of three": (changed(interval=[1, 2, 3]), "interval=.* must be two numbers or None"),
    "interval a number": (changed(interval=1), "interval=1"),
    "interval a text": (changed(interval="ab"), "interval='ab'"),
    "counts of two": (changed(oob_counts=[1, 2]), "oob_counts=.*four numbers"),
    "value a text": (changed(value="0.5"), "value='0.5' must be a number or None"),
    "value NaN": (changed(value=float("nan")), "value=nan"),
    "tp negative": (changed(tp=-1), "tp=-1 must be a count"),
    "tp a fraction": (changed(tp=0.5), "tp=0.5"),
    "tp null": (changed(tp=None), "tp=None"),
    "n_distinct a text": (changed(n_distinct="9"), "n_distinct='9'"),
    "constraints a list": (changed(constraints=["min_recall"]), "constraints=.*rates by name"),
    "constraints of texts": (changed(constraints={"min_recall": "0.9"}), "constraints="),
    "status null": (changed(status=None), "status=None must be a string"),
    "message a number": (changed(message=1), "message=1"),
    "objective a list": (changed(objective=["f1"]), r"objective=\['f1'\]"),
    "prevalence of percent": (changed(prevalence=1.5), "prevalence=1.5 must be a share from 0 to 1"),
    "prevalence NaN": (changed(prevalence=float("nan")), "prevalence=nan"),
    "slope 0": (changed(slope=0), "slope=0 must be a number above 0"),
    "slope a text": (changed(slope="2"), "slope='2'"),
    "intercept infinite": (changed(intercept=float("inf")), "intercept=inf must be a finite number"),
    "weighted counts of three": (changed(weighted_counts=[1, 2, 3]), "weighted_counts=.*four numbers"),
    "calibrated unknown": (changed(calibrated="isotonic"), "calibrated='isotonic' must be"),
    "calibrated a list": (changed(calibrated=["platt"]), r"calibrated=\['platt'\]"),
    "calibration a number": (changed(calibration=0.1), "calibration=0.1 must be numbers by name"),
    "calibration of texts": (changed(calibration={"brier": "0.1"}), "calibration="),
    "calibration_doubt null": (changed(calibration_doubt=None), "calibration_doubt=None must be a string"),
    "labels a list": ('{"labels": [0.5]}', "does not hold thresholds by label"),
    "a label without a threshold": ('{"labels": {"spam": {"positive": 1}}}', "no threshold"),
    "a label of class 0": (
        '{"labels": {"spam": {"threshold": 0.5, "positive": 0}}}',
        "were tuned with class 0 as the positive one",
    ),
    "labels and a threshold": ('{"labels": {"spam": {"threshold": 0.5}}, "threshold": 1}', "does not hold"),
}


def config(**values):
    return json.dumps({"model_type": "bert", **values})


CONFIGS = {
    "cut off": ('{"decision_thresh', "is not JSON"),
    "not UTF-8": (b"{\xff}", "is not JSON"),
    "a list": ("[]", "not a JSON object"),
    "null": ("null", "not a JSON object"),
    "a key twice": ('{"decision_threshold": 1, "decision_threshold": 2}', "'decision_threshold' occurs twice"),
    "threshold a text": (config(decision_threshold="0.3"), NUMBER),
    "threshold a list": (config(decision_threshold=[0.3]), NUMBER),
    "threshold true": (config(decision_threshold=True), NUMBER),
    "threshold NaN": (config(decision_threshold=float("nan")), NUMBER),
    "threshold beyond float32": (config(decision_threshold=-1e300), NUMBER),
    "positive a text": (config(decision_threshold=0.3, decision_positive="1"), "positive='1' must be 0 or 1"),
    "positive 2": (config(decision_threshold=0.3, decision_positive=2), "positive=2"),
    "head unknown": (config(decision_threshold=0.3, decision_head=1), "head=1"),
    "slope negative": (config(decision_threshold=0.3, decision_slope=-1), "slope=-1 must be a number above 0"),
    "intercept a text": (config(decision_threshold=0.3, decision_intercept="0"), "intercept='0'"),
    "prevalence of percent": (config(decision_threshold=0.3, decision_prevalence=5), "prevalence=5"),
    "thresholds a list": (config(decision_thresholds=[0.5]), "must be thresholds by the labels' names"),
    "thresholds of texts": (
        config(decision_thresholds={"a": "1"}, decision_labels=["a"]),
        "The threshold of 'a' is '1'",
    ),
    "thresholds in no order": (config(decision_thresholds={"a": 1}), "decision_labels=None must be its labels"),
    "thresholds of others": (config(decision_thresholds={"a": 1}, decision_labels=["b"]), "must be its labels"),
}
