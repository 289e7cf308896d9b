"""Calibrated and shifted probabilities fit the labels, are served everywhere, and change no label."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from hf_freeze import (
    BinaryClassificationMetrics,
    FreezeError,
    ThresholdResult,
    ThresholdWarning,
    load_threshold,
    predict_binary,
    save_threshold,
    tune_threshold,
)
from hf_freeze.binary.result import sigmoid
from hf_freeze.binary.saved_threshold import set_config_threshold


def overconfident(n=4000, share=0.3, seed=0):
    """Margins three times, and 1 more than, the log-odds of their rows."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < share
    log_odds = rng.normal(2.0 * labels - 1.0) * 2.0 + np.log(share / (1 - share))
    return (3.0 * log_odds + 1.0).astype(np.float32), labels


def test_platt_finds_what_was_done_to_the_log_odds():
    scores, labels = overconfident(30_000)
    found = tune_threshold(scores, labels, calibrate="platt", n_boot=0)
    assert found.slope == pytest.approx(1 / 3, rel=0.1)
    assert found.intercept == pytest.approx(-1 / 3, abs=0.1)


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_agrees_with_a_logistic_regression_on_the_smoothed_targets(weighted):
    scores, labels = overconfident(500)
    weights = np.random.default_rng(1).exponential(size=500) + 0.1 if weighted else np.ones(500)
    found = tune_threshold(scores, labels, calibrate="platt", n_boot=0, sample_weight=weights)
    targets = np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2))
    peer = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(
        np.tile(scores, 2)[:, None],
        np.repeat([1, 0], 500),
        sample_weight=np.concatenate([weights * targets, weights * (1 - targets)]),
    )
    assert (found.slope, found.intercept) == pytest.approx((peer.coef_[0, 0], peer.intercept_[0]), rel=1e-3)


def test_a_temperature_agrees_with_a_logistic_regression_without_intercept():
    scores, labels = overconfident(500)
    found = tune_threshold(scores, labels, calibrate="temperature", n_boot=0)
    peer = LogisticRegression(C=1e10, tol=1e-10, fit_intercept=False).fit(scores[:, None], labels)
    assert found.slope == pytest.approx(peer.coef_[0, 0], rel=1e-3)
    assert found.intercept == 0.0


@pytest.mark.parametrize("method", ["temperature", "platt"])
@pytest.mark.parametrize("share", [None, 0.02])
def test_calibration_changes_probabilities_and_no_label(method, share):
    scores, labels = overconfident()
    plain = tune_threshold(scores, labels, at_prevalence=share)
    found = tune_threshold(scores, labels, at_prevalence=share, calibrate=method)
    assert (found.threshold, found.oob_value, found.interval) == (plain.threshold, plain.oob_value, plain.interval)
    for given in (scores, torch.from_numpy(scores)):
        was, now = predict_binary(given, plain), predict_binary(given, found)
        assert (was.label == now.label).all()
        called = np.asarray(now.probability)[np.asarray(now.label) == 1]
        assert called.min() >= np.float32(found.probability) - 1e-6
        assert now.probability.dtype == given.dtype
        assert not np.allclose(was.probability, now.probability, atol=0.01)


def test_the_errors_reported_are_those_on_fresh_rows():
    scores, labels = overconfident(300)
    found = tune_threshold(scores, labels, calibrate="platt")
    fresh, fresh_labels = overconfident(50_000, seed=1)
    own, served = sigmoid(fresh.astype(np.float64)), predict_binary(fresh, found).probability
    assert found.calibration["brier_uncalibrated"] == pytest.approx(brier_score_loss(labels, sigmoid(scores)))
    assert found.calibration["brier"] == pytest.approx(brier_score_loss(fresh_labels, served), abs=0.02)
    assert brier_score_loss(fresh_labels, served) < brier_score_loss(fresh_labels, own) - 0.01
    errors = found.calibration
    assert errors["expected_calibration_error"] < errors["expected_calibration_error_uncalibrated"]


def test_errors_out_of_bag_are_larger_than_on_the_rows_fitted():
    worse = []
    for seed in range(12):
        scores, labels = overconfident(40, seed=seed)
        with pytest.warns(ThresholdWarning, match="depends on only"):
            found = tune_threshold(scores, labels, calibrate="platt", n_boot=0)
        worse.append(found.calibration["brier"] - brier_score_loss(labels, predict_binary(scores, found).probability))
    assert np.mean(worse) > 0.002


def test_a_prevalence_shifts_the_log_odds_by_those_of_the_classes():
    """Saerens, Latinne and Decaestecker (2002)."""
    scores, labels = overconfident()
    found = tune_threshold(scores, labels, at_prevalence=0.01, n_boot=0)
    share = labels.mean()
    own = sigmoid(scores.astype(np.float64))
    shifted = own * 0.01 / share / (own * 0.01 / share + (1 - own) * 0.99 / (1 - share))
    assert predict_binary(scores, found).probability == pytest.approx(shifted, abs=1e-6)


def test_calibrated_at_a_prevalence_the_mean_probability_is_that_prevalence():
    scores, labels = overconfident(20_000)
    found = tune_threshold(scores / 3, labels, at_prevalence=0.05, calibrate="platt", n_boot=0)
    fresh, fresh_labels = overconfident(200_000, seed=2)
    weight = np.where(fresh_labels, 0.05 / 0.3, 0.95 / 0.7)
    mean = np.average(predict_binary(fresh / 3, found).probability, weights=weight)
    assert mean == pytest.approx(0.05, abs=0.012)


