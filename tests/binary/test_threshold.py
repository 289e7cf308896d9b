"""The search finds what trying every threshold finds, and the figures it reports are scikit-learn's."""

import json
import re
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_freeze import FreezeError, ThresholdError, ThresholdResult, ThresholdWarning, tune_threshold
from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.criterion import Criterion
from hf_freeze.binary.resampling import resample
from tests.binary import brute_force

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")


def custom(tp, fp, fn, tn):
    return tp - 0.5 * fp - 0.1 * fn + 0.01 * tn


OBJECTIVES = {
    "f1": {"objective": "f1"},
    "fbeta": {"objective": "fbeta", "beta": 2.0},
    "mcc": {"objective": "mcc"},
    "balanced_accuracy": {"objective": "balanced_accuracy"},
    "youden": {"objective": "youden"},
    "accuracy": {"objective": "accuracy"},
    "cost": {"objective": "cost", "costs": {"fp": 1.0, "fn": 3.0}},
    "custom": {"objective": custom},
}

TIED_SCORES = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.25000003, 1.0, 7.0, -np.inf, np.inf])
ANY_SCORE = st.floats(width=32, allow_nan=False)


@st.composite
def scored_rows(draw, score=TIED_SCORES):
    rows = draw(st.lists(st.tuples(score, st.booleans()), min_size=2, max_size=40))
    scores = np.array([row[0] for row in rows], dtype=np.float32)
    labels = np.array([row[1] for row in rows])
    labels[:2] = [True, False]
    return scores, labels


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=60, deadline=None)
@given(rows=st.one_of(scored_rows(), scored_rows(score=ANY_SCORE)))
def test_no_threshold_is_better_than_the_one_found(name, rows):
    scores, labels = rows
    result = tune_threshold(scores, labels, n_boot=0, head="logits", **OBJECTIVES[name])
    found = brute_force.value(name, scores, labels, result.threshold)
    best = max(brute_force.value(name, scores, labels, t) for t in brute_force.candidates(scores))
    assert found == pytest.approx(best, abs=1e-9)
    assert result.value == pytest.approx(found, abs=1e-9)
    assert (result.tp, result.fp, result.fn, result.tn) == brute_force.confusion(scores, labels, result.threshold)


@settings(max_examples=80, deadline=None)
@given(rows=scored_rows(), rate=st.sampled_from([0.3, 0.5, 0.7, 0.9]))
@pytest.mark.parametrize("constraint", ["min_precision", "min_recall", "max_fpr"])
def test_constraints_hold_and_nothing_better_keeps_them(constraint, rows, rate):
    scores, labels = rows

    def keeps(threshold):
        tp, fp, fn, tn = brute_force.confusion(scores, labels, threshold)
        part, whole = {"min_precision": (tp, tp + fp), "min_recall": (tp, tp + fn), "max_fpr": (fp, fp + tn)}[
            constraint
        ]
        if whole == 0:
            return False
        return part / whole <= rate if constraint == "max_fpr" else part / whole >= rate

    allowed = [t for t in brute_force.candidates(scores) if keeps(t)]
    options = {constraint: rate, "n_boot": 0, "head": "logits"}
    if not allowed:
        with pytest.raises(ThresholdError, match=f"No threshold keeps {constraint}"):
            tune_threshold(scores, labels, **options)
        return
    result = tune_threshold(scores, labels, **options)
    assert keeps(result.threshold)
    assert result.value == pytest.approx(max(brute_force.value("f1", scores, labels, t) for t in allowed))


@settings(max_examples=100, deadline=None)
@given(rows=scored_rows())
def test_every_threshold_of_the_plateau_labels_equally_well(rows):
    scores, labels = rows
    result = tune_threshold(scores, labels, n_boot=0, head="logits")
    low, high = result.plateau
    assert low < result.threshold <= high
    for threshold in (high, float(np.nextafter(np.float32(low), np.float32(np.inf)))):
        if low < threshold <= high:
            assert brute_force.value("f1", scores, labels, threshold) == pytest.approx(result.value)


def test_the_threshold_lies_in_the_middle_of_the_longest_plateau():
    scores = [-3.0, -1.0, 1.0, 3.0, 3.5, 4.0]
    labels = [0, 0, 1, 1, 1, 1]
    result = tune_threshold(scores, labels, n_boot=0)
    assert (result.threshold, result.plateau, result.value) == (0.0, (-1.0, 1.0), 1.0)


