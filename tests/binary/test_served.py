"""What is reported is what the saved model then does; scores that are not the model's are refused."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, EvalPrediction
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_freeze import (
    BinaryClassificationMetrics,
    BinaryClassificationPipeline,
    FreezeError,
    FreezeTrainer,
    binary_margin,
    load_threshold,
    predict_binary,
)
from hf_freeze.binary.served import refuse_other_scores
from tests.binary.conftest import WORDS
from tests.binary.test_trainer import dataset
from tests.quiet import quiet_arguments

pytestmark = pytest.mark.filterwarnings(
    "ignore::hf_freeze.ThresholdWarning",
    "ignore:.*pin_memory.*:UserWarning",
)
ROWS = dataset(101, 1)
LABELS = np.array([row["labels"] for row in ROWS])

MULTI_LABEL = {"num_labels": 1, "problem_type": "multi_label_classification"}
HEADS = {
    "two logits": ({}, {}),
    "two logits, single label": ({"problem_type": "single_label_classification"}, {}),
    "two logits, the other class": ({}, {"positive": 0}),
    "two logits, names": ({"id2label": {0: "spam", 1: "ham"}}, {"positive": "spam"}),
    "one logit": (MULTI_LABEL, {}),
    "one logit, the other class": (MULTI_LABEL, {"positive": 0}),
}

OF_TWO_LOGITS = {
    "P(class 1)": lambda logits, labels: logits.softmax(-1)[:, 1],
    "P(class 0)": lambda logits, labels: logits.softmax(-1)[:, 0],
    "probabilities": lambda logits, labels: logits.softmax(-1),
    "one logit of two": lambda logits, labels: logits[:, 1],
    "the other logit": lambda logits, labels: logits[:, :1],
    "class ids": lambda logits, labels: logits.argmax(-1),
    "log-probability of class 1": lambda logits, labels: logits.log_softmax(-1)[:, 1],
    "swapped": lambda logits, labels: logits.flip(-1),
}
OF_ANY_HEAD = {
    "negated": lambda logits, labels: -logits,
    "scaled": lambda logits, labels: logits / 2,
    "temperature": lambda logits, labels: 1.01 * logits,
    "rounded": lambda logits, labels: logits.round(decimals=1),
    "half precision": lambda logits, labels: logits.bfloat16(),
    "sigmoid": lambda logits, labels: logits.sigmoid(),
    "hard": lambda logits, labels: (logits > 0).long(),
    "clipped": lambda logits, labels: logits.clamp(-0.1, 0.1),
    "written in place": lambda logits, labels: logits.sigmoid_(),
    "a tuple of others": lambda logits, labels: (logits.sigmoid(), logits),
    "labels": lambda logits, labels: labels.float(),
}
THE_SAME = {
    "nothing": None,
    "as they are": lambda logits, labels: logits,
    "with extras": lambda logits, labels: (logits, torch.zeros(len(logits), 3, 2)),
    "the margin": lambda logits, labels: binary_margin(logits),
    "double": lambda logits, labels: logits.double(),
}
SAME_OF_TWO_LOGITS = {
    "log-probabilities": lambda logits, labels: logits.log_softmax(-1),
    "the difference": lambda logits, labels: logits[:, 1] - logits[:, 0],
    "shifted": lambda logits, labels: logits - logits[:, :1],
}


def arguments(folder, **changes):
    values = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "per_device_eval_batch_size": 16,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return quiet_arguments(folder, **{**values, **changes})


def as_the_head_wants(rows, model):
    one = getattr(getattr(model, "config", None), "num_labels", 2) == 1
    return [{**row, "labels": [float(row["labels"])]} for row in rows] if one else rows


def make_trainer(folder, model, metrics, function=None, *, trainer_class=FreezeTrainer, eval_dataset=None, **changes):
    return trainer_class(
        model,
        arguments(folder, trainable=["all"], **changes),
        train_dataset=as_the_head_wants(dataset(64, 0), model),
        eval_dataset=as_the_head_wants(ROWS, model) if eval_dataset is None else eval_dataset,
        compute_metrics=metrics,
        preprocess_logits_for_metrics=function,
    )


def logits_served(model):
    with torch.no_grad():
        output = model.eval()(input_ids=torch.stack([row["input_ids"] for row in ROWS]))
    return output["logits"]


def f1_of(labels, positive):
    hits = ((labels == positive) & (positive == LABELS)).sum()
    return 2 * hits / ((labels == positive).sum() + (positive == LABELS).sum())


def outputs():
    """Every head with every function that leaves its meaning alone; half of the pairs are slow."""
    for i, head in enumerate(HEADS):
        for j, name in enumerate([*THE_SAME, *([] if "one" in head else SAME_OF_TWO_LOGITS)]):
            yield pytest.param(head, name, marks=pytest.mark.slow if (i + j) % 2 else ())


@pytest.mark.parametrize(("head", "name"), list(outputs()))
def test_the_f1_reported_is_the_f1_that_the_saved_folder_serves(tmp_path, make_model, tokenizer, head, name):
    config, chosen = HEADS[head]
    metrics = BinaryClassificationMetrics(n_boot=0, **chosen)
    trainer = make_trainer(tmp_path, make_model(**config), metrics, {**THE_SAME, **SAME_OF_TWO_LOGITS}[name])
    trainer.train()
    reported = trainer.evaluate()["eval_f1"]
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    positive = metrics.result.positive
    for threshold in (metrics.result, load_threshold(tmp_path / "saved"), load_threshold(loaded)):
        labels = predict_binary(logits_served(loaded), threshold).label.numpy()
        assert f1_of(labels, positive) == pytest.approx(reported, abs=1e-12)
    pipeline = BinaryClassificationPipeline(model=loaded, tokenizer=tokenizer, labels=("0", "1"))
    texts = [" ".join(WORDS[i] for i in row["input_ids"].tolist()) for row in ROWS]
    labels = np.array([int(answer["label"]) for answer in pipeline(texts)])
    assert f1_of(labels, positive) == pytest.approx(reported, abs=1e-12)


@pytest.mark.parametrize("name", [*OF_TWO_LOGITS, *OF_ANY_HEAD])
def test_scores_that_are_not_the_models_are_refused_at_the_first_evaluation(tmp_path, make_model, name):
    metrics = BinaryClassificationMetrics(n_boot=0)
    trainer = make_trainer(tmp_path, make_model(), metrics, {**OF_TWO_LOGITS, **OF_ANY_HEAD}[name])
    with pytest.raises(
        FreezeError, match=r"preprocess_logits_for_metrics hands the metrics scores that are not the mod"
    ):
        trainer.train()
    assert metrics.result is None
    assert trainer.state.global_step == 2
    assert trainer.preprocess_logits_for_metrics is {**OF_TWO_LOGITS, **OF_ANY_HEAD}[name]
    assert not [module for module in trainer.model.modules() if module._forward_hooks]


@pytest.mark.parametrize("name", OF_ANY_HEAD)
@pytest.mark.parametrize("where", ["evaluate", "predict"])
def test_a_single_logit_that_is_changed_is_refused_where_nothing_is_tuned_as_well(tmp_path, make_model, name, where):
    trainer = make_trainer(
        tmp_path, make_model(**MULTI_LABEL), BinaryClassificationMetrics(threshold=0.1), OF_ANY_HEAD[name]
    )
    with pytest.raises(FreezeError, match="not the model's"):
        trainer.evaluate() if where == "evaluate" else trainer.predict(trainer.eval_dataset)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_eval_metrics": True},
        {"eval_accumulation_steps": 1},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_do_concat_batches": False},
        {"label_smoothing_factor": 0.1},
        {"torch_empty_cache_steps": 1},
        {"cache_frozen": True, "trainable": ["head"]},
        {"bf16_full_eval": True},
    ],
)
def test_no_way_of_evaluating_hides_a_probability_or_refuses_the_logits(tmp_path, make_model, changes):
    changes = {"trainable": ["all"], **changes}
    for function in (None, OF_TWO_LOGITS["P(class 1)"]):
        metrics = BinaryClassificationMetrics(n_boot=0)
        trainer = FreezeTrainer(
            make_model(),
            arguments(tmp_path, **changes),
            train_dataset=dataset(64, 0),
            eval_dataset={"eval": ROWS, "hard": dataset(37, 3)},
            compute_metrics=metrics,
            preprocess_logits_for_metrics=function,
        )
        if function is None:
            trainer.train()
            assert metrics.result is not None
        else:
            with pytest.raises(FreezeError, match="not the model's"):
                trainer.train()


class Softmaxed(FreezeTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (
            (loss, SequenceClassifierOutput(loss=loss, logits=outputs.logits.softmax(-1)[:, 1]))
            if return_outputs
            else loss
        )


class Twice(FreezeTrainer):
    """As R-Drop does: two passes, of which the first is evaluated."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        first = model(**inputs)
        model(**{**inputs, "input_ids": inputs["input_ids"].flip(0)})
        return (first.loss, first) if return_outputs else first.loss


