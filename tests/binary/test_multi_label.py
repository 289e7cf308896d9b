"""Several labels are several binary problems: tuned as one label is, each by itself, and reported together."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from transformers import Trainer, TrainingArguments, pipeline

from hf_freeze import (
    FreezeError,
    FreezeTrainer,
    LabelThresholds,
    MultiLabelMetrics,
    MultiLabelPipeline,
    ThresholdWarning,
    load_label_thresholds,
    load_threshold,
    predict_multi_label,
    save_threshold,
    tune_threshold,
)
from tests.binary import brute_force
from tests.binary.conftest import WORDS
from tests.installed import USE_CPU

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning", "ignore:.*pin_memory.*:UserWarning")

NAMES = ["toxic", "spam", "rude"]


def rows(n=600, shares=(0.3, 0.1, 0.03), seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(shares))) < shares).astype(np.float32)
    return (rng.normal(size=labels.shape) + 2.0 * labels - 1.0).astype(np.float32), labels


def test_each_label_is_tuned_as_it_is_alone():
    logits, labels = rows()
    labels[:50, 0], labels[50:90, 2] = -100, np.nan
    metrics = MultiLabelMetrics(labels=NAMES)
    reported = metrics((logits, labels))
    for column, name in enumerate(NAMES):
        counted = np.isin(labels[:, column], (0, 1))
        alone = tune_threshold(logits[counted, column], labels[counted, column], select="smoothed")
        result = metrics.result[name]
        assert (result.threshold, result.oob_value, result.interval) == (
            alone.threshold, alone.oob_value, alone.interval
        )  # fmt: skip
        assert result.n_ignored == (~counted).sum()
        assert reported[f"{name}/f1"] == pytest.approx(result.value)
    assert reported["n_ignored"] == 90
    assert reported["objective_oob"] == pytest.approx(np.mean([metrics.result[name].oob_value for name in NAMES]))


@pytest.mark.filterwarnings("default::hf_freeze.ThresholdWarning")
@pytest.mark.parametrize("labelled", [True, False])
def test_labels_at_another_share_of_positives_are_named_in_one_warning(labelled, recwarn):
    metrics = MultiLabelMetrics(labels=NAMES)
    metrics(rows())
    metrics.freeze()
    recwarn.clear()

    def said():
        return [str(w.message) for w in recwarn if issubclass(w.category, ThresholdWarning)]

    def see(shares, seed):
        logits, labels = rows(2000, shares=shares, seed=seed)
        if labelled:
            metrics((logits, labels))
        else:
            metrics.warn_of_calls(logits)

    see((0.3, 0.1, 0.03), 1)
    assert said() == []
    for seed in (2, 3):
        see((0.3, 0.5, 0.03), seed)
    (told,) = said()
    assert told.startswith("1 of 3 labels")
    assert "'spam'" in told
    assert "at_prevalence" not in told


def test_micro_and_macro_figures_are_those_of_scikit_learn():
    logits, labels = rows(shares=(0.3, 0.1, 0.03, 0.0))
    metrics = MultiLabelMetrics()
    reported = metrics((logits, labels))
    predicted = predict_multi_label(logits, metrics.result).label
    for average in ("micro", "macro"):
        for name, score in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            expected = score(labels, predicted, average=average, zero_division=0)
            assert reported[f"{name}_{average}"] == pytest.approx(expected)
    assert reported["exact_match"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert reported["auroc_macro"] == pytest.approx(sk.roc_auc_score(labels[:, :3], logits[:, :3]))
    ranked = sk.average_precision_score(labels[:, :3], logits[:, :3])
    assert reported["average_precision_macro"] == pytest.approx(ranked)
    assert reported["f1_at_half_macro"] == pytest.approx(
        sk.f1_score(labels, logits >= 0, average="macro", zero_division=0)
    )


def f1_at(scores, labels, threshold):
    tp, fp, fn, _ = brute_force.confusion(scores, labels, threshold)
    return 2 * tp / max(2 * tp + fp + fn, 1)


def test_no_threshold_of_any_label_is_better_than_the_exact_one():
    """300 columns of tied scores, 3 labels at a time."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        scores = rng.choice(np.float32([-1.5, -0.0, 0.0, 0.25, 0.25000003, 1.0, 7.0]), size=(24, 3))
        labels = rng.random((24, 3)) < 0.4
        labels[:2] = [[True] * 3, [False] * 3]
        metrics = MultiLabelMetrics(select="exact", n_boot=0, head="logits")
        metrics((scores, labels))
        for column, name in enumerate(metrics.result.labels):
            column_scores, positive = scores[:, column], labels[:, column]
            best = max(f1_at(column_scores, positive, t) for t in set(brute_force.candidates(column_scores)))
            found = f1_at(column_scores, positive, metrics.result[name].threshold)
            assert found == pytest.approx(best, abs=1e-9)