def test_of_two_plateaus_the_longer_one_is_taken():
    # F1 is 2/3 from score 5 on and, again, from 0 on.
    labels = [1, 0, 0, 1, 0]
    assert tune_threshold([5.0, 4.9, 4.8, 0.0, -4.0], labels, n_boot=0).plateau == (-4.0, 0.0)
    assert tune_threshold([5.0, 0.9, 0.8, 0.0, -1.0], labels, n_boot=0).plateau == (np.float32(0.9), 5.0)


def test_a_tie_does_not_hang_on_the_last_digit():
    """The same balanced accuracy at two candidates, as 0.2 + 0.9 and 0.3 + 0.8 or the like: one sum rounds up."""

    def total(tp, tn):
        return (tp / 10 + tn / 10) / 2

    high, low = next(
        ((a, s - a), (b, s - b))
        for s in range(11, 20)
        for a in range(s - 9, 10)
        for b in range(a + 1, 10)
        if total(a, s - a) > total(b, s - b)
    )
    first, second = sorted([high, low])
    groups = [  # score, positives, negatives: a narrow gap where the sum rounds up, then a wide one
        (10.0, first[0], 10 - first[1]),
        (9.0, second[0] - first[0], first[1] - second[1]),
        (-50.0, 10 - second[0], second[1]),
    ]
    scores = np.concatenate([np.full(p + n, score) for score, p, n in groups])
    labels = np.concatenate([np.arange(p + n) < p for _, p, n in groups])
    assert tune_threshold(scores, labels, objective="balanced_accuracy", n_boot=0).plateau == (-50.0, 10.0)


def test_neighbouring_floats_keep_the_threshold_above_the_lower_score():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2.0))
    result = tune_threshold(np.array([low, high] * 20), [0, 1] * 20, n_boot=0)
    assert low < np.float32(result.threshold) <= high
    assert result.value == 1.0


def test_minus_zero_and_zero_are_one_score():
    result = tune_threshold(np.array([-0.0, 0.0, 1.0, -1.0], np.float32), [0, 1, 1, 0], n_boot=0)
    assert result.n_distinct == 3


def test_double_precision_scores_are_searched_as_they_will_be_compared_in_float32():
    # Two doubles that are one float32: no threshold can separate them.
    result = tune_threshold(np.array([0.1, 0.1 + 1e-12] * 20), [0, 1] * 20, n_boot=0)
    assert result.n_distinct == 1


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([-np.inf, np.inf] * 3, [0, 1] * 3),
        ([-np.inf, 2.0] * 3, [0, 1] * 3),
        ([2.0, np.inf] * 3, [0, 1] * 3),
    ],
)
def test_infinite_scores_get_a_finite_threshold_that_separates_them(scores, labels):
    result = tune_threshold(np.array(scores), labels, n_boot=0)
    assert np.isfinite(result.threshold)
    assert result.value == 1.0
    assert (np.array(scores, np.float32) >= np.float32(result.threshold)).tolist() == [bool(label) for label in labels]


def test_the_largest_float_cannot_be_exceeded_so_predict_none_is_not_offered():
    largest = np.finfo(np.float32).max
    result = tune_threshold(np.array([largest] * 9 + [1.0]), [0] * 9 + [1], objective="accuracy", n_boot=0)
    assert np.isfinite(result.threshold)


# Degenerate cases, alone (DESIGN 7.1)


@pytest.mark.parametrize(
    ("scores", "labels", "status", "message"),
    [
        ([], [], "empty", "no labelled rows"),
        ([1.0, 2.0], [-100, -100], "empty", "no labelled rows"),
        ([1.0, 2.0], [0, 0], "single_class", "All 2 rows are negative"),
        ([1.0, 2.0], [1, 1], "single_class", "All 2 rows are positive"),
        ([1.0, np.nan], [0, 1], "nonfinite", "1 of 2 scores are NaN"),
    ],
)
def test_rows_that_decide_nothing_are_an_error(scores, labels, status, message):
    with pytest.raises(ThresholdError, match=message) as error:
        tune_threshold(scores, labels)
    assert error.value.status == status
    assert isinstance(error.value, FreezeError)


def test_a_nan_in_an_ignored_row_is_ignored():
    result = tune_threshold([1.0, 2.0, np.nan], [0, 1, -100], n_boot=0)
    assert (result.n_ignored, result.value) == (1, 1.0)


def test_an_impossible_constraint_is_infeasible_and_says_what_can_be_reached():
    with pytest.raises(ThresholdError, match=r"min_precision=0.9 .* 0\.5 for min_precision.*Relax") as error:
        tune_threshold([1.0, 1.0, 0.0], [1, 0, 0], min_precision=0.9)
    assert error.value.status == "infeasible"


