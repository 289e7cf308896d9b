"""The threshold inside the Trainer: no leak, and always that of the checkpoint whose weights are loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from hf_freeze import (
    BinaryClassificationMetrics,
    FreezeError,
    FreezePlan,
    FreezeTrainer,
    FreezeTrainingArguments,
    ThresholdResult,
    ThresholdWarning,
    load_threshold,
    tune_threshold,
)
from hf_freeze.binary.saved_threshold import THRESHOLD_FILE
from tests.models import text_rows, tiny_bert
from tests.training.staged import trainer

pytestmark = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
EVERY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": 15, "logging_steps": 5}


def made_with(folder: Path, metrics: BinaryClassificationMetrics, **values):
    extra = {"compute_metrics": metrics, **values.pop("trainer", {})}
    values = {**EVERY_EPOCH, **values}
    return trainer(folder, plan=FreezePlan(trainable=["head", "layers"]), trainer=extra, **values)


def metrics_for_tests(**values) -> BinaryClassificationMetrics:
    return BinaryClassificationMetrics(n_boot=0, **values)


def thresholds_logged(made) -> list[float]:
    return [entry["eval_threshold"] for entry in made.state.log_history if "eval_threshold" in entry]


@pytest.mark.smoke
def test_only_the_evaluations_of_training_tune(tmp_path) -> None:
    metrics = metrics_for_tests()
    made = made_with(tmp_path, metrics)
    made.evaluate()
    assert metrics.threshold == 0.0
    made.train()
    tuned = metrics.result
    assert isinstance(tuned, ThresholdResult)
    assert len(set(thresholds_logged(made)[1:])) > 1

    made.evaluate()
    made.evaluate(text_rows(12, seed=5))
    made.predict(text_rows(12, seed=6))
    assert metrics.result == tuned


class EvaluatesTheTestSet(TrainerCallback):
    """What a careless callback does: it looks at the test set during training."""

    def __init__(self) -> None:
        self.trainer = None
        self.seen: list[tuple[float, float]] = []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if self.trainer is not None and "eval_threshold" in (metrics or {}):
            trainer, self.trainer = self.trainer, None
            before = trainer.compute_metrics.threshold
            trainer.evaluate(text_rows(12, seed=7))
            trainer.evaluate({"other": text_rows(12, seed=8)})
            self.seen.append((before, trainer.compute_metrics.threshold))
            self.trainer = trainer


def test_evaluating_another_set_from_a_callback_during_training_does_not_tune(tmp_path) -> None:
    watch = EvaluatesTheTestSet()
    made = made_with(tmp_path, metrics_for_tests(), trainer={"callbacks": [watch]}, save_strategy="no")
    watch.trainer = made
    made.train()
    assert len(watch.seen) == 3
    assert all(before == after for before, after in watch.seen)


def test_of_several_eval_sets_only_the_designated_one_tunes(tmp_path) -> None:
    metrics = metrics_for_tests(tune_on="val")
    made = made_with(tmp_path, metrics, save_strategy="no")
    made.eval_dataset = {"val": text_rows(8, seed=1), "test": text_rows(8, seed=2)}
    made.train()
    entries = [entry for entry in made.state.log_history if "eval_val_threshold" in entry]
    tests = [entry for entry in made.state.log_history if "eval_test_threshold" in entry]
    assert [entry["eval_val_threshold"] for entry in entries] == [entry["eval_test_threshold"] for entry in tests]


def test_a_designated_set_that_does_not_exist_is_refused_before_the_first_step(tmp_path) -> None:
    made = made_with(tmp_path, metrics_for_tests(tune_on="validation"))
    made.eval_dataset = {"val": text_rows(8, seed=1)}
    with pytest.raises(ValueError, match="'validation' is not among the eval sets"):
        made.train()
    assert made.state.global_step == 0


def test_every_checkpoint_has_the_threshold_of_its_evaluation(tmp_path) -> None:
    made = made_with(tmp_path, metrics_for_tests())
    made.train()
    for step, logged in zip((5, 10, 15), thresholds_logged(made), strict=True):
        folder = tmp_path / f"checkpoint-{step}"
        assert load_threshold(folder).threshold == logged
        assert json.loads((folder / "config.json").read_text())["decision_threshold"] == logged
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder)
        assert load_threshold(model).threshold == logged


@pytest.mark.smoke
@pytest.mark.parametrize("best", [0, 1, 2])
def test_load_best_model_brings_back_its_threshold(tmp_path, best) -> None:
    metrics = metrics_for_tests()
    calls: list[None] = []
    made = made_with(
        tmp_path,
        metrics,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
    )
    call = type(metrics).__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(metrics),
            "__call__",
            lambda self, *args, **kwargs: (
                calls.append(None) or {**call(self, *args, **kwargs), "score": float(len(calls) - 1 == best)}
            ),
        )
        made.train()
    assert metrics.threshold == thresholds_logged(made)[best]
    assert made.model.config.decision_threshold == metrics.threshold


@pytest.mark.smoke
def test_resuming_takes_the_threshold_of_the_checkpoint(tmp_path) -> None:
    whole = made_with(tmp_path, metrics_for_tests())
    whole.train()
    metrics = metrics_for_tests()
    made = made_with(tmp_path, metrics, eval_strategy="no")
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert metrics.threshold == thresholds_logged(whole)[1]


def test_a_model_saved_after_training_carries_its_threshold(tmp_path) -> None:
    metrics = metrics_for_tests()
    made = made_with(tmp_path / "run", metrics, save_strategy="no")
    made.train()
    made.save_model(str(tmp_path / "final"))
    assert load_threshold(tmp_path / "final") == metrics.result
    assert not list(tmp_path.glob("final/*.tmp"))


def test_a_peft_checkpoint_has_its_threshold_too(tmp_path) -> None:
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    metrics = metrics_for_tests()
    made = trainer(
        tmp_path,
        model=get_peft_model(tiny_bert(layers=2), config),
        plan=FreezePlan(trainable=["adapters", "head", "norms"]),
        trainer={"compute_metrics": metrics},
        **EVERY_EPOCH,
    )
    made.train()
    folder = tmp_path / "checkpoint-15"
    assert load_threshold(folder) == metrics.result
    assert (folder / THRESHOLD_FILE).exists()
    assert isinstance(PeftModel.from_pretrained(tiny_bert(layers=2), folder), PeftModel)


def test_a_trainer_without_these_metrics_is_left_alone(tmp_path) -> None:
    made = trainer(
        tmp_path,
        trainer={
            "compute_metrics": lambda pred: {
                "accuracy": float((np.argmax(pred.predictions, -1) == pred.label_ids).mean())
            }
        },
        **EVERY_EPOCH,
    )
    made.train()
    assert not list(tmp_path.rglob(THRESHOLD_FILE))
    assert not hasattr(made.model.config, "decision_threshold")
    assert torch.is_tensor(made.model.classifier.weight)


def test_a_given_threshold_survives_resuming_and_the_best_model(tmp_path) -> None:
    made_with(tmp_path, metrics_for_tests()).train()
    metrics = metrics_for_tests(threshold=0.25)
    made = made_with(tmp_path, metrics, load_best_model_at_end=True)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert metrics.threshold == 0.25


def test_weights_saved_before_anything_was_tuned_carry_no_older_threshold(tmp_path) -> None:
    made = made_with(tmp_path / "run", metrics_for_tests(), save_strategy="no")
    made.train()
    made.save_model(str(tmp_path / "saved"))
    again = made_with(tmp_path / "again", metrics_for_tests(), model=made.model, eval_strategy="no", save_strategy="no")
    again.train()
    again.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / THRESHOLD_FILE).exists()
    assert "decision_threshold" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_a_loaded_model_is_evaluated_at_the_threshold_it_was_saved_with(tmp_path) -> None:
    made = made_with(tmp_path / "run", metrics_for_tests(), save_strategy="no")
    made.train()
    made.save_model(str(tmp_path / "saved"))
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    metrics = metrics_for_tests()
    fresh = made_with(tmp_path / "fresh", metrics, model=model)
    assert fresh.evaluate(text_rows(12, seed=3))["eval_threshold"] == made.compute_metrics.threshold


def test_a_loss_of_ones_own_is_not_warned_of_as_regression(tmp_path, recwarn):
    def loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits[:, 0], labels.float())

    trainer = FreezeTrainer(
        tiny_bert(num_labels=1),
        FreezeTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no"),
        train_dataset=text_rows(8),
        compute_metrics=BinaryClassificationMetrics(n_boot=0),
        compute_loss_func=loss,
        freeze_plan=FreezePlan(trainable="head"),
    )
    trainer.train()
    assert not [warning for warning in recwarn if "regression" in str(warning.message)]


def test_the_threshold_of_the_weights_before_training_is_not_applied_to_those_after(tmp_path) -> None:
    made = made_with(tmp_path / "run", metrics_for_tests(), save_strategy="no")
    made.train()
    made.save_model(str(tmp_path / "saved"))
    assert made.model.config.decision_threshold != 0.0
    again = made_with(tmp_path / "again", metrics_for_tests(), model=made.model, eval_strategy="no", save_strategy="no")
    again.train()
    assert again.evaluate()["eval_threshold"] == 0.0


def test_a_broken_threshold_in_the_models_config_is_said_before_the_first_step(tmp_path) -> None:
    made = made_with(tmp_path, metrics_for_tests())
    made.model.config.decision_threshold = "0.3"
    with pytest.raises(FreezeError, match=r"The config of this Bert\w+ has a decision_threshold that cannot be used"):
        made.train()
    assert made.state.global_step == 0


def weighted_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{**row, "weight": float(rng.exponential() + 0.1)} for row in text_rows(count, seed=seed)]


def test_a_weight_column_reaches_the_metrics_and_not_the_model(tmp_path) -> None:
    rows = weighted_rows(40)
    metrics = metrics_for_tests(sample_weight="weight")
    made = made_with(tmp_path, metrics, rows=weighted_rows(16))
    made.eval_dataset = rows
    seen = set()
    made.model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    made.train()
    predicted = made.predict(rows)
    assert "weight" not in seen
    labels, weight = predicted.label_ids
    assert weight == pytest.approx([row["weight"] for row in rows])
    alone = tune_threshold(predicted.predictions, labels, sample_weight=weight, n_boot=0)
    made.compute_metrics = again = metrics_for_tests(sample_weight="weight")
    again((predicted.predictions, predicted.label_ids))
    assert again.threshold == alone.threshold
    assert metrics.result.weighted_counts is not None


def test_rows_without_their_weight_column_are_refused_and_those_without_labels_predicted(tmp_path) -> None:
    made = made_with(tmp_path, metrics_for_tests(sample_weight="weight"))
    with pytest.raises(FreezeError, match=r"sample_weight='weight', but the rows have no such column. They have"):
        made.evaluate()
    unlabelled = [{k: v for k, v in row.items() if k != "labels"} for row in weighted_rows(8)]
    assert made.predict(unlabelled).label_ids is None


def test_predictions_without_labels_warn_when_far_more_are_called_positive_than_expected(tmp_path) -> None:
    result = ThresholdResult(threshold=-1000.0, prevalence=0.1, tp=100, fp=20, fn=10, tn=870, value=0.8, status="ok")
    made = made_with(tmp_path, BinaryClassificationMetrics(threshold=result))
    unlabelled = [{k: v for k, v in row.items() if k != "labels"} for row in text_rows(64)]
    with pytest.warns(ThresholdWarning, match="100 % of the 64 rows are called positive, where 12 %"):
        made.predict(unlabelled)