@pytest.mark.filterwarnings("error::hf_freeze.ThresholdWarning")
def test_labels_that_cannot_be_tuned_keep_their_thresholds_in_one_warning_and_the_others_are_tuned():
    names = ["good", "never", "always", "unlabelled", "constant", "broken"]
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.random((600, 1)) < 0.4, 6, axis=1).astype(np.float32)
    logits = (rng.normal(size=labels.shape) + 2.0 * labels).astype(np.float32)
    labels[:, 1], labels[:, 2], labels[:, 3], logits[:, 4], logits[3, 5] = 0, 1, -100, 0.0, np.nan
    metrics = MultiLabelMetrics(labels=names)
    metrics.use(dict.fromkeys(names, 0.7))
    with pytest.warns(ThresholdWarning) as warned:
        reported = metrics((logits, labels))
    assert len(warned) == 1
    message = str(warned[0].message)
    assert message.startswith("5 of 6 labels keep their thresholds: 'never', 'always', 'unlabelled', 'constant', 'bro")
    assert "All 600 rows are negative" in message
    margins = metrics.result.margins
    assert margins.pop("good") != pytest.approx(0.7)
    assert list(margins.values()) == pytest.approx([0.7] * 5)
    assert all(np.isfinite(value) for value in reported.values())
    assert (reported["n_untuned"], reported["n_nonfinite"], reported["n_ignored"]) == (5, 1, 600)
    assert metrics((logits, labels)) == reported  # a second warning would be an error here


def test_constraints_hold_for_each_label_and_one_that_cannot_keep_them_is_left_alone():
    logits, labels = rows(shares=(0.3, 0.1))
    logits[:, 1] = np.random.default_rng(1).normal(size=600)
    metrics = MultiLabelMetrics(labels=["good", "noise"], min_precision=0.8)
    reported = metrics((logits, labels))
    assert reported["good/precision"] >= 0.8
    assert reported["noise/threshold"] == 0.0
    assert (reported["n_untuned"], reported["objective_oob"] < reported["objective"]) == (1, True)


def test_smoothing_loses_less_on_fresh_rows_with_few_positives_and_is_the_exact_search_with_many():
    rng = np.random.default_rng(0)

    def draw(n, n_pos):
        labels = np.arange(n) < n_pos
        return rng.normal(2.5 * labels), labels

    fresh, positive = draw(100_000, 1000)
    gained = []
    for _ in range(80):
        scores, labels = draw(1000, 10)
        exact, smoothed = (
            f1_at(fresh, positive, tune_threshold(scores, labels, select=select, n_boot=0).threshold)
            for select in ("exact", "smoothed")
        )
        gained.append(smoothed - exact)
    assert np.mean(gained) > 2 * np.std(gained) / 80**0.5
    many = draw(50_000, 10_000)
    exact, smoothed = (tune_threshold(*many, select=select, n_boot=0) for select in ("exact", "smoothed"))
    assert smoothed.value > exact.value - 1e-3


def test_the_retunings_of_a_smoothed_search_are_smoothed_too():
    rng, labels = np.random.default_rng(5), np.arange(1000) < 10
    for _ in range(5):
        scores = rng.normal(2.5 * labels)
        exact, smoothed = (tune_threshold(scores, labels, select=select) for select in ("exact", "smoothed"))
        assert exact.oob_counts != smoothed.oob_counts


def test_a_smoothed_threshold_keeps_the_constraints_and_takes_infinite_scores():
    logits, labels = rows(shares=(0.1,))
    scores = logits[:, 0].copy()
    scores[:3], scores[-3:] = np.inf, -np.inf
    result = tune_threshold(scores, labels[:, 0], select="smoothed", min_precision=0.6, objective="recall")
    assert result.tp / (result.tp + result.fp) >= 0.6
    assert np.isfinite(result.threshold)
    for few in ([0, 0, 0, 1], [1, 1, 0, 1], [0, 1]):
        assert np.isfinite(tune_threshold(np.arange(len(few)), few, select="smoothed").threshold)