def test_a_constraint_that_only_few_rows_vouch_for_is_infeasible_at_its_confidence():
    scores, labels = [3.0, 2.0, 1.0, 0.0], [1, 1, 0, 0]
    assert tune_threshold(scores, labels, min_precision=0.9, n_boot=0).value == 1.0
    with pytest.raises(
        ThresholdError, match=r"keeps min_precision=0.9 with confidence 0.95.*31 rows must.*more rows"
    ) as error:
        tune_threshold(scores, labels, min_precision=0.9, confidence=0.95)
    assert error.value.status == "infeasible_at_confidence"


def test_constraints_that_exclude_each_other_are_infeasible_together():
    scores, labels = [3.0, 2.0, 1.0, 0.0], [1, 0, 1, 0]
    with pytest.raises(ThresholdError, match="alone: 1 for min_precision, 1 for min_recall"):
        tune_threshold(scores, labels, min_precision=0.9, min_recall=0.9)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "status"),
    [
        ([1.0] * 40, [0, 1] * 20, {}, "constant"),
        ([3.0, 2.0, 1.0, 0.0] * 10, [0, 0, 1, 1] * 10, {}, "anti_correlated"),
        (np.linspace(0, 2, 60), [1] + [0] * 59, {"objective": "accuracy"}, "anti_correlated"),
        (
            [1.0, 2.0, 3.0] * 20,
            [1, 0, 0] * 4 + [0, 1, 0] * 4 + [0, 0, 1] * 4 + [0, 0, 0] * 8,
            {"objective": "accuracy"},
            "predict_none",
        ),
        (
            [1.0, 2.0, 3.0] * 20,
            [0, 1, 1] * 4 + [1, 0, 1] * 4 + [1, 1, 0] * 4 + [1, 1, 1] * 8,
            {"objective": "accuracy"},
            "predict_all",
        ),
        ([1.0, 2.0, 3.0], [0, 0, 1], {}, "low_support"),
        (np.arange(200) / 50, np.arange(200) >= 100, {}, "ok"),
    ],
)
def test_peculiar_rows_are_tuned_and_say_so(scores, labels, options, status):
    result = tune_threshold(scores, labels, **options)
    assert result.status == status
    assert np.isfinite(result.threshold)


def test_predict_none_lies_just_above_the_largest_score_and_predict_all_at_the_smallest():
    # No score tells anything, so the majority wins.
    scores, minority = [0.0, 1.0, 2.0, 3.0] * 10, [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1] + [0] * 24
    none = tune_threshold(scores, minority, objective="accuracy", n_boot=0)
    assert none.threshold == np.nextafter(np.float32(3.0), np.float32(4.0))
    every = tune_threshold(scores, [1 - label for label in minority], objective="accuracy", n_boot=0)
    assert every.threshold == 0.0


# The bootstrap


def noisy(seed, n=1000, share=0.05, separation=2.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) < share * n
    return rng.normal(separation * labels), labels


def f1_on_fresh_rows(threshold, share=0.05, separation=2.0):
    found = share * (1 - NormalDist(separation).cdf(threshold))
    false = (1 - share) * (1 - NormalDist(0.0).cdf(threshold))
    return 2 * found / (share + found + false)


def test_the_out_of_bag_value_takes_away_the_optimism_and_the_interval_covers_the_truth():
    tuned, expected, covered, centred, bagged = [], [], [], [], []
    for seed in range(150):
        result = tune_threshold(*noisy(seed))
        truth = f1_on_fresh_rows(result.threshold)
        tuned.append(result.value - truth)
        expected.append(result.oob_value - truth)
        covered.append(result.interval[0] <= truth <= result.interval[1])
        centred.append(sum(result.interval) / 2 - truth)
        bagged.append(f1_on_fresh_rows(tune_threshold(*noisy(seed), select="bagged").threshold) - truth)
    assert np.mean(tuned) > 0.03
    assert abs(np.mean(expected)) < 0.02
    assert np.mean(covered) > 0.88
    assert abs(np.mean(centred)) < 0.02
    assert np.mean(bagged) > 0.0


def test_the_resampling_does_not_move_the_threshold_and_repeats_itself():
    scores, labels = noisy(0)
    plain, first, second = (tune_threshold(scores, labels, n_boot=n) for n in (0, 200, 200))
    assert plain.threshold == first.threshold
    assert first == second
    assert tune_threshold(scores, labels, seed=1).oob_value != first.oob_value
    assert (plain.oob_value, plain.interval, plain.threshold_interval) == (None, None, None)
    assert plain.optimism is None


