"""A threshold that is applied at another share of positives than it was tuned at says so, and not otherwise."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact
from sklearn.metrics import f1_score

from hf_freeze import BinaryClassificationMetrics, FreezeError, ThresholdResult, ThresholdWarning, tune_threshold
from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.prevalence import calls_far_from_tuned, labels_far_from_tuned


def rows(n, share, seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < share
    labels[:2] = [True, False]
    return rng.normal(2.5 * labels - 1.0).astype(np.float32), labels


def frozen(result, **values):
    return BinaryClassificationMetrics(threshold=result, **values)


@pytest.fixture
def tuned():
    return tune_threshold(*rows(4000, 0.15, 0))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.4])
def test_labels_at_another_prevalence_warn_once(tuned, share):
    metrics = frozen(tuned)
    with pytest.warns(ThresholdWarning, match=r"positive, but the threshold was tuned at 15\.5 %.*at_prevalence="):
        metrics(rows(3000, share, 1))
    metrics(rows(3000, share, 2))


@pytest.mark.parametrize("share", [0.13, 0.15, 0.18])
def test_labels_near_the_prevalence_tuned_at_do_not_warn(tuned, share):
    frozen(tuned)(rows(3000, share, 1))


def test_a_few_rows_are_no_evidence(tuned):
    frozen(tuned)(rows(6, 0.5, 1))


def test_a_prevalence_that_was_asked_for_is_what_labels_are_compared_with():
    result = tune_threshold(*rows(4000, 0.15, 0), at_prevalence=0.02)
    assert result.prevalence == pytest.approx(0.02)
    frozen(result)(rows(4000, 0.02, 1))
    with pytest.warns(ThresholdWarning, match="tuned at 2 %"):
        frozen(result)(rows(4000, 0.15, 1))
    frozen(result, at_prevalence=0.02)(rows(4000, 0.15, 1))  # reweighted, so nothing is amiss


def test_rows_without_labels_warn_by_the_share_that_is_called_positive(tuned):
    metrics = frozen(tuned)
    metrics.warn_of_calls(rows(3000, 0.15, 1)[0])
    with pytest.warns(ThresholdWarning, match=r"called positive, where 1\d\.?\d* % were expected"):
        metrics.warn_of_calls(rows(3000, 0.02, 1)[0])


@pytest.mark.parametrize("given", [ThresholdResult(threshold=0.4), 0.4])
def test_a_threshold_that_was_given_promises_no_prevalence(given):
    metrics = frozen(given)
    metrics(rows(2000, 0.01, 1))
    metrics.warn_of_calls(rows(2000, 0.01, 1)[0])


@pytest.mark.parametrize("share", [0.5, 0.15, 0.02])
@pytest.mark.parametrize("at", [None, 0.05])
@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_false_alarms_are_rarer_than_one_in_a_hundred(share, at):
    alarms = []
    for seed in range(100):
        result = tune_threshold(*rows(300, share, seed), n_boot=50, at_prevalence=at)
        scores, labels = rows(700, at or share, 10_000 + seed)
        alarms += [labels_far_from_tuned(result, count_scores(scores, labels)), calls_far_from_tuned(result, scores)]
    assert sum(alarm is not None for alarm in alarms) <= 2  # of 200


def test_metrics_at_a_prevalence_are_those_of_rows_weighted_to_it():
    scores, labels = rows(3000, 0.3, 0)
    metrics = BinaryClassificationMetrics(at_prevalence=0.05)
    reported = metrics((scores, labels))
    weight = np.where(labels, 0.05 / labels.mean(), 0.95 / (1 - labels.mean()))
    called = scores >= np.float32(reported["threshold"])
    assert reported["f1"] == pytest.approx(f1_score(labels, called, sample_weight=weight))
    assert reported["objective"] == metrics.result.value == pytest.approx(reported["f1"])
    assert (reported["n_pos"], reported["tp"] + reported["fn"]) == (labels.sum(), pytest.approx(150))


def test_a_weight_column_weights_what_is_tuned_and_what_is_reported():
    scores, labels = rows(3000, 0.3, 0)
    weight = np.random.default_rng(0).exponential(size=3000) + 0.1
    metrics = BinaryClassificationMetrics(sample_weight="weight")
    reported = metrics((scores, (labels, weight)))
    alone = tune_threshold(scores, labels, sample_weight=weight)
    assert metrics.result.threshold == alone.threshold
    assert reported["f1"] == pytest.approx(f1_score(labels, scores >= alone.threshold, sample_weight=weight))
    batched = BinaryClassificationMetrics(sample_weight="weight")
    for part in (slice(0, 1000), slice(1000, 3000)):
        last = batched((scores[part], (labels[part], weight[part])), compute_result=part.stop == 3000)
    assert last == reported


def test_a_weight_column_that_does_not_arrive_is_said():
    with pytest.raises(FreezeError, match=r"gives no weights beside the labels. Set label_names="):
        BinaryClassificationMetrics(sample_weight="weight")(rows(100, 0.3, 0))
    for given in (3, "", "labels"):
        with pytest.raises(FreezeError, match=f"sample_weight={given!r} must be the name of a column"):
            BinaryClassificationMetrics(sample_weight=given)


@pytest.mark.parametrize("at", [None, 0.05])
@pytest.mark.parametrize("calibrate", [None, "platt"])
@pytest.mark.parametrize(
    ("scores", "labels"),
    [([], []), ([1.0, 2.0], [1, 1]), ([np.nan, 1.0], [0, 1]), ([1.0] * 40, [0, 1] * 20), ([np.inf, -np.inf], [1, 0])],
    ids=["empty", "single_class", "nan", "ties", "infinite"],
)
@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_degenerate_rows_give_finite_metrics(at, calibrate, scores, labels):
    metrics = BinaryClassificationMetrics(at_prevalence=at, calibrate=calibrate)
    reported = metrics((np.array(scores, dtype=np.float32), np.array(labels, dtype=int)))
    assert all(np.isfinite(value) for value in reported.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = BinaryClassificationMetrics(at_prevalence=at, calibrate=calibrate)(rows(200, 0.5, 0))
    assert set(reported) == set(usual)


@pytest.mark.parametrize("stated", [False, True])
def test_what_is_far_is_what_the_stated_test_says(stated):
    """Odds that differ by 1.5 or more, and a difference that is significant at one in a thousand."""
    cells = {"tp": 150, "fn": 50, "fp": 100, "tn": 700}
    weighted = (150.0, 50.0, 100.0, 700.0) if stated else None
    result = ThresholdResult(threshold=0.0, prevalence=0.2, weighted_counts=weighted, **cells)
    found = []
    for n in (40, 400, 4000):
        for k in range(0, n, n // 40):
            share = min(max(k / n, 0.5 / max(n, 1000)), 1.0)
            factor = share / (1 - share) * 4
            p = binomtest(k, n, 0.2).pvalue if stated else fisher_exact([[k, n - k], [200, 800]])[1]
            far = max(factor, 1 / factor) >= 1.5 and p < 0.001
            counts = count_scores(np.zeros(n, np.float32), np.arange(n) < k)
            assert (labels_far_from_tuned(result, counts) is not None) == far, (n, k)
            found.append((far, p < 0.001, p < 0.05))
    assert {(True, True, True), (False, True, True), (False, False, True)} <= set(found)


def test_rows_that_weigh_differently_are_less_evidence():
    result = ThresholdResult(threshold=0.0, prevalence=0.2, tp=1500, fn=500, fp=100, tn=7900)
    scores, labels = np.zeros(400, np.float32), np.arange(400) < 40
    weights = np.where(np.arange(400) % 40 == 0, 39.0, 1.0)
    assert labels_far_from_tuned(result, count_scores(scores, labels)) is not None
    assert labels_far_from_tuned(result, count_scores(scores, labels, weights)) is None


def test_margins_that_are_not_a_number_are_no_calls(tuned):
    scores = rows(3000, 0.15, 1)[0]
    assert calls_far_from_tuned(tuned, np.append(scores, [np.nan] * 9000).astype(np.float32)) is None


def test_an_evaluation_that_tunes_is_not_held_against_the_threshold_before():
    metrics = BinaryClassificationMetrics()
    for share in (0.15, 0.4):
        metrics(rows(3000, share, 1))
    assert metrics.result.prevalence == pytest.approx(0.4, abs=0.03)