def test_separable_rows_are_calibrated_to_smoothed_targets_and_a_warning_says_so():
    scores, labels = np.linspace(-5, 5, 200), np.arange(200) >= 100
    with pytest.warns(ThresholdWarning, match=r"separates all rows.*smoothed targets of Platt"):
        found = tune_threshold(scores, labels, calibrate="temperature")
    assert 0 < found.slope < 100
    assert 0.9 < predict_binary([5.0], found).probability[0] < 1.0


@pytest.mark.parametrize("method", ["temperature", "platt"])
@pytest.mark.parametrize(
    "scores",
    [-overconfident()[0], np.zeros(4000), np.where(overconfident()[1], np.inf, -np.inf)],
    ids=["reversed", "constant", "infinite"],
)
@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_where_no_slope_fits_probabilities_stay_and_the_result_says_so(method, scores):
    found = tune_threshold(scores, overconfident()[1], calibrate=method, head="logits")
    assert (found.slope, found.intercept, found.calibrated) == (1.0, 0.0, None)
    assert "was left out" in found.message
    assert np.isfinite([*found.calibration.values()]).all()


def test_a_temperature_that_cannot_fit_says_where_the_classes_would_have_to_part():
    with pytest.warns(ThresholdWarning, match=r'left out: margins above 0 do not go with more.*"platt" can move'):
        tune_threshold([3.0] * 150 + [5.0] * 50, [0] * 150 + [1] * 50, calibrate="temperature", n_boot=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3, 1e30])
@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_scores_of_any_size_are_calibrated_alike(method, scale):
    scores, labels = overconfident(1000)
    one, scaled = (
        tune_threshold(scores * np.float32(s), labels, calibrate=method, n_boot=0, head="logits") for s in (1, scale)
    )
    assert scaled.slope * scale == pytest.approx(one.slope, rel=2e-3)
    assert scaled.intercept == pytest.approx(one.intercept, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("given", ["isotonic", True, 1.0, ["platt"]])
def test_another_way_to_calibrate_is_refused(given):
    with pytest.raises(FreezeError, match='Give "temperature" or "platt"'):
        BinaryClassificationMetrics(calibrate=given)


def test_calibration_is_saved_beside_the_weights_and_in_the_config(tmp_path):
    scores, labels = overconfident()
    found = tune_threshold(scores, labels, calibrate="platt", at_prevalence=0.1)
    (tmp_path / "config.json").write_text("{}")
    save_threshold(found, tmp_path)
    assert load_threshold(tmp_path) == found
    (tmp_path / "decision_threshold.json").unlink()
    from_config = load_threshold(tmp_path)
    assert (from_config.slope, from_config.intercept) == (found.slope, found.intercept)
    assert from_config.prevalence == found.prevalence
    assert (predict_binary(scores, from_config).probability == predict_binary(scores, found).probability).all()


def test_a_config_forgets_the_calibration_with_the_threshold():
    class Model:
        class config:  # noqa: N801 - as models call it
            num_labels = 2

    set_config_threshold(Model, ThresholdResult(threshold=1.0, slope=2.0, intercept=1.0, prevalence=0.2))
    assert Model.config.decision_slope == 2.0
    set_config_threshold(Model, ThresholdResult(threshold=1.0))
    assert not {"decision_slope", "decision_intercept", "decision_prevalence"} & set(vars(Model.config))


def test_metrics_report_the_probabilities_that_are_served():
    scores, labels = overconfident()
    metrics = BinaryClassificationMetrics(calibrate="platt")
    tuned = metrics((scores, labels))
    assert {name: tuned[name] for name in metrics.result.calibration} == metrics.result.calibration
    metrics.freeze()
    fresh, fresh_labels = overconfident(seed=1)
    applied = metrics((fresh, fresh_labels))
    served = predict_binary(fresh, metrics.result).probability
    assert applied["brier"] == pytest.approx(brier_score_loss(fresh_labels, served), rel=1e-4)
    assert applied["brier_uncalibrated"] == pytest.approx(brier_score_loss(fresh_labels, sigmoid(fresh)), rel=1e-4)
    assert applied["threshold_probability"] == metrics.result.probability
    with pytest.warns(ThresholdWarning, match="are NaN"):
        assert metrics(([np.nan] * 3, [0, 1, 1])).keys() == applied.keys()


def test_a_temperature_at_a_prevalence_is_fitted_around_the_shift():
    scores, labels = overconfident(1000)
    found = tune_threshold(scores, labels, calibrate="temperature", at_prevalence=0.05, n_boot=0)
    share = labels.mean()
    shift = np.log(0.05 / 0.95) - np.log(share / (1 - share))
    assert found.intercept == pytest.approx(shift)
    weight = np.where(labels, 0.05 / share, 0.95 / (1 - share))
    steepness = [
        np.dot(weight * (sigmoid(slope * scores + shift) - labels), scores)
        for slope in (0.98 * found.slope, 1.02 * found.slope)
    ]
    assert steepness[0] < 0 < steepness[1]
    with pytest.warns(ThresholdWarning) as warned:
        unfit = tune_threshold(-scores, labels, calibrate="temperature", at_prevalence=0.05, n_boot=0)
    assert any("left out" in str(warning.message) for warning in warned)
    assert (unfit.slope, unfit.intercept) == (1.0, pytest.approx(shift))


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_where_no_half_can_be_fitted_the_errors_are_those_of_all_rows():
    found = tune_threshold([0.0, 1.0, 2.0, 3.0], [0, 0, 0, 1], calibrate="platt")
    assert found.calibration.keys() >= {"brier", "expected_calibration_error"}


def test_probabilities_of_the_other_class_are_not_shifted_by_what_was_fitted_to_this_one():
    result = ThresholdResult(threshold=0.0, slope=2.0, intercept=3.0)
    assert predict_binary([1.0], result).probability == pytest.approx(sigmoid(5.0))
    assert predict_binary([1.0], result, positive=0).probability == pytest.approx(sigmoid(-1.0))