def test_the_order_of_the_rows_does_not_matter():
    scores, labels = noisy(3)
    order = np.random.default_rng(0).permutation(len(scores))
    assert tune_threshold(scores, labels) == tune_threshold(scores[order], labels[order])


def test_a_bagged_threshold_is_the_median_of_the_retunings_and_keeps_the_constraint():
    scores, labels = noisy(5)
    result = tune_threshold(scores, labels, select="bagged", min_precision=0.6)
    assert result.threshold_interval[0] <= result.threshold <= result.threshold_interval[1]
    assert result.tp / (result.tp + result.fp) >= 0.6


def test_one_positive_row_gives_no_out_of_bag_value():
    result = tune_threshold(np.arange(60.0), [0] * 59 + [1])
    assert result.oob_value is None
    assert "no estimate of how optimistic" in result.message


def test_a_retuned_threshold_lies_in_the_middle_of_the_gap_between_the_drawn_rows():
    scores = np.arange(-100, 100) + 0.5
    low, high = tune_threshold(scores, scores > 0).threshold_interval
    assert low < -0.5 < 0.5 < high
    assert abs(low + high) <= 1.0


def test_the_interval_stays_where_the_objective_can_be():
    rng = np.random.default_rng(0)
    for _ in range(30):
        result = tune_threshold(rng.normal(size=24), np.arange(24) < 4)
        assert 0.0 <= result.interval[0] <= result.interval[1] <= 1.0


def test_a_half_is_held_to_the_same_bound_as_all_rows():
    """Half of the rows, taken as half of the rows, would need a higher threshold for the same confidence."""
    shifts = []
    for seed in range(8):
        scores, labels = noisy(seed, n=2000, share=0.1)
        result = tune_threshold(scores, labels, max_fpr=0.05, confidence=0.95, objective="recall")
        shifts.append(sum(result.threshold_interval) / 2 - result.threshold)
    assert np.mean(shifts) < 0.017


def test_halves_that_cannot_keep_the_constraint_are_left_out():
    scores, labels = noisy(0, n=200, share=0.2)
    counts = count_scores(scores.astype(np.float32), labels)
    criterion = Criterion(min_precision=0.9, min_recall=0.35)
    everything = np.arange(len(counts.tp))
    resamples = resample(counts, criterion, kept=everything, tuned=150, n_boot=200, seed=0)
    assert 100 <= len(resamples.thresholds) == len(resamples.values) < 200
    strict = Criterion(min_precision=0.9, min_recall=0.6)
    assert resample(counts, strict, kept=everything, tuned=150, n_boot=200, seed=0).oob_counts is None


def test_thinning_the_candidates_changes_neither_the_optimism_nor_the_interval(monkeypatch):
    scores, labels = noisy(11, n=20_000, share=0.3)
    thinned = tune_threshold(scores, labels)
    monkeypatch.setattr("hf_freeze.binary.search.RESOLUTION", 10**9)
    complete = tune_threshold(scores, labels)
    assert len(complete.curve.tp) > 10 * len(thinned.curve.tp)
    assert thinned.oob_value == pytest.approx(complete.oob_value, abs=2e-3)
    assert thinned.interval == pytest.approx(complete.interval, abs=4e-3)


# Warnings


@pytest.mark.filterwarnings("default::hf_freeze.ThresholdWarning")
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0] * 200, [0, 1] * 100, "All 200 scores are the same"),
        ([3.0, 2.0, 1.0, 0.0] * 50, [0, 0, 1, 1] * 50, r"AUROC is 0\.000.*reversed"),
        ([1.0, 2.0] * 500, [0, 1] * 500, "Only 2 distinct scores in 1000 rows"),
        (np.arange(100.0), [0] * 95 + [1] * 5, r"only 5 positive rows.*95 % interval"),
        (np.arange(100.0), [0] * 5 + [1] * 95, "only 5 negative rows"),
        (np.arange(100.0), [0] * 70 + [1] * 30, "only 30 positive rows.*optimistic by about"),
    ],
)
def test_a_result_to_be_doubted_warns_and_names_the_reason(scores, labels, message):
    with pytest.warns(ThresholdWarning, match=message):
        result = tune_threshold(scores, labels)
    assert re.search(message, result.message)


@pytest.mark.filterwarnings("error")
def test_a_result_that_can_be_trusted_does_not_warn():
    assert tune_threshold(np.arange(200.0), [0] * 100 + [1] * 100).message == ""


@pytest.mark.filterwarnings("error")
def test_an_auroc_just_below_a_half_is_chance_and_not_reported():
    result = tune_threshold(np.arange(200), [1, 0] * 100)
    assert 0.49 < result.auroc < 0.5
    assert result.status != "anti_correlated"


