"""A limit kept "with confidence" holds on fresh rows as often as it says, for the threshold that looking chose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from hf_freeze import BinaryClassificationMetrics, FreezeError, ThresholdError, tune_threshold
from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.risk_control import RiskControl
from tests.benchmarks.risk_control import MODELS

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")


def keeps_on_fresh_rows(model, limits, *, rows, draws, confidence=0.95):
    """Of `draws` thresholds: how many are found, and how many of them break the limit on 200,000 fresh rows."""
    rng = np.random.default_rng(0)
    draw, criterion = MODELS[model][0], Criterion(**limits)
    scores, labels = draw(rng, 200_000)
    truth = count_scores(scores.astype(np.float32), labels)
    found = broken = 0
    for _ in range(draws):
        try:
            result = tune_threshold(*draw(rng, rows), **limits, confidence=confidence, n_boot=0, head="logits")
        except ThresholdError:
            continue
        found += 1
        broken += not criterion.feasible(*truth.table(np.array([truth.candidate_at(result.threshold)])))[0]
    return found / draws, broken / draws


@pytest.mark.parametrize(
    ("model", "limits", "found_at_least"),
    [
        ("flat", {"min_precision": 0.9}, 0.0),  # every threshold breaks it: a bound at each alone says so 17 % wrongly
        ("normal", {"min_precision": 0.9}, 0.85),
        ("mislabelled", {"min_precision": 0.9}, 0.4),
        ("normal", {"min_recall": 0.9, "objective": "precision"}, 1.0),
        ("normal", {"max_fpr": 0.1, "objective": "recall"}, 1.0),
        ("normal", {"min_precision": 0.8, "min_recall": 0.6}, 0.9),
    ],
)
def test_the_threshold_that_was_chosen_breaks_its_limit_no_more_often_than_stated(model, limits, found_at_least):
    found, broken = keeps_on_fresh_rows(model, limits, rows=1000, draws=200)
    assert broken <= 0.05 + (0.05 * 0.95 / 200) ** 0.5
    assert found >= found_at_least


def test_without_a_confidence_the_observed_rate_is_broken_on_fresh_rows_about_half_of_the_time():
    _, broken = keeps_on_fresh_rows("normal", {"min_precision": 0.9}, rows=1000, draws=100, confidence=None)
    assert broken > 0.3


def plainly_shown(criterion, counts):
    """The thresholds that pass, from the definition, one candidate and one start after the other."""
    level = (1 - criterion.confidence) / len(criterion.constraints)
    n_rows, precision = counts.n_pos + counts.n_neg, criterion.min_precision
    start = 1
    while precision and 0.8 * level < precision**start:
        start += 1
    sizes, size = {n_rows}, float(start)
    while size < n_rows:
        sizes.add(int(np.ceil(size)))
        size *= 1.02
    candidates = {max(i for i in range(len(counts.tp)) if counts.tp[i] + counts.fp[i] >= size) for size in sizes}
    doublings = max(1, int(np.log2(n_rows / start))) if start <= n_rows else 1
    shown, lost = set(), 0.0
    for i in sorted(candidates, reverse=True):
        tp, fp, fn, tn = (int(count) for count in counts.table(i))
        if tp + fp < start:
            continue
        given = 0.8 * level + sum(0.2 * level / doublings for j in range(1, 60) if tp + fp >= start * 2**j)
        passes = not precision or at_least(tp, tp + fp, precision) <= given - lost
        lost = lost if passes else given
        passes &= criterion.min_recall is None or at_least(tp, tp + fn, criterion.min_recall) <= level
        passes &= criterion.max_fpr is None or at_least(tn, tn + fp, 1 - criterion.max_fpr) <= level
        shown |= {i} if passes else set()
    return shown


def at_least(successes, trials, rate):
    return binomtest(successes, trials, rate, alternative="greater").pvalue


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.integers(2, 12)), min_size=3, max_size=30),
    limits=st.sampled_from(
        [{"min_precision": 0.6}, {"min_recall": 0.7}, {"max_fpr": 0.4}, {"min_precision": 0.5, "min_recall": 0.5}]
    ),
    confidence=st.sampled_from([0.5, 0.8, 0.95]),
)
def test_what_passes_is_what_passes_by_the_definition(rows, limits, confidence):
    criterion = Criterion(**limits, confidence=confidence)
    scores = np.concatenate([np.full(n, score, np.float32) for score, _, n in rows])
    labels = np.concatenate([np.full(n, label) for _, label, n in rows])
    labels[:2] = [True, False]
    # Better scores than chance, so that something passes.
    counts = count_scores(scores + np.float32(20.0) * labels, labels)
    passed = np.flatnonzero(RiskControl.of(counts, criterion).passed(counts.table(slice(None))))
    assert set(passed.tolist()) == plainly_shown(criterion, counts)


def test_which_candidates_are_tested_does_not_depend_on_the_labels():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=3000).astype(np.float32), rng.random(3000) < 0.3
    criterion = Criterion(min_precision=0.9, confidence=0.95)
    first = RiskControl.of(count_scores(scores, labels), criterion).tested
    other = RiskControl.of(count_scores(scores, rng.permutation(labels)), criterion).tested
    assert first.tolist() == other.tolist()
    assert 100 < len(first) < 300


def test_one_false_positive_at_the_very_top_does_not_end_the_search():
    scores = np.arange(1000.0)
    labels = scores >= 500
    labels[-1] = False
    assert tune_threshold(scores, labels, min_precision=0.9, confidence=0.95, n_boot=0).tp > 450


def test_a_limit_on_precision_needs_rows_enough_to_vouch_for_it():
    scores = np.arange(60.0)
    result = tune_threshold(scores, scores >= 29, min_precision=0.9, confidence=0.95, n_boot=0)  # 31 positive rows
    assert (result.tp, result.fp) == (31, 0)
    with pytest.raises(ThresholdError, match="31 rows must be called positive") as error:
        tune_threshold(scores, scores >= 30, min_precision=0.9, confidence=0.95, n_boot=0)
    assert error.value.status == "infeasible_at_confidence"


def test_a_precision_of_one_is_never_shown_and_one_of_zero_always():
    scores, labels = np.arange(400.0), np.arange(400) >= 200
    with pytest.raises(ThresholdError, match="No number of rows can show"):
        tune_threshold(scores, labels, min_precision=1.0, confidence=0.9)
    assert tune_threshold(scores, labels, min_precision=0.0, max_fpr=1.0, confidence=0.9, n_boot=0).value > 0.98


def test_a_user_function_that_is_finite_nowhere_is_not_blamed_on_the_confidence():
    scores, labels = np.arange(400.0), np.arange(400) >= 200
    with pytest.raises(ValueError, match="is not finite at any threshold that keeps"):
        tune_threshold(scores, labels, objective=lambda tp, fp, fn, tn: tp * np.nan, min_recall=0.5, confidence=0.9)


def test_retunings_are_held_to_the_same_confidence():
    """The value to expect is that of thresholds which keep the limit as strictly as the one that was chosen."""
    rng = np.random.default_rng(3)
    labels = rng.random(2000) < 0.3
    scores = rng.normal(2.5 * labels)
    strict, loose = (
        tune_threshold(scores, labels, min_precision=0.9, objective="recall", confidence=confidence)
        for confidence in (0.95, None)
    )
    assert strict.threshold_interval[0] > loose.threshold_interval[0]
    assert strict.oob_value < loose.oob_value
    tp, fp, _, _ = strict.oob_counts
    assert tp / (tp + fp) > 0.9


def test_a_confidence_holds_at_another_prevalence_and_refuses_weights_of_single_rows():
    rng = np.random.default_rng(0)
    limits = {"min_precision": 0.8, "objective": "recall", "confidence": 0.9, "n_boot": 0}
    found = broken = 0
    for _ in range(150):
        labels = rng.random(1500) < 0.3
        try:
            at = tune_threshold(rng.normal(3.0 * labels), labels, at_prevalence=0.05, **limits).threshold
        except ThresholdError:
            continue
        recall, fpr = norm.sf(at - 3.0), norm.sf(at)
        found += 1
        broken += 0.05 * recall < 0.8 * (0.05 * recall + 0.95 * fpr)
    assert found > 100
    assert broken / 150 <= 0.1 + (0.1 * 0.9 / 150) ** 0.5
    with pytest.raises(FreezeError, match="sample_weight= says that"):
        tune_threshold(np.arange(60.0), np.arange(60) > 29, sample_weight=np.ones(60) * 2, **limits)
    with pytest.raises(FreezeError, match="sample_weight= says that"):
        BinaryClassificationMetrics(sample_weight="weight", min_precision=0.8, confidence=0.9)
