"""Every odd input of the table gets its sentence before any work, or is read as it was meant."""

import pickle

import numpy as np
import pytest
import torch

from hf_freeze import (
    BinaryClassificationMetrics,
    FreezeError,
    ThresholdError,
    ThresholdResult,
    ThresholdWarning,
    binary_margin,
    predict_binary,
    tune_threshold,
)
from tests.binary.odd_inputs import LABELS, ODD_LABELS, ODD_METRICS, ODD_SCORES, ODD_SETTINGS, SCORES

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")


def tunes_or_says(scores, labels, message, **settings):
    if message is None:
        result = tune_threshold(scores, labels, n_boot=10, **settings)
        figures = BinaryClassificationMetrics(n_boot=10, **settings)((scores, labels))
        assert figures["threshold"] == result.threshold
        assert all(np.isfinite(value) for value in figures.values())
        assert result.threshold_interval is None or np.isfinite(result.threshold_interval).all()
        predicted = np.asarray(predict_binary(scores, result).label)
        assert ((predicted == 1) & (LABELS == 1)).sum() == result.tp
        return
    with pytest.raises(FreezeError, match=message):
        tune_threshold(scores, labels, n_boot=10, **settings)


@pytest.mark.parametrize("case", ODD_SCORES)
def test_odd_scores(case):
    scores, message = ODD_SCORES[case]
    tunes_or_says(scores, LABELS, message)


@pytest.mark.parametrize("case", ODD_LABELS)
def test_odd_labels(case):
    labels, message = ODD_LABELS[case]
    tunes_or_says(SCORES, labels, message)


@pytest.mark.parametrize("case", range(len(ODD_SETTINGS)))
def test_odd_settings_are_refused_at_construction(case):
    settings, message = ODD_SETTINGS[case]
    with pytest.raises(FreezeError, match=message):
        BinaryClassificationMetrics(**settings)
    with pytest.raises(FreezeError, match=message):
        tune_threshold(SCORES, LABELS, **settings)


@pytest.mark.parametrize("case", range(len(ODD_METRICS)))
def test_metrics_that_cannot_work_are_refused_at_construction(case):
    settings, message = ODD_METRICS[case]
    with pytest.raises(FreezeError, match=message):
        BinaryClassificationMetrics(**settings)


@pytest.mark.parametrize("given", [None, 1, "x", {}, (SCORES,), (SCORES, LABELS, SCORES), [SCORES, LABELS]])
def test_what_is_no_prediction_is_named(given):
    with pytest.raises(FreezeError, match=r"EvalPrediction or a pair \(logits, labels\)"):
        BinaryClassificationMetrics()(given)


@pytest.mark.parametrize("given", ["0.5", float("nan"), float("inf"), True, [0.5], 1e39, 10**400, {}, b"1"])
def test_a_threshold_that_is_no_margin_is_refused_wherever_one_is_taken(given):
    for take in (
        lambda: predict_binary(SCORES, given),
        lambda: ThresholdResult(threshold=given),
        lambda: BinaryClassificationMetrics().use(given),
    ):
        with pytest.raises(FreezeError, match="threshold=.*finite number"):
            take()


def test_an_objective_that_is_not_finite_somewhere_is_not_chosen_there():
    result = tune_threshold(SCORES, LABELS, objective=lambda tp, fp, fn, tn: tp / fp, n_boot=10)
    assert np.isfinite(result.value)
    assert result.fp > 0


def test_an_objective_that_writes_into_its_counts_changes_nothing():
    def spoils(tp, fp, fn, tn):
        tp += 1.0
        return tp - fp

    assert tune_threshold(SCORES, LABELS, objective=spoils, n_boot=0).n_pos == 32


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:torch.quantize_per_tensor")
def test_tensors_that_hold_no_plain_numbers_are_refused():
    nested = torch.nested.as_nested_tensor([torch.zeros(2)] * 64)
    quantized = torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8)
    for tensor, kind in ((nested, "nested"), (quantized, "quantized")):
        with pytest.raises(FreezeError, match=rf"Logits on cpu \({kind}\)"):
            binary_margin(tensor)


