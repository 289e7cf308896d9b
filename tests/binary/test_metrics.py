"""compute_metrics: scikit-learn's figures, finite whatever happens, and a threshold that stays when it must."""

import math

import evaluate
import numpy as np
import pytest
import torch
from datasets import Features, Value
from sklearn import metrics as sk
from transformers import EvalPrediction

from hf_freeze import BinaryClassificationMetrics, FreezeError, ThresholdResult, ThresholdWarning, tune_threshold

pytestmark = pytest.mark.filterwarnings("ignore:Accuracy .* hides a recall")


def rows(n=600, share=0.3, seed=0, separation=2.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < share).astype(np.int64)
    logits = rng.normal(size=(n, 2)).astype(np.float32)
    logits[:, 1] += separation * labels - 2.5
    return logits, labels


def prediction(logits, labels):
    return EvalPrediction(predictions=logits, label_ids=labels)


def all_finite(figures):
    return all(type(value) is float and math.isfinite(value) for value in figures.values())


def test_the_figures_are_those_of_scikit_learn():
    logits, labels = rows()
    metrics = BinaryClassificationMetrics()
    figures = metrics(prediction(logits, labels))
    margin = logits[:, 1] - logits[:, 0]
    predicted, probability = margin >= metrics.threshold, 1 / (1 + np.exp(-margin.astype(float)))
    tn, fp, fn, tp = sk.confusion_matrix(labels, predicted).ravel().tolist()
    expected = {
        "f1": sk.f1_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted),
        "recall": sk.recall_score(labels, predicted),
        "specificity": sk.recall_score(labels, predicted, pos_label=0),
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "mcc": sk.matthews_corrcoef(labels, predicted),
        "auroc": sk.roc_auc_score(labels, margin),
        "average_precision": sk.average_precision_score(labels, margin),
        "brier": sk.brier_score_loss(labels, probability),
        "f1_at_half": sk.f1_score(labels, margin >= 0),
        "threshold": tune_threshold(logits, labels).threshold,
        "threshold_probability": 1 / (1 + np.exp(-metrics.threshold)),
        "f1_oob": metrics.result.oob_value,
        "objective": sk.f1_score(labels, predicted),
        "objective_oob": metrics.result.oob_value,
        "n_pos": labels.sum(),
        "n_neg": (1 - labels).sum(),
        "n_ignored": 0,
        "n_nonfinite": 0,
    } | {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    error = figures.pop("expected_calibration_error")
    assert figures == pytest.approx(expected, abs=1e-6)
    assert all_finite(figures)
    assert figures["f1"] > figures["f1_at_half"] + 0.1
    assert error == pytest.approx(calibration_error(labels, probability), abs=1e-6)


def calibration_error(labels, probability):
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (probability >= low) & (probability < low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(labels[inside].mean() - probability[inside].mean())
    return total


def test_tied_scores_are_counted_as_scikit_learn_counts_them():
    logits, labels = rows()
    margin = np.round(logits[:, 1] - logits[:, 0])
    figures = BinaryClassificationMetrics(n_boot=0)(prediction(margin, labels))
    assert figures["auroc"] == pytest.approx(sk.roc_auc_score(labels, margin))
    assert figures["average_precision"] == pytest.approx(sk.average_precision_score(labels, margin))


def test_other_objectives_report_their_own_value_and_what_to_expect_of_it():
    logits, labels = rows()
    metrics = BinaryClassificationMetrics("cost", costs={"fp": 1.0, "fn": 5.0})
    figures = metrics(prediction(logits, labels))
    assert figures["objective"] == pytest.approx(-(figures["fp"] + 5 * figures["fn"]) / 600)
    assert figures["objective_oob"] == metrics.result.oob_value <= figures["objective"]
    assert 0 < figures["f1_oob"] < 1


def test_without_resampling_nothing_is_claimed_about_fresh_rows():
    figures = BinaryClassificationMetrics(n_boot=0)(prediction(*rows()))
    assert "f1_oob" not in figures
    assert "objective_oob" not in figures


# Batches


@pytest.mark.parametrize("as_tensor", [np.asarray, torch.as_tensor])
def test_batch_by_batch_gives_what_all_at_once_gives_and_keeps_only_margins(as_tensor):
    logits, labels = rows(601)
    whole = BinaryClassificationMetrics()(prediction(logits, labels))
    metrics = BinaryClassificationMetrics()
    hidden = np.zeros((64, 8, 8))
    for start in range(0, 601, 64):
        part = slice(start, start + 64)
        batch = prediction((as_tensor(logits[part]), hidden), as_tensor(labels[part]))
        last = start + 64 >= 601
        figures = metrics(batch, compute_result=last)
        kept = sum(held.margin.nbytes + held.positive.nbytes for held in metrics._batches)
        assert kept == (0 if last else (start + 64) * 5)
        assert figures == {} or last
    assert figures == whole


def test_batches_of_an_evaluation_that_was_aborted_do_not_leak_into_the_next():
    metrics = BinaryClassificationMetrics()
    metrics(prediction(*rows(100)), compute_result=False)
    with metrics.evaluation("eval", in_training=True):
        figures = metrics(prediction(*rows(601)), compute_result=True)
    assert figures["n_pos"] + figures["n_neg"] == 601


def test_a_list_of_batches_and_a_pair_are_read_as_well():
    logits, labels = rows()
    whole = BinaryClassificationMetrics()((logits, labels))
    lists = prediction([logits[:100], logits[100:]], [labels[:100], labels[100:]])
    assert BinaryClassificationMetrics()(lists) == whole


# Who may tune


def test_a_plain_call_tunes_until_frozen():
    metrics = BinaryClassificationMetrics()
    metrics(prediction(*rows(seed=0)))
    first = metrics.threshold
    metrics(prediction(*rows(seed=1)))
    second = metrics.threshold
    assert first != second
    metrics.freeze()
    figures = metrics(prediction(*rows(seed=2)))
    assert metrics.threshold == figures["threshold"] == second
    assert not metrics.tunes


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_an_evaluation_that_does_not_tune_reports_nothing_out_of_bag():
    applied = BinaryClassificationMetrics(threshold=-0.5)
    tuned = BinaryClassificationMetrics()
    tuned(prediction(*rows()))
    with tuned.applying():
        for figures in (applied(prediction(*rows())), applied((NAN, np.arange(100) % 2)), tuned(prediction(*rows()))):
            assert not [name for name in figures if "oob" in name]
            assert "objective" in figures


@pytest.mark.parametrize(
    ("tune_on", "prefix", "in_training", "tunes"),
    [
        ("eval", "eval", True, True),
        ("eval", "eval", False, False),
        ("eval", "test", True, False),
        ("eval", "eval_other", True, False),
        ("valid", "eval_valid", True, True),
        ("valid", "eval_valid", False, False),
        ("valid", "eval_hard", True, False),
        ("valid", "eval", True, False),
    ],
)
def test_a_trainer_tunes_only_in_training_and_only_on_the_designated_set(tune_on, prefix, in_training, tunes):
    metrics = BinaryClassificationMetrics(tune_on=tune_on)
    with metrics.evaluation(prefix, in_training=in_training):
        assert metrics.tunes is tunes
        metrics(prediction(*rows()))
    assert (metrics.result is not None) is tunes


def test_evaluations_nest_and_end_also_when_they_fail():
    """Trainer.evaluate on a dict of sets calls itself for each of them."""
    metrics = BinaryClassificationMetrics(tune_on="valid")
    with metrics.evaluation("eval", in_training=True):
        with metrics.evaluation("eval_valid", in_training=True):
            assert metrics.tunes
        assert not metrics.tunes
        with pytest.raises(RuntimeError), metrics.evaluation("eval_valid", in_training=True):
            raise RuntimeError
        assert not metrics.tunes
    assert metrics.tunes


def test_an_explicit_call_tunes_or_applies_whatever_the_trainer_says():
    metrics = BinaryClassificationMetrics()
    with metrics.tuning(), metrics.evaluation("eval", in_training=False):
        assert metrics.tunes
        with metrics.applying():
            assert not metrics.tunes
        assert metrics.tunes
    with metrics.applying(), metrics.evaluation("eval", in_training=True):
        assert not metrics.tunes
    with metrics.evaluation("eval", in_training=True):
        assert metrics.tunes
    metrics.freeze()
    with pytest.raises(FreezeError, match=r"freeze\(\) ended tuning"), metrics.tuning():
        pass
    with metrics.evaluation("eval", in_training=True):
        assert not metrics.tunes


def test_a_threshold_from_a_checkpoint_replaces_the_one_in_use():
    metrics = BinaryClassificationMetrics()
    metrics(prediction(*rows()))
    stored = ThresholdResult(threshold=-2.0)
    metrics.use(stored)
    assert (metrics.threshold, metrics.result) == (-2.0, stored)
    assert metrics.tunes
    metrics.use(0.1)
    assert metrics.threshold == float(np.float32(0.1))
    assert metrics.result == ThresholdResult(threshold=float(np.float32(0.1)))
    metrics.use(None)
    assert (metrics.threshold, metrics.result) == (0.0, None)


@pytest.mark.parametrize("threshold", [-0.75, ThresholdResult(threshold=-0.75)])
def test_a_given_threshold_is_applied_and_never_tuned(threshold):
    metrics = BinaryClassificationMetrics(threshold=threshold)
    figures = metrics(prediction(*rows()))
    assert figures["threshold"] == metrics.result.threshold == -0.75
    assert not metrics.tunes
    assert metrics.is_given
    assert not BinaryClassificationMetrics().is_given


# Labels


def test_the_positive_class_may_be_named():
    logits, labels = rows()
    by_name = BinaryClassificationMetrics(positive="ham", id2label={0: "ham", 1: "spam"})
    by_id = BinaryClassificationMetrics(positive=0)
    figures = by_name(prediction(logits, labels))
    assert figures == by_id(prediction(logits, labels))
    assert figures["n_pos"] == (labels == 0).sum()
    assert by_name.result.positive == by_id.result.positive == 0
    as_names = np.where(labels == 0, "ham", "spam")
    assert BinaryClassificationMetrics(positive="ham", id2label={0: "ham", 1: "spam"})((logits, as_names)) == figures


def test_names_come_from_the_models_config(make_model):
    metrics = BinaryClassificationMetrics(positive="ham")
    with pytest.raises(FreezeError, match="positive='ham' is a name.*id2label"):
        metrics(prediction(*rows()))
    metrics.prepare(make_model(id2label={0: "ham", 1: "spam"}))
    assert metrics(prediction(*rows()))["n_pos"] == (rows()[1] == 0).sum()


def test_names_that_the_user_gave_are_kept(make_model):
    metrics = BinaryClassificationMetrics(positive="ham", id2label={0: "spam", 1: "ham"})
    metrics.prepare(make_model(id2label={0: "ham", 1: "spam"}))
    assert metrics(prediction(*rows()))["n_pos"] == rows()[1].sum()


def test_a_model_without_a_config_is_accepted():
    BinaryClassificationMetrics().prepare(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "auroc"}, "objective='auroc'.*no threshold can maximise it"),
        ({"objective": "cost", "costs": {"fp": -1, "fn": 1}}, "costs=.*two positive numbers"),
        ({"positive": 2}, "positive=2"),
        ({"positive": "eggs", "id2label": {0: "ham", 1: "spam"}}, r"positive='eggs'.*\['ham', 'spam'\]"),
        ({"id2label": {0: "ham", 1: "spam", 2: "eggs"}}, "id2label=.*two classes"),
        ({"threshold": "best"}, "threshold='best'"),
        ({"threshold": float("nan")}, "threshold=nan.*finite number"),
        ({"positive": 0, "threshold": ThresholdResult(threshold=1.0)}, "tuned with positive=1, but positive=0"),
    ],
)
def test_a_declaration_that_cannot_be_meant_fails_at_construction(arguments, message):
    with pytest.raises(FreezeError, match=message):
        BinaryClassificationMetrics(**arguments)


