"""Mistakes that train without an error, and what says so.

    python examples/common_mistakes.py      # 7 seconds on 2 CPU cores

Freezing by an attribute of a module, a name that matches nothing, an accuracy that hides the recall, and a threshold
that was tuned on the rows it is judged by.
"""

import warnings

import numpy as np
from sklearn.metrics import f1_score
from transformers import BertConfig, BertForSequenceClassification

from hf_freeze import (
    BinaryClassificationMetrics,
    SelectionError,
    ThresholdWarning,
    freeze,
    predict_binary,
    trainable_summary,
    tune_threshold,
)


def main() -> None:
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config)

    print("1. requires_grad on a module freezes nothing:")
    model.bert.requires_grad = False
    print(trainable_summary(model))
    del model.bert.requires_grad
    freeze(model, "bert")
    print(f"After freeze(model, 'bert') {trainable_summary(model).trainable} parameters train.\n")

    print("2. A name that matches nothing:")
    try:
        freeze(model, "clasifier")
    except SelectionError as error:
        print(f"{error}\n")

    print("3. Accuracy 98 %, recall 12 %:")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [4890, 110])
    scores = rng.normal(np.where(labels == 1, -1.2, -4.0), 1.0).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ThresholdWarning)
        half = BinaryClassificationMetrics(threshold=0.0)((scores, labels))
    print(f"At a probability of 0.5: accuracy {half['accuracy']:.3f}, recall {half['recall']:.3f}.")
    print(*(warning.message for warning in caught), "\n", sep="\n")

    print("4. Judged on the rows that the threshold was tuned on (mean of 50 draws of 500 rows, 11 of them positive):")
    tuned, expected, fresh = [], [], []
    for _ in range(50):
        few, rest = np.split(rng.permutation(5000), [500])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ThresholdWarning)  # it says that 11 positives are few
            result = tune_threshold(scores[few], labels[few])
        tuned.append(result.value)
        expected.append(result.oob_value)
        fresh.append(f1_score(labels[rest], predict_binary(scores[rest], result).label))
    print(f"F1 {np.mean(tuned):.3f} there, {np.mean(fresh):.3f} on the others; expected was {np.mean(expected):.3f}.")


if __name__ == "__main__":
    main()
