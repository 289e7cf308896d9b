"""A margin at or above the threshold is positive, whatever holds the logits."""

import numpy as np
import pytest
import torch

from hf_freeze import ThresholdResult, predict_binary, tune_threshold


@pytest.mark.parametrize("tensor", [np.array, torch.tensor])
def test_labels_follow_the_margin_and_probabilities_are_for_display(tensor):
    prediction = predict_binary(tensor([[0.0, 2.0], [0.0, -0.5], [0.0, -3.0]]), threshold=-1.0)
    assert prediction.label.tolist() == [1, 1, 0]
    np.testing.assert_allclose(np.asarray(prediction.probability), 1 / (1 + np.exp([-2.0, 0.5, 3.0])), rtol=1e-6)
    assert type(prediction.label) is type(prediction.probability) is type(tensor([0.0]))


def test_without_a_threshold_the_labels_are_the_argmax():
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert predict_binary(logits).label.tolist() == logits.argmax(-1).tolist()


def test_a_margin_equal_to_the_threshold_is_positive():
    assert predict_binary([0.5, 0.25], threshold=0.5).label.tolist() == [1, 0]


def test_a_threshold_is_compared_in_float32_as_the_margins_are():
    margin = np.array([0.1], np.float32)  # larger than the double 0.1
    assert predict_binary(margin, threshold=float(margin[0])).label.tolist() == [1]
    assert predict_binary(np.nextafter(margin, np.float32(0)), threshold=0.1).label.tolist() == [0]


@pytest.mark.parametrize("tensor", [np.array, torch.tensor])
def test_labels_are_ids_also_when_class_0_is_the_positive_one(tensor):
    tuned = ThresholdResult(threshold=1.0, positive=0)
    prediction = predict_binary(tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 2.0]]), tuned)
    assert prediction.label.tolist() == [0, 1, 1]
    assert prediction.probability[0] > 0.5
    assert predict_binary(tensor([[2.0, 0.0]]), positive=1).label.tolist() == [0]


def test_a_nan_margin_is_not_positive():
    assert predict_binary([np.nan], threshold=-5.0).label.tolist() == [0]


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_a_tuned_threshold_labels_its_own_rows_as_it_counted_them():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.2
    logits = rng.normal(size=(500, 2)).astype(np.float32) + np.stack([0 * labels, labels], 1)
    result = tune_threshold(logits, labels)
    predicted = predict_binary(logits, result).label == 1
    assert ((predicted & labels).sum(), (predicted & ~labels).sum()) == (result.tp, result.fp)


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_threshold_among_the_ties_of_half_precision_labels_its_own_rows_as_it_counted_them(dtype):
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(2000, generator=generator) < 0.2
    logits = torch.randn(2000, 2, generator=generator)
    logits[:, 1] += labels
    logits = (4 * logits).round().to(dtype) / 4
    result = tune_threshold(logits, labels)
    assert result.n_distinct < 60
    predicted = predict_binary(logits, result).label == 1
    assert ((predicted & labels).sum(), (predicted & ~labels).sum()) == (result.tp, result.fp)