def test_a_model_that_cannot_be_meant_fails_before_training(make_model):
    with pytest.raises(FreezeError, match="has 3 labels"):
        BinaryClassificationMetrics().prepare(make_model(num_labels=3))
    with pytest.raises(FreezeError, match=r"positive='eggs'.*\['ham', 'spam'\]"):
        BinaryClassificationMetrics(positive="eggs").prepare(make_model(id2label={0: "ham", 1: "spam"}))
    given = BinaryClassificationMetrics(positive="ham", threshold=ThresholdResult(threshold=1.0))
    with pytest.raises(FreezeError, match="tuned with positive=1"):
        given.prepare(make_model(id2label={0: "ham", 1: "spam"}))


@pytest.mark.parametrize(
    ("tune_on", "eval_sets", "message"),
    [
        ("eval", ["valid", "hard"], r"not among the eval sets \['valid', 'hard'\]"),
        ("valid", None, "the eval set has no name"),
    ],
)
def test_a_set_to_tune_on_that_does_not_exist_fails_before_training(make_model, tune_on, eval_sets, message):
    with pytest.raises(FreezeError, match=message):
        BinaryClassificationMetrics(tune_on=tune_on).prepare(make_model(), eval_sets=eval_sets)
    BinaryClassificationMetrics(tune_on=tune_on, threshold=0.0).prepare(make_model(), eval_sets=eval_sets)
    BinaryClassificationMetrics(tune_on="valid").prepare(make_model(), eval_sets=["valid", "hard"])


