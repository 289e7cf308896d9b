"""compute_metrics= in a real Trainer: one set, several sets, batch by batch, and what predict does."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_freeze import BinaryClassificationMetrics, load_threshold, predict_binary
from hf_freeze.binary.saved_threshold import threshold_saved_with_weights
from tests.binary.conftest import WORDS

pytestmark = pytest.mark.filterwarnings(
    "ignore::hf_freeze.ThresholdWarning",
    "ignore:.*pin_memory.*:UserWarning",
)


def dataset(n, seed):
    """Texts of word ids: those with the word "win" (id 2) are mostly positive."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, len(WORDS), size=(n, 6))
    labels = (rng.random(n) < 0.25).astype(int)
    ids[:, 0] = np.where(rng.random(n) < 0.8, np.where(labels == 1, 2, ids[:, 0]), ids[:, 0])
    mask = torch.ones(6, dtype=torch.long)
    return [
        {"input_ids": torch.tensor(row), "attention_mask": mask, "labels": int(y)}
        for row, y in zip(ids, labels, strict=True)
    ]


def train(folder, model, metrics, eval_dataset, *, trainer_class=Trainer, save_strategy="no", **arguments):
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=4,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy=save_strategy,
        **arguments,
    )
    trainer = trainer_class(
        model, args, train_dataset=dataset(64, 0), eval_dataset=eval_dataset, compute_metrics=metrics
    )
    trainer.train()
    return trainer


def evaluations(trainer):
    return [entry for entry in trainer.state.log_history if any(key.endswith("_f1") for key in entry)]


@pytest.mark.parametrize("batched", [False, True])
def test_a_plain_trainer_logs_every_figure_and_tunes_at_every_evaluation(tmp_path, make_model, batched):
    metrics = BinaryClassificationMetrics()
    trainer = train(tmp_path, make_model(), metrics, dataset(101, 1), batch_eval_metrics=batched)
    first, second = evaluations(trainer)
    assert first["eval_threshold"] != second["eval_threshold"] == metrics.threshold
    assert second["eval_n_pos"] + second["eval_n_neg"] == 101
    assert {"eval_f1_oob", "eval_auroc", "eval_average_precision", "eval_f1_at_half", "eval_objective"} <= set(second)


def test_batch_by_batch_the_trainer_reports_the_same(tmp_path, make_model):
    whole = train(tmp_path, make_model(), BinaryClassificationMetrics(), dataset(101, 1))
    batched = train(tmp_path, make_model(), BinaryClassificationMetrics(), dataset(101, 1), batch_eval_metrics=True)
    timing = ("runtime", "per_second", "preparation_time")
    for one, other in zip(evaluations(whole), evaluations(batched), strict=True):
        assert {k: v for k, v in one.items() if not k.endswith(timing)} == {
            k: v for k, v in other.items() if not k.endswith(timing)
        }


def test_frozen_metrics_apply_their_threshold_to_the_test_set(tmp_path, make_model):
    metrics = BinaryClassificationMetrics()
    trainer = train(tmp_path, make_model(), metrics, dataset(101, 1))
    metrics.freeze()
    tuned = metrics.result
    output = trainer.predict(dataset(77, 2))
    assert metrics.result is tuned
    assert output.metrics["test_threshold"] == tuned.threshold
    predicted = predict_binary(output.predictions, tuned).label
    assert output.metrics["test_tp"] == (predicted & output.label_ids).sum()
    assert "test_f1_oob" not in output.metrics


class PhaseTrainer(Trainer):
    """What FreezeTrainer does: it says which set is evaluated, and whether that is part of training."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        own_set = eval_dataset is None or isinstance(eval_dataset, str)
        with self.compute_metrics.evaluation(metric_key_prefix, in_training=self.is_in_train and own_set):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        with self.compute_metrics.evaluation(metric_key_prefix, in_training=False):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def save_model(self, output_dir=None, _internal_call=False):
        result, folder = self.compute_metrics.result, output_dir or self.args.output_dir
        with threshold_saved_with_weights(result, folder, model=self.model, should_save=self.args.should_save):
            super().save_model(output_dir, _internal_call)


def test_only_the_designated_set_tunes_and_nothing_after_training_does(tmp_path, make_model):
    metrics = BinaryClassificationMetrics(tune_on="valid")
    sets = {"hard": dataset(55, 3), "valid": dataset(101, 1), "last": dataset(66, 4)}
    trainer = train(tmp_path, make_model(), metrics, sets, trainer_class=PhaseTrainer)
    merged = {key: value for entry in evaluations(trainer)[-3:] for key, value in entry.items()}
    tuned = metrics.result
    assert merged["eval_valid_threshold"] == merged["eval_last_threshold"] == tuned.threshold
    assert tuned.n_pos + tuned.n_neg == 101
    assert merged["eval_valid_f1_oob"] != merged["eval_valid_f1"]
    assert "eval_hard_f1_oob" not in merged
    trainer.evaluate()
    trainer.evaluate(dataset(77, 2))
    trainer.predict(dataset(77, 2))
    assert metrics.result is tuned
    with metrics.tuning():
        trainer.evaluate(dataset(77, 2))
    assert metrics.result.n_pos + metrics.result.n_neg == 77


def test_each_checkpoint_has_the_threshold_of_its_own_evaluation(tmp_path, make_model):
    metrics = BinaryClassificationMetrics()
    trainer = train(
        tmp_path,
        make_model(),
        metrics,
        dataset(101, 1),
        trainer_class=PhaseTrainer,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="average_precision",
    )
    for step, entry in zip((2, 4), evaluations(trainer), strict=True):
        stored = load_threshold(tmp_path / f"checkpoint-{step}")
        assert stored.threshold == entry["eval_threshold"]
        assert stored.oob_value == entry["eval_f1_oob"]
    metrics.use(load_threshold(trainer.state.best_model_checkpoint))
    best = max(evaluations(trainer), key=lambda entry: entry["eval_average_precision"])
    assert trainer.evaluate()["eval_f1"] == pytest.approx(best["eval_f1"])