# Declarations that cannot be meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "auroc"}, "objective='auroc'.*no threshold can maximise it"),
        ({"objective": "f2"}, "objective='f2'"),
        ({"beta": 2.0}, "beta=2.0 has no effect"),
        ({"objective": "fbeta", "beta": 0.0}, "beta=0.0.*positive number"),
        ({"objective": "cost"}, "needs costs="),
        ({"costs": {"fp": 1, "fn": 1}}, "costs= has no effect"),
        ({"objective": "cost", "costs": {"fp": 0, "fn": 1}}, "two positive numbers"),
        ({"objective": "cost", "costs": {"fp": 1, "fn": -1}}, "two positive numbers"),
        ({"objective": "cost", "costs": {"fp": 1}}, "two positive numbers"),
        ({"objective": "recall"}, "Add a constraint, such as min_precision"),
        ({"objective": "precision"}, "Add a constraint, such as min_recall"),
        ({"min_precision": 1.5}, "min_precision=1.5.*from 0 to 1"),
        ({"min_recall": -0.1}, "min_recall=-0.1.*from 0 to 1"),
        ({"max_fpr": 2}, "max_fpr=2.*from 0 to 1"),
        ({"confidence": 0.95}, "confidence= .*min_precision, min_recall or max_fpr"),
        ({"min_recall": 0.5, "confidence": 95}, "confidence=95.*from 0.5 to below 1"),
        ({"select": "best"}, "select='best'"),
        ({"n_boot": -1}, "n_boot=-1 is negative"),
        ({"select": "bagged", "n_boot": 0}, "but n_boot=0"),
        ({"objective": lambda tp, fp, fn, tn: 1.0}, "returned shape"),
        ({"objective": lambda tp, fp, fn, tn: tp * np.nan}, "objective '<lambda>' is not finite at any threshold"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_an_error(options, message):
    with pytest.raises(FreezeError, match=message):
        tune_threshold([0.0, 1.0], [0, 1], **options)


def test_scores_and_labels_of_different_length_are_an_error():
    with pytest.raises(FreezeError, match="3 scores but 2 labels"):
        tune_threshold([0.0, 1.0, 2.0], [0, 1])


def test_recall_under_a_precision_constraint_finds_the_most():
    scores, labels = noisy(2)
    result = tune_threshold(scores, labels, objective="recall", min_precision=0.5, n_boot=0)
    assert result.tp / (result.tp + result.fp) >= 0.5
    assert result.value == result.tp / result.n_pos


def test_a_users_function_may_divide_by_zero_where_nothing_is_predicted():
    result = tune_threshold([0.0, 1.0, 2.0], [0, 1, 1], objective=lambda tp, fp, fn, tn: tp / (tp + fp), n_boot=0)
    assert result.value == 1.0


# The result


@pytest.mark.parametrize("options", [{}, {"n_boot": 0}, {"min_recall": 0.5, "objective": custom}])
def test_a_result_survives_json(tmp_path, options):
    result = tune_threshold(*noisy(0), **options)
    result.save(tmp_path / "t.json")
    loaded = ThresholdResult.load(tmp_path / "t.json")
    assert loaded == result
    assert loaded.curve == result.curve
    values = json.loads((tmp_path / "t.json").read_text())
    assert values["probability"] == pytest.approx(1 / (1 + np.exp(-result.threshold)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"threshold": 1.0', "is not JSON"),
        ("[1.0]", r"holds \[1\.0\], not a JSON object"),
        ('{"value": 1.0}', "no threshold"),
        ('{"threshold": 1.0, "margin": 1.0}', "unknown keys \\['margin'\\]"),
        ('{"threshold": NaN}', "threshold=nan must be a finite number"),
        ('{"threshold": 1.0, "positive": 2}', "positive=2 must be 0 or 1"),
    ],
)
def test_a_file_that_is_no_result_is_an_error(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(FreezeError, match=message):
        ThresholdResult.load(tmp_path / "t.json")


def test_a_result_reads_as_a_sentence():
    result = tune_threshold(np.arange(200.0), [0] * 100 + [1] * 100)
    assert str(result).startswith("threshold 99.5 (probability 1): f1 1.0000 on the 200 rows tuned on, ")
    assert str(ThresholdResult(threshold=0.0)) == "threshold 0 (probability 0.5); given"
    assert result.confusion_matrix == ((100, 0), (0, 100))
    assert result.optimism == pytest.approx(result.value - result.oob_value)