@pytest.mark.parametrize("form", ["batches", "tuples", "one by one", "torch", "bool", "lists"])
def test_every_form_in_which_a_trainer_hands_rows_over_reads_alike(form):
    logits, labels = rows()
    whole = MultiLabelMetrics()((logits, labels))
    if form == "one by one":
        metrics = MultiLabelMetrics()
        assert metrics((logits[:100], labels[:100]), compute_result=False) == {}
        assert metrics((logits[100:], labels[100:]), compute_result=True) == whole
        return
    given = {
        "batches": ([logits[:400], logits[400:]], [labels[:400], labels[400:]]),
        "tuples": ((np.zeros((600, 7, 16), np.float32), logits), (labels,)),
        "torch": (torch.from_numpy(logits), torch.from_numpy(labels)),
        "bool": (logits, labels == 1),
        "lists": (logits.tolist(), labels.astype(int).tolist()),
    }
    assert MultiLabelMetrics()(given[form]) == pytest.approx(whole)


SIGMOID = 1 / (1 + np.exp(-rows()[0]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (rows()[0], rows()[1][:, :2], r"Labels of shape \(600, 2\) for logits of shape \(600, 3\)"),
        (rows()[0][:, 0], rows()[1][:, 0], r"shape \(600,\) are not \(n, L\)"),
        (rows()[0], rows()[1] * 2, r"Labels must be 0 or 1.*2\.0"),
        (rows()[0][:, :2], rows()[1][:, :2], "2 columns, but there are 3 labels"),
        (SIGMOID, rows()[1], "these are probabilities"),
        (rows()[0], np.full((600, 3), "a"), "0 and 1"),
    ],
)
def test_rows_that_cannot_be_read_are_an_error(logits, labels, message):
    with pytest.raises(FreezeError, match=message):
        MultiLabelMetrics(labels=NAMES)((logits, labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["a", "a"]}, "Two labels are called 'a'"),
        ({"labels": "toxic"}, "must be the names"),
        ({"labels": []}, "must be the names"),
        ({"thresholds": 0.5}, "must be thresholds by the labels' names"),
        ({"thresholds": "best"}, "Unknown thresholds='best'"),
        ({"thresholds": {"a": "high"}}, "The threshold of 'a' is 'high'"),
        ({"labels": ["a", "b"], "thresholds": {"a": 0.5}}, r"labels \['a'\], but the model's labels are \['a', 'b'\]"),
        ({"select": "best"}, "select='best'"),
        ({"min_precision": 2}, "min_precision=2"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_an_error(arguments, message):
    with pytest.raises(FreezeError, match=message):
        MultiLabelMetrics(**arguments)


# In a Trainer


def dataset(n, seed):
    """Texts of word ids: "win", "cash" and "now" (ids 2 to 4) mostly give their labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, len(WORDS), size=(n, 6))
    labels = np.stack([(ids == word).any(axis=1) ^ (rng.random(n) < 0.1) for word in (2, 3, 4)], axis=1)
    return [
        {"input_ids": torch.tensor(row), "attention_mask": torch.ones(6, dtype=torch.long), "labels": label}
        for row, label in zip(ids, torch.tensor(labels, dtype=torch.float32), strict=True)
    ]


def trainer(folder, make_model, metrics, eval_dataset, *, trainer_class=FreezeTrainer, preprocess=None, **arguments):
    model = make_model(
        num_labels=3, problem_type="multi_label_classification", id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    args = TrainingArguments(
        str(folder), report_to=[], disable_tqdm=True, max_steps=4, eval_strategy="steps", eval_steps=2,
        per_device_eval_batch_size=16, **{"use_cpu": True, "save_strategy": "no", **arguments},
    )  # fmt: skip
    extra = {} if preprocess is None else {"preprocess_logits_for_metrics": preprocess}
    return trainer_class(
        model, args, train_dataset=dataset(64, 0), eval_dataset=eval_dataset, compute_metrics=metrics, **extra
    )


def test_only_the_designated_set_tunes_and_a_test_set_gets_the_thresholds_of_validation(tmp_path, make_model):
    metrics = MultiLabelMetrics(tune_on="valid")
    run = trainer(tmp_path, make_model, metrics, {"hard": dataset(55, 3), "valid": dataset(101, 1)})
    run.train()
    tuned = metrics.result
    assert tuned.labels == NAMES
    assert {tuned[name].n_pos + tuned[name].n_neg for name in NAMES} == {101}
    output = run.predict(dataset(77, 2))
    assert metrics.result == tuned
    assert "test_objective_oob" not in output.metrics
    predicted = predict_multi_label(output.predictions, tuned).label
    expected = sk.f1_score(output.label_ids, predicted, average="macro", zero_division=0)
    assert output.metrics["test_f1_macro"] == pytest.approx(expected)


def test_thresholds_are_saved_by_name_with_every_checkpoint_and_read_back(tmp_path, make_model, tokenizer):
    metrics = MultiLabelMetrics()
    run = trainer(tmp_path, make_model, metrics, dataset(101, 1), save_strategy="steps", save_steps=2)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    saved = tmp_path / "saved"
    assert load_label_thresholds(saved) == metrics.result
    assert json.loads((saved / "config.json").read_text())["decision_thresholds"] == metrics.result.margins
    assert list(json.loads((saved / "decision_threshold.json").read_text())["labels"]) == NAMES
    earlier = load_label_thresholds(tmp_path / "checkpoint-2")
    assert earlier.margins != metrics.result.margins
    resumed = MultiLabelMetrics()
    again = trainer(tmp_path, make_model, resumed, dataset(101, 1), save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.result.margins == pytest.approx(metrics.result.margins)
    (saved / "decision_threshold.json").unlink()
    from_config = load_label_thresholds(saved)
    assert (from_config.labels, from_config.margins) == (NAMES, metrics.result.margins)
    with pytest.raises(FreezeError, match="Use load_label_thresholds"):
        load_threshold(saved)
    tokenizer.save_pretrained(saved)
    classify = pipeline("text-classification", model=str(saved), pipeline_class=MultiLabelPipeline)
    texts = [" ".join(np.random.default_rng(i).choice(WORDS[2:], size=5)) for i in range(30)]
    with torch.no_grad():
        logits = torch.cat([run.model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    expected = predict_multi_label(logits, metrics.result)
    found = [{one["label"] for one in answer} for answer in classify(texts, batch_size=4)]
    assert found == [{name for name, has in zip(NAMES, row, strict=True) if has} for row in expected.label.tolist()]
    assert len({frozenset(answer) for answer in found}) > 1
    assert [one["label"] for one in classify(texts[0])] == sorted(
        found[0], key=lambda name: -expected.probability[0, NAMES.index(name)]
    )


@pytest.mark.parametrize("use_cpu", USE_CPU)
@pytest.mark.parametrize("arguments", [{"batch_eval_metrics": True}, {"eval_do_concat_batches": False}])
def test_a_plain_trainer_reports_the_same_however_it_hands_batches_over(tmp_path, make_model, arguments, use_cpu):
    def reported(**given):
        metrics = MultiLabelMetrics()
        run = trainer(tmp_path, make_model, metrics, dataset(101, 1), trainer_class=Trainer, **given)
        timing = ("runtime", "per_second", "preparation_time")
        return {k: v for k, v in run.evaluate().items() if not k.endswith(timing)}

    assert reported(**arguments, use_cpu=use_cpu) == pytest.approx(reported())


def test_scores_other_than_the_models_are_refused(tmp_path, make_model):
    def scaled(logits, labels):
        return logits * 2.0 + 1.0

    run = trainer(tmp_path, make_model, MultiLabelMetrics(), dataset(32, 1), preprocess=scaled)
    with pytest.raises(FreezeError, match="preprocess_logits_for_metrics hands the metrics scores that are not"):
        run.evaluate()


def test_a_model_that_trains_one_class_of_many_is_refused_before_training(tmp_path, make_model):
    run = trainer(tmp_path, make_model, MultiLabelMetrics(), dataset(32, 1))
    run.model.config.problem_type = "single_label_classification"
    with pytest.raises(FreezeError, match="does not train one logit per label"):
        run.train()
    named = trainer(tmp_path, make_model, MultiLabelMetrics(labels=["a", "b"]), dataset(32, 1))
    with pytest.raises(FreezeError, match="the model has 3 outputs"):
        named.train()


def test_thresholds_given_are_applied_and_never_changed(tmp_path):
    given = LabelThresholds({"toxic": 0.25, "spam": -1.0, "rude": 3.0})
    metrics = MultiLabelMetrics(thresholds=given)
    reported = metrics(rows())
    assert metrics.result.margins == given.margins
    assert (reported["rude/threshold"], "objective_oob" in reported) == (3.0, False)
    save_threshold(given, tmp_path)
    assert load_label_thresholds(tmp_path) == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": {}}', "must be thresholds by the labels"),
        ('{"labels": [1.0]}', "does not hold thresholds by label"),
        ('{"labels": {"a": {"threshold": "x"}}}', "threshold='x'"),
        ('{"labels": {"a": {"threshold": 1.0}}, "more": 1}', "does not hold thresholds by label"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, text, message):
    (tmp_path / "decision_threshold.json").write_text(text)
    with pytest.raises(FreezeError, match=message) as error:
        load_label_thresholds(tmp_path)
    assert "decision_threshold.json" in str(error.value)