# Degenerate evaluations (DESIGN 7.1): finite, kept, and said once


EASY = rows(separation=12.0)


def tuned_before(**arguments):
    metrics = BinaryClassificationMetrics(**arguments)
    metrics(prediction(*EASY))
    return metrics


NAN = np.array([[0.0, np.nan], [0.0, 1.0]] * 50, np.float32)
DEGENERATE = {
    "no rows": (np.zeros((0, 2)), np.zeros(0, int), {}, "no labelled rows"),
    "all ignored": (np.zeros((4, 2)), np.full(4, -100), {}, "no labelled rows"),
    "negatives only": (rows()[0], np.zeros(600, int), {}, "All 600 rows are negative"),
    "positives only": (rows()[0], np.ones(600, int), {}, "All 600 rows are positive"),
    "constant": (np.zeros((200, 2)), np.arange(200) % 2, {}, "All 200 scores are the same"),
    "NaN": (NAN, np.arange(100) % 2, {}, "50 of 100 scores are NaN"),
    "infeasible": (np.arange(200) % 7.0, np.arange(200) % 2, {"min_precision": 0.8}, "No threshold keeps"),
    "unvouched": (
        np.arange(200.0),
        np.arange(200) >= 140,
        {"min_precision": 0.8, "min_recall": 0.95, "confidence": 0.99},
        "with confidence 0.99",
    ),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_a_degenerate_evaluation_is_finite_keeps_the_threshold_and_warns_once(case):
    logits, labels, arguments, message = DEGENERATE[case]
    metrics = tuned_before(**arguments)
    before = metrics.result
    assert before is not None
    with pytest.warns(ThresholdWarning, match=message):
        figures = metrics(prediction(logits, labels))
    assert all_finite(figures)
    assert set(figures) == set(tuned_before(**arguments)(prediction(*EASY)))
    assert metrics.result is before
    assert figures["threshold"] == before.threshold
    assert metrics(prediction(logits, labels)) == figures  # a second warning would be an error here


@pytest.mark.parametrize("case", DEGENERATE)
def test_before_anything_was_tuned_a_degenerate_evaluation_is_labelled_at_margin_zero(case):
    logits, labels, arguments, message = DEGENERATE[case]
    metrics = BinaryClassificationMetrics(**arguments)
    with pytest.warns(ThresholdWarning, match=message):
        figures = metrics(prediction(logits, labels))
    assert all_finite(figures)
    assert (figures["threshold"], metrics.result) == (0.0, None)


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_a_threshold_that_was_not_adopted_says_nothing_about_fresh_rows():
    figures = tuned_before()(prediction(np.full((200, 2), 9.0), np.arange(200) % 2))
    assert figures["f1_oob"] == figures["f1"]
    assert figures["objective_oob"] == figures["objective"] == figures["f1"]


@pytest.mark.parametrize("case", ["no rows", "negatives only", "NaN", "infeasible", "unvouched"])
@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
def test_no_checkpoint_wins_by_an_evaluation_that_failed(case):
    logits, labels, arguments, _ = DEGENERATE[case]
    assert BinaryClassificationMetrics(**arguments)(prediction(logits, labels))["objective"] == 0.0
    costs = BinaryClassificationMetrics("cost", costs={"fp": 1.0, "fn": 2.0}, **arguments)
    figures = costs(prediction(logits, labels))
    assert figures["objective"] == pytest.approx(
        -(figures["n_neg"] + 2 * figures["n_pos"]) / max(figures["n_neg"] + figures["n_pos"], 1)
    )


def test_nan_scores_leave_no_figure_to_be_proud_of():
    with pytest.warns(ThresholdWarning, match="NaN"):
        figures = BinaryClassificationMetrics()(prediction(NAN, np.arange(100) % 2))
    assert {name for name, value in figures.items() if value} == {
        "n_pos", "n_neg", "n_nonfinite", "threshold_probability"
    }  # fmt: skip
    assert figures["n_nonfinite"] == 50


def test_infinite_scores_are_scores():
    labels = np.arange(200) % 2
    metrics = BinaryClassificationMetrics()
    figures = metrics(prediction(np.where(labels == 1, np.inf, -np.arange(200.0)), labels))
    assert all_finite(figures)
    assert (figures["f1"], figures["brier"] < 0.5) == (1.0, True)


def test_few_positives_warn_with_the_size_of_the_optimism():
    logits, labels = rows(share=0.04)
    with pytest.warns(ThresholdWarning, match=r"only \d+ positive rows.*optimistic by about 0\.\d+"):
        BinaryClassificationMetrics()(prediction(logits, labels))


def test_one_positive_row_promises_nothing_about_fresh_rows():
    labels = np.zeros(100, int)
    labels[3] = 1
    with pytest.warns(ThresholdWarning, match="only 1 positive row:.*no estimate"):
        figures = BinaryClassificationMetrics()(prediction(np.arange(100.0), labels))
    assert figures["f1_oob"] == figures["objective_oob"] == 0.0


def test_a_reversed_label_is_asked_about():
    logits, labels = rows()
    with pytest.warns(ThresholdWarning, match=r"AUROC is 0\.\d+.*positive label reversed"):
        BinaryClassificationMetrics()(prediction(-logits, labels))


def test_a_recall_far_below_the_accuracy_is_named():
    labels = np.arange(1000) < 100
    scores = np.where(labels, np.linspace(-1.0, 0.2, 1000), -1.0 - np.linspace(0, 1, 1000))
    with pytest.warns(ThresholdWarning, match=r"Accuracy 0\.9\d+ hides a recall of 0\.\d+: \d+ of 100 positive"):
        BinaryClassificationMetrics(threshold=-0.9)(prediction(scores, labels))


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_one_logit_that_trains_as_regression_is_named(make_model, problem_type):
    with pytest.warns(ThresholdWarning, match="trains as regression"):
        BinaryClassificationMetrics().prepare(make_model(num_labels=1, problem_type=problem_type))
    BinaryClassificationMetrics().prepare(make_model(num_labels=1, problem_type="multi_label_classification"))


@pytest.mark.parametrize("earlier", [None, np.linspace(-1.0, 1.0, 100), np.linspace(0.45, 0.55, 100)])
@pytest.mark.parametrize("batch", [100, 10])
def test_probabilities_are_refused_at_every_evaluation_whatever_came_before(earlier, batch):
    """An untrained model that ends in a sigmoid gives 0.5 for every row: what it is shows only later."""
    labels = np.arange(100) % 2
    metrics = BinaryClassificationMetrics(n_boot=0)
    if earlier is not None:
        metrics(prediction(earlier, labels))
    before = metrics.result
    for scores, message in ((np.linspace(0.01, 0.99, 100), "these are probabilities"), (labels, "these are class ids")):
        with pytest.raises(FreezeError, match=message):
            for start in range(0, 100, batch):
                part = slice(start, start + batch)
                metrics(prediction(scores[part], labels[part]), compute_result=start + batch == 100)
        with pytest.raises(FreezeError, match=message):
            metrics(prediction(np.split(scores, 100 // batch), np.split(labels, 100 // batch)))
    assert metrics.result is before
    accepted = BinaryClassificationMetrics(head="probability", n_boot=0)
    assert accepted(prediction(np.linspace(0.01, 0.99, 100), labels))["f1_at_half"] > 0


def test_more_than_two_classes_are_an_error():
    with pytest.raises(FreezeError, match="are not binary"):
        BinaryClassificationMetrics()(prediction(np.zeros((4, 3)), np.zeros(4, int)))


# evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        hits = np.mean(np.array(predictions) == np.array(references))
        return {"accuracy": hits, "share": 1.0, "matrix": np.eye(2), "undefined": float("nan")}


def test_evaluate_metrics_run_on_the_tuned_labels():
    metrics = BinaryClassificationMetrics(extra=[Accuracy(), shares])
    with pytest.warns(ThresholdWarning, match=r"\['matrix'\].*not single numbers"):
        figures = metrics(prediction(*rows()))
    assert figures["accuracy_accuracy"] == figures["accuracy"]
    assert figures["shares_share"] == (figures["tp"] + figures["fp"]) / 600
    assert figures["undefined"] == 0.0
    assert all_finite(figures)


def test_extra_names_stay_when_the_scores_are_nan():
    metrics = BinaryClassificationMetrics(extra=[shares])
    with pytest.warns(ThresholdWarning, match="NaN"):
        assert metrics(prediction(NAN, np.arange(100) % 2))["share"] == 0.0


def shares(predictions, references):
    return {"share": predictions.mean()}


def test_the_metric_is_an_evaluate_metric_that_combines_and_works_offline(tmp_path):
    logits, labels = rows()
    metrics = BinaryClassificationMetrics()
    expected = BinaryClassificationMetrics()(prediction(logits, labels))
    assert metrics.as_evaluate_metric().compute(predictions=logits, references=labels) == expected
    margin = (logits[:, 1] - logits[:, 0]).tolist()
    own = metrics.as_evaluate_metric()
    for start in range(0, 600, 250):
        own.add_batch(predictions=margin[start : start + 250], references=labels[start : start + 250])
    assert own.compute() == expected
    both = evaluate.combine(
        [metrics.as_evaluate_metric(), BinaryClassificationMetrics(threshold=0.0).as_evaluate_metric()]
    )
    combined = both.compute(predictions=logits, references=labels)
    assert combined["binary_classification_metric_0_f1"] == expected["f1"]
    assert combined["binary_classification_metric_1_f1"] == expected["f1_at_half"]


def test_the_evaluate_metric_obeys_the_metrics_that_it_was_made_from():
    metrics = BinaryClassificationMetrics()
    metrics(prediction(*rows(seed=0)))
    metrics.freeze()
    logits, labels = rows(seed=1)
    assert metrics.as_evaluate_metric().compute(predictions=logits, references=labels)["threshold"] == metrics.threshold