class Negated(FreezeTrainer):
    def prediction_step(self, *args, **kwargs):
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        return loss, -logits, labels


class OnItsOwn(FreezeTrainer):
    """A prediction step that does not ask the Trainer."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            output = model(**self._prepare_inputs(inputs))
        return output.loss, output.logits, inputs["labels"]


@pytest.mark.parametrize("trainer_class", [Softmaxed, Negated])
def test_a_loss_or_a_step_of_ones_own_that_changes_the_logits_is_refused(tmp_path, make_model, trainer_class):
    trainer = make_trainer(tmp_path, make_model(), BinaryClassificationMetrics(), trainer_class=trainer_class)
    with pytest.raises(
        FreezeError, match=r"The Trainer hands the metrics scores .* after compute_loss and prediction_st"
    ):
        trainer.train()


@pytest.mark.parametrize("trainer_class", [Twice, OnItsOwn])
def test_a_loss_or_a_step_of_ones_own_that_leaves_them_is_not(tmp_path, make_model, trainer_class):
    metrics = BinaryClassificationMetrics(n_boot=0)
    make_trainer(tmp_path, make_model(), metrics, trainer_class=trainer_class).train()
    assert metrics.result is not None
    asked = make_trainer(tmp_path, make_model(), metrics, OF_TWO_LOGITS["P(class 1)"], trainer_class=trainer_class)
    with pytest.raises(FreezeError, match="preprocess_logits_for_metrics hands"):
        asked.train()


class Net(nn.Module):
    """A model of the user's own, without a config."""

    def __init__(self, outputs=2, last=None, first=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.EmbeddingBag(len(WORDS), 8)
        self.head = nn.Linear(8, outputs)
        self.last, self.first = last, first

    def forward(self, input_ids, labels=None):
        logits = self.head(self.embed(input_ids))
        shown = logits if self.last is None else self.last(logits)
        output = {"pooled": 3 * logits.flip(-1)} if self.first else {}
        output["logits"] = shown
        if labels is None:
            return output
        target = nn.functional.one_hot(labels, 2) if logits.shape[1] == 2 else labels[:, None]
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, target.float()), **output}


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_model_without_a_config_is_held_to_its_logits_as_well(tmp_path, outputs):
    metrics = BinaryClassificationMetrics(n_boot=0)
    trainer = make_trainer(tmp_path, Net(outputs), metrics)
    trainer.train()
    labels = predict_binary(logits_served(trainer.model), metrics.result).label.numpy()
    assert f1_of(labels, 1) == pytest.approx(trainer.evaluate()["eval_f1"], abs=1e-12)
    with pytest.raises(FreezeError, match="not the model's"):
        make_trainer(tmp_path, Net(outputs), metrics, OF_ANY_HEAD["sigmoid"]).train()


