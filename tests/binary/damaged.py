"""Damaged and foreign files where a threshold is read, and what each gets."""

import json

GOOD = {
    "threshold": 0.25,
    "positive": 1,
    "curve": {"threshold": [0.1, 0.2], "tp": [3, 1], "fp": [2, 0], "value": [0.5, 0.4]},
}


def changed(**values):
    return json.dumps({**GOOD, **values})


NUMBER = "threshold is .*, but must be a finite number"
CURVE = "curve is .*, but must be four columns of numbers, of one length, or null"

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
    "positive 2": (changed(positive=2), "positive is 2, but must be 0 or 1"),
    "positive a name": (changed(positive="spam"), "positive is 'spam'"),
    "positive null": (changed(positive=None), "positive is None"),
    "positive true": (changed(positive=True), "positive is True"),
    "positive 1.0": (changed(positive=1.0), r"positive is 1\.0"),
    "head unknown": (changed(head="sigmoid"), "head is 'sigmoid'"),
    "head a list": (changed(head=[]), r"head is \[\]"),
    "curve a text": (changed(curve="x"), CURVE),
    "curve a list": (changed(curve=[1, 2]), CURVE),
    "curve lacks a column": (changed(curve={"threshold": [1.0]}), CURVE),
    "curve of two lengths": (changed(curve={**GOOD["curve"], "tp": [1]}), CURVE),
    "curve of texts": (changed(curve={**GOOD["curve"], "tp": ["1", "2"]}), CURVE),
    "curve with null": (changed(curve={**GOOD["curve"], "value": [None, 1.0]}), CURVE),
    "interval of three": (changed(interval=[1, 2, 3]), "interval is .*, but must be two numbers or null"),
    "interval a number": (changed(interval=1), "interval is 1"),
    "interval a text": (changed(interval="ab"), "interval is 'ab'"),
    "counts of two": (changed(oob_counts=[1, 2]), "oob_counts is .*four numbers"),
    "value a text": (changed(value="0.5"), "value is '0.5', but must be a number or null"),
    "value NaN": (changed(value=float("nan")), "value is nan"),
    "tp negative": (changed(tp=-1), "tp is -1, but must be a count"),
    "tp a fraction": (changed(tp=0.5), "tp is 0.5"),
    "tp null": (changed(tp=None), "tp is None"),
    "n_distinct a text": (changed(n_distinct="9"), "n_distinct is '9'"),
    "constraints a list": (changed(constraints=["min_recall"]), "constraints is .*rates by name"),
    "constraints of texts": (changed(constraints={"min_recall": "0.9"}), "constraints is"),
    "status null": (changed(status=None), "status is None, but must be a text"),
    "message a number": (changed(message=1), "message is 1"),
    "objective a list": (changed(objective=["f1"]), "objective is"),
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
    "positive a text": (config(decision_threshold=0.3, decision_positive="1"), "positive is '1', but must be 0 or 1"),
    "positive 2": (config(decision_threshold=0.3, decision_positive=2), "positive is 2"),
    "head unknown": (config(decision_threshold=0.3, decision_head=1), "head is 1"),
}
