"""Every odd input of the table gets its sentence before any work, or is read as it was meant."""

import numpy as np
import pytest

from hf_freeze import (
    BinaryClassificationMetrics,
    FreezeError,
    ThresholdResult,
    ThresholdWarning,
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