def test_another_output_that_the_trainer_would_take_for_the_logits_is_refused(tmp_path):
    with pytest.raises(FreezeError, match="keys_to_ignore_at_inference"):
        make_trainer(tmp_path, Net(first=True), BinaryClassificationMetrics()).train()


@pytest.mark.parametrize(("outputs", "last"), [(1, nn.Sigmoid()), (2, nn.Softmax(-1))])
def test_a_model_that_gives_probabilities_serves_what_was_reported_without_being_told_again(tmp_path, outputs, last):
    metrics = BinaryClassificationMetrics(n_boot=0, head="probability")
    trainer = make_trainer(tmp_path, Net(outputs, last), metrics)
    trainer.train()
    reported = trainer.evaluate()["eval_f1"]
    trainer.save_model(str(tmp_path / "saved"))
    for threshold in (metrics.result, load_threshold(tmp_path / "saved")):
        labels = predict_binary(logits_served(trainer.model), threshold).label.numpy()
        assert f1_of(labels, 1) == pytest.approx(reported, abs=1e-12)


def test_probabilities_that_the_user_makes_of_logits_do_not_pass_as_the_models_own(tmp_path, make_model):
    metrics = BinaryClassificationMetrics(head="probability")
    with pytest.raises(FreezeError, match="says that the model gives probabilities, but its outputs"):
        make_trainer(tmp_path, make_model(), metrics, OF_TWO_LOGITS["P(class 1)"]).train()


def test_names_are_known_to_an_evaluation_without_training(tmp_path, make_model):
    model = make_model(id2label={0: "spam", 1: "ham"})
    trainer = make_trainer(tmp_path, model, BinaryClassificationMetrics(positive="spam"))
    assert trainer.evaluate()["eval_n_pos"] == (LABELS == 0).sum()


def test_the_metrics_alone_name_the_function_that_makes_probabilities():
    logits = np.random.default_rng(0).normal(size=(64, 2))
    metrics = BinaryClassificationMetrics()
    for scores in (torch.tensor(logits).softmax(-1), torch.tensor(logits).softmax(-1)[:, 1]):
        with pytest.raises(FreezeError, match="preprocess_logits_for_metrics"):
            metrics(EvalPrediction(scores.numpy(), np.arange(64) % 2))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_rounding_of_float32_is_not_taken_for_another_score(size):
    logits = size * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    for same in (logits.log_softmax(-1), logits - logits.mean(-1, keepdim=True)):
        refuse_other_scores(same, [logits], head="auto", preprocessed=True)
    with pytest.raises(FreezeError, match="not the model's"):
        refuse_other_scores(1.001 * logits, [logits], head="auto", preprocessed=True)