def test_labels_by_name_need_two_names():
    with pytest.raises(FreezeError, match="Both classes are called 'a'"):
        BinaryClassificationMetrics(id2label={0: "a", 1: "a"})((SCORES, ["a"] * 64))


@pytest.mark.parametrize("config", [{"id2label": ["a", "b"]}, {"id2label": {"x": "a", "y": "b"}}, {"num_labels": "2"}])
def test_a_config_of_the_users_own_without_names_of_two_classes_is_accepted(config):
    metrics = BinaryClassificationMetrics()
    metrics.prepare(type("Model", (), {"config": type("Config", (), config)}))
    assert metrics((SCORES, LABELS))["n_pos"] == 32


@pytest.mark.parametrize("tensor", [np.asarray, torch.as_tensor])
def test_two_probabilities_of_a_row_that_do_not_sum_to_one_are_refused(tensor):
    """Two sigmoids: the ratio of the two columns is not the odds of either."""
    with pytest.raises(FreezeError, match=r"sum to one, but a sum is off by 0\.8"):
        binary_margin(tensor([[0.9, 0.1], [0.9, 0.9]]), head="probability")


def test_a_probability_that_rounding_put_above_one_is_one():
    rounded = np.array([1.0000001, 0.5], np.float32)
    assert binary_margin(rounded, head="probability").tolist() == [np.inf, 0.0]
    with pytest.raises(FreezeError, match="these are probabilities"):
        binary_margin(np.linspace(0.0, 1.0000001, 64))


@pytest.mark.parametrize("number", [torch.tensor(0.5), np.array(0.5), np.float16(0.5), 0.5])
def test_an_extra_metric_may_return_a_number_of_numpy_or_torch(number):
    metrics = BinaryClassificationMetrics(extra=[lambda predictions, references: {"half": number}], n_boot=0)
    assert metrics((SCORES, LABELS))["half"] == 0.5


def test_an_extra_metric_too_large_for_a_float_is_0():
    metrics = BinaryClassificationMetrics(extra=[lambda predictions, references: {"n": 10**400}], n_boot=0)
    assert metrics((SCORES, LABELS))["n"] == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval": "ab"}, "interval='ab'"),
        ({"value": float("nan")}, "value=nan"),
        ({"tp": -1}, "tp=-1"),
        ({"positive": 2}, "positive=2"),
        ({"head": ["logits"]}, "head="),
        ({"curve": {}}, "curve="),
    ],
)
def test_a_result_holds_nothing_that_could_not_be_read_back(values, message):
    with pytest.raises(FreezeError, match=message):
        ThresholdResult(threshold=0.5, **values)


def test_what_could_not_be_tuned_is_said_in_another_process_as_well():
    """An error is pickled on its way from a worker."""
    with pytest.raises(ThresholdError) as error:
        tune_threshold(SCORES, np.ones(64, int))
    received = pickle.loads(pickle.dumps(error.value))
    assert (received.status, str(received)) == ("single_class", str(error.value))
    assert "All 64 rows are positive" in str(received)


def fails(predictions, references):
    raise KeyError("average")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (fails, "extra metric fails .*KeyError: 'average'"),
        (lambda predictions, references: 0.5, r"extra metric <lambda> returned 0\.5.*dict"),
    ],
)
def test_an_extra_metric_that_fails_is_named(extra, message):
    with pytest.raises(FreezeError, match=message):
        BinaryClassificationMetrics(extra=[extra], n_boot=0)((SCORES, LABELS))


@pytest.mark.parametrize(("rank", "warned"), [(0, True), (1, False)])
@pytest.mark.filterwarnings("always::hf_freeze.ThresholdWarning")
def test_of_several_processes_the_first_one_warns(monkeypatch, recwarn, rank, warned):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    metrics = BinaryClassificationMetrics(n_boot=0)
    for _ in range(2):
        metrics((SCORES, np.ones(64, int)))
    assert len([warning for warning in recwarn if warning.category is ThresholdWarning]) == int(warned)
