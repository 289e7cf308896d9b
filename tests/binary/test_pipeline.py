"""transformers.pipeline gives the labels that the threshold gives."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification, pipeline

from hf_freeze import (
    BinaryClassificationPipeline,
    FreezeError,
    ThresholdResult,
    UnsupportedSetupError,
    binary_margin,
    fold_threshold_into_head,
    load_threshold,
    predict_binary,
    save_threshold,
)
from hf_freeze.binary.saved_threshold import threshold_saved_with_weights
from tests.binary.conftest import WORDS

RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS[2:], size=RNG.integers(1, 7))) for _ in range(60)]


def logits_of(model, tokenizer):
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])


def splitting_threshold(logits, positive=1):
    """A threshold in the widest gap, so that rounding decides nothing, that labels otherwise than argmax does."""
    ordered = binary_margin(logits, positive=positive).unique()
    widths = (ordered[1:] - ordered[:-1]) * ~((ordered[:-1] < 0) & (ordered[1:] >= 0))
    widest = int(widths[3:-3].argmax()) + 3
    return ThresholdResult(threshold=float((ordered[widest] + ordered[widest + 1]) / 2), positive=positive)


@pytest.mark.smoke
@pytest.mark.parametrize("positive", [0, 1])
def test_a_saved_folder_gives_the_same_labels_in_a_pipeline(tmp_path, make_model, tokenizer, positive):
    model = make_model(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1})
    logits = logits_of(model, tokenizer)
    threshold = splitting_threshold(logits, positive)
    with threshold_saved_with_weights(threshold, tmp_path, model=model):
        model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), pipeline_class=BinaryClassificationPipeline)
    answers = classify(TEXTS, batch_size=4)
    prediction = predict_binary(logits, load_threshold(tmp_path))
    assert [answer["label"] for answer in answers] == [("ham", "spam")[label] for label in prediction.label]
    assert [a["label"] for a in answers] != [("ham", "spam")[label] for label in logits.argmax(-1)]
    own = torch.where(prediction.label == positive, prediction.probability, 1 - prediction.probability)
    np.testing.assert_allclose([answer["score"] for answer in answers], own, atol=1e-5)


def test_a_head_of_one_logit_gets_two_labels(make_model, tokenizer):
    model = make_model(num_labels=1)
    logits = logits_of(model, tokenizer)
    threshold = splitting_threshold(logits)
    labels = predict_binary(logits, threshold).label
    parts = {"model": model, "tokenizer": tokenizer, "pipeline_class": BinaryClassificationPipeline}
    plain = pipeline("text-classification", threshold=threshold, **parts)
    assert [answer["label"] for answer in plain(TEXTS)] == [f"LABEL_{label}" for label in labels]
    named = pipeline("text-classification", threshold=threshold, labels=("ham", "spam"), **parts)
    assert [answer["label"] for answer in named(TEXTS)] == [("ham", "spam")[label] for label in labels]
    model.config.id2label = {0: "spam"}
    assert {answer["label"] for answer in plain(TEXTS)} == {"not spam", "spam"}


def test_top_k_and_a_single_text_have_the_stock_format(make_model, tokenizer):
    parts = {"model": make_model(), "tokenizer": tokenizer}
    stock = pipeline("text-classification", **parts)
    ours = pipeline("text-classification", pipeline_class=BinaryClassificationPipeline, threshold=0.0, **parts)
    for call in ({}, {"top_k": None}, {"top_k": 1}):
        for inputs in (TEXTS[0], TEXTS[:3]):
            expected, found = stock(inputs, **call), ours(inputs, **call)
            assert flat(found) == pytest.approx(flat(expected), abs=1e-6)


def flat(answer):
    """The answer with its structure as keys, so that approx can compare it."""
    if isinstance(answer, list):
        return {(i, *key): value for i, item in enumerate(answer) for key, value in flat(item).items()}
    return {(answer["label"],): answer["score"]}


def test_the_label_decided_for_comes_first_and_may_score_below_a_half(make_model, tokenizer):
    classify = pipeline(
        "text-classification",
        model=make_model(),
        tokenizer=tokenizer,
        pipeline_class=BinaryClassificationPipeline,
        threshold=-100.0,
    )
    answers = classify(TEXTS, top_k=None)
    assert {answer[0]["label"] for answer in answers} == {"LABEL_1"}
    assert min(answer[0]["score"] for answer in answers) < 0.5
    assert classify(TEXTS[0], threshold=100.0) == [{"label": "LABEL_0", "score": pytest.approx(answers[0][1]["score"])}]


def test_a_pipeline_without_a_threshold_or_for_three_labels_is_an_error(make_model, tokenizer):
    parts = {"tokenizer": tokenizer, "pipeline_class": BinaryClassificationPipeline}
    with pytest.raises(FreezeError, match=r"has no config\.decision_threshold"):
        pipeline("text-classification", model=make_model(), **parts)
    with pytest.raises(FreezeError, match="has 3 labels"):
        pipeline("text-classification", model=make_model(num_labels=3), threshold=0.0, **parts)
    with pytest.raises(FreezeError, match="function_to_apply='none'"):
        pipeline("text-classification", model=make_model(), threshold=0.0, function_to_apply="none", **parts)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 reads it
def test_a_peft_folder_serves_with_the_threshold_beside_the_adapter(tmp_path, make_model, tokenizer):
    make_model().save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).eval()
    logits = logits_of(adapted, tokenizer)
    adapted.save_pretrained(tmp_path / "adapter")
    save_threshold(splitting_threshold(logits), tmp_path / "adapter")
    classify = pipeline(
        "text-classification",
        model=str(tmp_path / "adapter"),
        tokenizer=tokenizer,
        threshold=load_threshold(tmp_path / "adapter"),
        pipeline_class=BinaryClassificationPipeline,
    )
    labels = predict_binary(logits, load_threshold(tmp_path / "adapter")).label
    assert [answer["label"] for answer in classify(TEXTS)] == [f"LABEL_{label}" for label in labels]


# Folding


@pytest.mark.parametrize(("num_labels", "positive"), [(2, 1), (2, 0), (1, 1), (1, 0)])
def test_a_folded_head_decides_by_argmax_as_the_threshold_did(make_model, tokenizer, num_labels, positive):
    model = make_model(num_labels=num_labels)
    logits = logits_of(model, tokenizer)
    threshold = splitting_threshold(logits, positive)
    expected = predict_binary(logits, threshold).label
    model.config.decision_threshold = threshold.threshold
    model.config.decision_positive = positive
    assert fold_threshold_into_head(model) == "classifier.bias"
    folded = logits_of(model, tokenizer)
    decided = folded.argmax(-1) if num_labels == 2 else (folded[:, 0] > 0).long()
    assert decided.tolist() == expected.tolist()
    assert load_threshold(model) == ThresholdResult(threshold=0.0, positive=positive)
    np.testing.assert_allclose(
        predict_binary(folded, positive=positive).probability,
        torch.sigmoid(binary_margin(logits, positive=positive) - threshold.threshold),
        atol=1e-5,
    )


def test_a_folded_model_served_by_the_pipeline_is_not_shifted_twice(make_model, tokenizer):
    model = make_model()
    threshold = splitting_threshold(logits_of(model, tokenizer))
    expected = predict_binary(logits_of(model, tokenizer), threshold).label
    fold_threshold_into_head(model, threshold)
    classify = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, pipeline_class=BinaryClassificationPipeline
    )
    assert [answer["label"] for answer in classify(TEXTS)] == [f"LABEL_{label}" for label in expected]


def test_a_head_that_cannot_take_the_threshold_is_left_alone_and_named(make_model):
    model = make_model()
    model.classifier = torch.nn.Linear(16, 2, bias=False)
    with pytest.raises(UnsupportedSetupError, match="classifier has no bias"):
        fold_threshold_into_head(model, 1.0)
    with pytest.raises(UnsupportedSetupError, match=r"found \['0', '1'\]"):
        fold_threshold_into_head(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)), 1.0)
    with pytest.raises(UnsupportedSetupError, match="found none"):
        fold_threshold_into_head(torch.nn.Sequential(torch.nn.Linear(4, 3)), 1.0)


def test_a_model_that_cannot_hold_the_threshold_is_left_alone_and_named():
    with pytest.raises(UnsupportedSetupError, match="'bert' is not a torch module"):
        fold_threshold_into_head("bert", 1.0)
    for empty in (torch.nn.Linear(4, 1, device="meta"), torch.nn.LazyLinear(1)):
        with pytest.raises(UnsupportedSetupError, match="has no values yet"):
            fold_threshold_into_head(empty, 1.0)
    half = torch.nn.Linear(4, 1).half()
    before = half.bias.item()
    with pytest.raises(UnsupportedSetupError, match=r"1e\+06 is too large .* torch\.float16"):
        fold_threshold_into_head(half, 1e6)
    assert half.bias.item() == before


def test_a_head_that_is_the_whole_model_can_be_folded():
    assert fold_threshold_into_head(torch.nn.Linear(4, 1), 0.5) == "bias"


@pytest.mark.parametrize("labels", [("a",), ("a", "b", "c"), "ab", {0: "a", 1: "b"}, ("a", "a"), (0, 1)])
def test_labels_of_the_pipeline_are_two_names(make_model, tokenizer, labels):
    make = {"model": make_model(num_labels=1), "tokenizer": tokenizer, "threshold": 0.0}
    with pytest.raises(FreezeError, match="labels=.* must be two names"):
        BinaryClassificationPipeline(labels=labels, **make)
    with pytest.raises(FreezeError, match="labels=.* must be two names"):
        BinaryClassificationPipeline(**make)(TEXTS[0], labels=labels)


def test_a_users_own_module_can_be_folded():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    before = model[1].bias.item()
    assert fold_threshold_into_head(model, 0.5) == "1.bias"
    assert model[1].bias.item() == pytest.approx(before - 0.5)
