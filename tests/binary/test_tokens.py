"""Token labels of two classes are read as rows: one per token that is not labelled -100."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments

from hf_freeze import (
    BinaryClassificationMetrics,
    FreezeError,
    ThresholdResult,
    binary_margin,
    predict_binary,
    tune_threshold,
)
from tests.binary.conftest import WORDS

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning", "ignore:.*pin_memory.*:UserWarning")


def tokens(columns=2, seed=0):
    """40 texts of 9 tokens; from its 4th to 9th on, a text is padding, which the Trainer fills with -100."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((40, 9)) < 0.2).astype(int)
    logits = (rng.normal(size=(40, 9, columns)) + 1.5 * labels[:, :, None] * np.arange(2 - columns, 2)).astype("f4")
    padding = np.arange(9) >= rng.integers(4, 10, size=40)[:, None]
    labels[padding], logits[padding] = -100, -100.0
    return logits, labels


@pytest.mark.parametrize("columns", [1, 2])
def test_each_token_that_is_labelled_is_a_row(columns):
    logits, labels = tokens(columns)
    rows = labels != -100
    expected = tune_threshold(logits[rows], labels[rows])
    result = tune_threshold(logits, labels)
    assert result.n_ignored == (~rows).sum()
    assert (result.threshold, result.value, result.interval) == (
        expected.threshold, expected.value, expected.interval
    )  # fmt: skip
    reported = BinaryClassificationMetrics()((logits, labels))
    assert (reported["f1"], reported["n_pos"], reported["threshold"]) == (
        result.value, (labels == 1).sum(), result.threshold
    )  # fmt: skip


def test_batches_of_different_lengths_and_tuples_read_as_the_padded_whole():
    logits, labels = tokens()
    whole = BinaryClassificationMetrics()((logits, labels))
    batches = [(logits[:16], labels[:16]), (logits[16:, :7], labels[16:, :7])]
    rest = (logits[16:, 7:], labels[16:, 7:])
    listed = [part[0] for part in [*batches, rest]], [part[1] for part in [*batches, rest]]
    assert BinaryClassificationMetrics()(listed) == whole
    hidden = np.zeros((40, 9, 16), np.float32)
    assert BinaryClassificationMetrics()(((hidden, logits), labels)) == whole
    one_by_one = BinaryClassificationMetrics()
    for part in batches:
        assert one_by_one(part, compute_result=False) == {}
    assert one_by_one(rest, compute_result=True) == whole


def test_padding_hides_neither_probabilities_nor_is_it_taken_for_one():
    logits, labels = tokens(1)
    probabilities = np.where(labels[:, :, None] == -100, np.float32(-100.0), 1 / (1 + np.exp(-logits.clip(-20, 20))))
    with pytest.raises(FreezeError, match="these are probabilities"):
        BinaryClassificationMetrics()((probabilities, labels))
    assert BinaryClassificationMetrics(head="probability")((probabilities, labels))["n_pos"] == (labels == 1).sum()


def test_a_weight_per_token_or_per_text_weighs_the_tokens_that_count():
    logits, labels = tokens()
    of_texts = np.random.default_rng(1).exponential(size=40) + 0.1
    of_tokens = np.repeat(of_texts[:, None], 9, axis=1)
    rows = labels != -100
    expected = tune_threshold(logits[rows], labels[rows], sample_weight=of_tokens[rows], n_boot=20)
    for weight in (of_texts, of_texts[:, None], np.where(rows, of_tokens, -100.0)):
        found = tune_threshold(logits, labels, sample_weight=weight, n_boot=20)
        assert (found.threshold, found.value, found.interval) == (
            expected.threshold, expected.value, expected.interval
        )  # fmt: skip
        batches = ([values[:16], values[16:]] for values in (logits, labels, weight))
        assert tune_threshold(next(batches), next(batches), sample_weight=next(batches), n_boot=20) == found
    with pytest.raises(FreezeError, match=r"sample_weight of shape \(40, 5\) for \d+ rows"):
        tune_threshold(logits, labels, sample_weight=of_tokens[:, :5])


@pytest.mark.filterwarnings("error::hf_freeze.ThresholdWarning")
def test_padding_of_tokens_without_labels_is_not_counted_as_called():
    logits = np.concatenate([tokens()[0], np.full((40, 60, 2), -100.0, np.float32)], axis=1)
    result = ThresholdResult(threshold=0.0, prevalence=0.2, tp=30, fn=10, fp=10, tn=150)
    BinaryClassificationMetrics(threshold=result).warn_of_calls(logits)


def test_labels_that_are_not_one_per_token_are_an_error():
    logits, labels = tokens()
    with pytest.raises(FreezeError, match=r"\(40, 9, 2\) are those of tokens, but the labels have shape \(40,\)"):
        tune_threshold(logits, labels[:, 0])
    with pytest.raises(FreezeError, match=r"\(4, 9, 3\) are not binary"):
        tune_threshold(np.zeros((4, 9, 3)), labels[:4])


def test_predictions_of_tokens_have_the_shape_of_the_tokens():
    logits, _ = tokens()
    for given in (logits, torch.from_numpy(logits)):
        predicted = predict_binary(given, 0.3)
        assert tuple(predicted.label.shape) == tuple(predicted.probability.shape) == (40, 9)
        margins = np.asarray(binary_margin(given))
        assert np.array_equal(np.asarray(predicted.label).ravel(), margins >= np.float32(0.3))


@pytest.mark.parametrize("arguments", [{}, {"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_a_trainer_evaluates_texts_of_different_lengths(tmp_path, arguments):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForTokenClassification(BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes))
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(30):
        ids = torch.tensor(rng.integers(2, len(WORDS), size=rng.integers(3, 9)))
        rows.append({"input_ids": ids, "labels": (ids < 4).long()})

    def collate(batch):
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([row["input_ids"] for row in batch], batch_first=True)
        labels = pad([row["labels"] for row in batch], batch_first=True, padding_value=-100)
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=4, **arguments
    )
    metrics = BinaryClassificationMetrics()
    reported = Trainer(model, args, eval_dataset=rows, data_collator=collate, compute_metrics=metrics).evaluate()
    assert reported["eval_n_pos"] + reported["eval_n_neg"] == sum(len(row["labels"]) for row in rows)
    assert metrics.result is not None
