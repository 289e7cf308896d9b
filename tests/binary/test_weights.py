"""Weighted rows are counted as scikit-learn counts them, and a share of positives is a weight per class."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn import metrics as sk

from hf_freeze import FreezeError, ThresholdError, ThresholdResult, plot_threshold, tune_threshold
from hf_freeze.binary.counts import count_scores
from hf_freeze.binary.resampling import halves
from tests.binary import brute_force

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")

VALUES = {
    "f1": lambda y, called, w: sk.f1_score(y, called, sample_weight=w, zero_division=0),
    "mcc": lambda y, called, w: sk.matthews_corrcoef(y, called, sample_weight=w),
    "balanced_accuracy": lambda y, called, w: sk.balanced_accuracy_score(y, called, sample_weight=w),
    "accuracy": lambda y, called, w: sk.accuracy_score(y, called, sample_weight=w),
    "recall": lambda y, called, w: sk.recall_score(y, called, sample_weight=w),
}


def tied_rows(seed, *, infinite=False):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 30))
    labels = rng.random(n) < 0.4
    labels[:2] = [True, False]
    scores = rng.integers(-3, 4, n).astype(np.float32) / 2 + labels
    if infinite:
        scores[rng.random(n) < 0.2] = rng.choice([-np.inf, np.inf])
    weights = rng.choice([0.0, 0.1, 0.5, 1.0, 2.5, 40.0], n)
    weights[:2] = 0.3
    return scores, labels, weights


def overlapping(n=3000, share=0.15, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < share
    return rng.normal(2.0 * labels).astype(np.float32), labels, rng.exponential(size=n) + 0.05


@pytest.mark.parametrize("seed", range(0, 300, 20))
def test_no_threshold_is_better_for_weighted_rows_than_the_one_found(seed):
    for case in range(seed, seed + 20):
        scores, labels, weights = tied_rows(case, infinite=case % 3 == 0)
        name = [*VALUES][case % 4]
        at = [None, 0.02, 0.7][case % 5 % 3]
        found = tune_threshold(scores, labels, objective=name, sample_weight=weights, at_prevalence=at, n_boot=0)
        w = at_share(labels, weights, at)
        splits = {tuple(scores >= np.float32(t)) for t in brute_force.candidates(scores)}
        values = [VALUES[name](labels, np.array(called), w) for called in splits]
        assert found.value == pytest.approx(max(values), abs=1e-9)
        called = scores >= np.float32(found.threshold)
        assert found.value == pytest.approx(VALUES[name](labels, called, w), abs=1e-9)
        assert found.weighted_counts == pytest.approx(flat(sk.confusion_matrix(labels, called, sample_weight=w)))
        kept = weights > 0
        assert (found.tp, found.fp, found.fn, found.tn) == flat(sk.confusion_matrix(labels[kept], called[kept]))


def at_share(labels, weights, share):
    if share is None:
        return weights
    of_pos, total = weights[labels].sum(), weights.sum()
    return weights * np.where(labels, share * total / of_pos, (1 - share) * total / (total - of_pos))


def flat(matrix):
    (tn, fp), (fn, tp) = matrix
    return tp, fp, fn, tn


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_whole_weights_choose_as_repeated_rows_do(seed):
    for case in range(seed, seed + 20):
        scores, labels, _ = tied_rows(case)
        weights = np.random.default_rng(case).integers(0, 5, len(labels))
        weights[:2] = 3
        limits = {} if case % 2 else {"max_fpr": 0.4}
        weighted = tune_threshold(scores, labels, sample_weight=weights, n_boot=0, **limits)
        repeated = tune_threshold(np.repeat(scores, weights), np.repeat(labels, weights), n_boot=0, **limits)
        assert (weighted.threshold, weighted.plateau) == (repeated.threshold, repeated.plateau)
        assert (weighted.value, weighted.auroc) == (repeated.value, repeated.auroc)
        assert weighted.counts == repeated.counts
        assert weighted.prevalence == repeated.prevalence


def test_weights_of_one_change_nothing_of_the_result():
    scores, labels, _ = overlapping()
    plain, ones = (tune_threshold(scores, labels, sample_weight=w) for w in (None, np.ones(len(labels))))
    assert plain.threshold == ones.threshold
    assert plain.oob_value == pytest.approx(ones.oob_value, abs=0.01)
    assert plain.interval == pytest.approx(ones.interval, abs=0.03)


def test_ranking_figures_of_weighted_rows_are_those_of_scikit_learn():
    scores, labels, weights = overlapping()
    scores = scores.round(1)
    counts = count_scores(scores, labels, weights)
    assert counts.auroc() == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=weights))
    assert counts.average_precision() == pytest.approx(
        sk.average_precision_score(labels, scores, sample_weight=weights)
    )


def test_a_prevalence_may_be_any_number():
    scores, labels, _ = overlapping(300)
    assert tune_threshold(scores, labels, at_prevalence=Fraction(1, 50)) == tune_threshold(
        scores, labels, at_prevalence=0.02
    )


def test_a_limit_that_nine_of_ten_rows_reach_holds_at_any_prevalence():
    scores = np.arange(30, dtype=np.float32)
    labels = scores >= 20
    labels[[3, 20]] = labels[[20, 3]]
    for share in (0.01, 0.1, 0.3, 0.77):
        found = tune_threshold(scores, labels, objective="precision", min_recall=0.9, at_prevalence=share, n_boot=0)
        assert found.tp == 9


def test_what_is_promised_at_a_prevalence_is_what_is_got_there():
    scores, labels, _ = overlapping(6000, share=0.3)
    fresh, fresh_labels, _ = overlapping(400_000, share=0.02, seed=1)
    promised = tune_threshold(scores, labels, at_prevalence=0.02)
    unaware = tune_threshold(scores, labels)
    got, got_unaware = (sk.f1_score(fresh_labels, fresh >= np.float32(t.threshold)) for t in (promised, unaware))
    assert promised.prevalence == pytest.approx(0.02)
    assert promised.oob_value == pytest.approx(got, abs=0.05)
    assert promised.interval[0] < got < promised.interval[1]
    assert unaware.value - got_unaware > 0.2
    assert got > got_unaware + 0.05


@pytest.mark.parametrize("weights", [[2.0] * 8, [1.0, 9.0], [0.1, 0.2, 0.4, 5.0, 1.0, 1.0, 1.0]])
def test_halves_of_weighted_rows_have_the_mean_and_the_variance_of_halves_drawn_row_by_row(weights):
    weights = np.array(weights)
    passed, squares = (np.array([values.sum(), 0.0]) for values in (weights, weights**2))
    drawn, left_out = (
        np.concatenate([halves(passed, squares, np.random.default_rng(s), 200)[i][0] for s in range(200)])
        for i in range(2)
    )
    assert drawn.mean() == pytest.approx(weights.sum() / 2, rel=0.02)
    assert drawn.var() == pytest.approx((weights**2).sum() / 4, rel=0.06)
    assert drawn + left_out == pytest.approx(weights.sum())


def test_a_limit_at_a_confidence_is_stricter_for_rare_positives():
    scores, labels, _ = overlapping(4000, share=0.5)
    limits = {"objective": "recall", "min_precision": 0.8, "confidence": 0.95}
    plain, half, rare = (
        tune_threshold(scores, labels, at_prevalence=at, **limits) for at in (None, float(labels.mean()), 0.2)
    )
    assert plain.threshold == half.threshold < rare.threshold
    tp, fp, *_ = rare.counts
    assert tp / (tp + fp) > 0.82


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, np.nan, np.inf, True, "0.1", [0.1]])
def test_a_prevalence_that_is_no_share_is_refused(share):
    with pytest.raises(FreezeError, match="at_prevalence=.*between 0 and 1"):
        tune_threshold([0.0, 1.0], [0, 1], at_prevalence=share)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, -1.0, 1.0], "has -1.0"),
        ([1.0, np.nan, 1.0], "has nan"),
        ([1.0, np.inf, 1.0], "has inf"),
        ([1e-40, 1.0, 1e40], r"has 1e-40, 1e\+40"),
        ([1.0, 1.0], r"shape \(2,\) for 3 rows"),
        (1.0, r"shape \(\) for 3 rows"),
        ([[1.0, 2.0]] * 3, r"shape \(3, 2\) for 3 rows"),
        (["a", "b", "c"], "are not numbers"),
        ([1.0, None, 1.0], "has nan"),
        ([1.0, 1j, 1.0], "not numbers"),
        (np.ma.masked_array([1.0, 2.0, 1.0], [False, True, False]), "^Weights are a masked array"),
    ],
)
def test_weights_that_weigh_nothing_that_is_known_are_refused(weights, said):
    with pytest.raises(FreezeError, match=said):
        tune_threshold([0.0, 1.0, 2.0], [0, 1, 1], sample_weight=weights)


@pytest.mark.parametrize(("weights", "status"), [([0, 0, 0], "empty"), ([0, 1, 1], "single_class")])
def test_weights_that_leave_no_row_of_a_class_are_said(weights, status):
    with pytest.raises(ThresholdError) as raised:
        tune_threshold([0.0, 1.0, 2.0], [0, 1, 1], sample_weight=weights)
    assert raised.value.status == status


def test_rows_of_weight_0_and_of_label_minus_100_may_have_any_score_and_any_weight():
    scores, labels, weights = overlapping(300)
    without = tune_threshold(scores, labels, sample_weight=weights)
    scores, labels = np.append(scores, [np.nan, 5.0]), np.append(labels.astype(int), [1, -100])
    found = tune_threshold(scores, labels, sample_weight=np.append(weights, [0.0, np.nan]))
    assert found.n_ignored == 2
    assert (found.threshold, found.oob_value) == (without.threshold, without.oob_value)


@pytest.mark.parametrize(("heavy", "light"), [(1e30, 1e-30), (1.0, 1e-12), (1e-30, 1e-30)])
@pytest.mark.parametrize("share", [None, 1e-9, 0.999999])
def test_weights_of_any_size_give_finite_figures(heavy, light, share):
    scores, labels, _ = overlapping(200)
    weights = np.where(np.arange(200) % 7 == 0, heavy, light)
    found = tune_threshold(scores, labels, sample_weight=weights, at_prevalence=share, min_recall=0.1)
    assert np.isfinite([found.value, found.auroc, found.prevalence, *found.counts]).all()


def test_a_weighted_result_is_read_back_as_it_was_saved(tmp_path):
    scores, labels, weights = overlapping(300)
    found = tune_threshold(scores, labels, sample_weight=weights, at_prevalence=0.05)
    found.save(tmp_path / "t.json")
    read = ThresholdResult.load(tmp_path / "t.json")
    assert read == found
    assert read.curve == found.curve


def test_a_plot_of_a_weighted_result_marks_the_weighted_figures():
    pytest.importorskip("matplotlib")
    scores, labels, _ = overlapping(1000)
    found = tune_threshold(scores, labels, at_prevalence=0.01)
    _, _, precision_recall = plot_threshold(found).axes
    chosen = next(line for line in precision_recall.lines if line.get_label() == "chosen")
    tp, fp, fn, _ = found.counts
    assert (*chosen.get_xdata(), *chosen.get_ydata()) == pytest.approx((tp / (tp + fn), tp / (tp + fp)))
    assert "share of positives 0.01" in [line.get_label() for line in precision_recall.lines]
