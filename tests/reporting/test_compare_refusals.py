"""What cannot be compared is refused before anything is trained, with what was given and what to do."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from torch.utils.data import IterableDataset
from transformers import BartForSequenceClassification

from hf_freeze import FreezePlan, PlanError, Stage
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison.contenders import default_contenders
from tests import models
from tests.models import text_rows, tiny_bert
from tests.reporting.compared import arguments, tiny_comparison

PROBE = {"probe": "linear-probe"}
STAGES = [Stage(fraction=0.6, unfreeze="layers[-1]"), Stage(fraction=0.7, unfreeze="all")]


def relabelled(label, count=32):
    return [{**row, "labels": label(row["labels"], index)} for index, row in enumerate(text_rows(count, seed=1))]


class Rows(IterableDataset):
    def __iter__(self):
        return iter(text_rows(3))


class ThreeLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_bert(num_labels=3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.inner(input_ids, attention_mask, labels=labels)


def three(label, index):
    return index % 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_dataset": []}, "train_dataset has no rows"),
        ({"eval_dataset": []}, "eval_dataset has no rows"),
        ({"test_dataset": []}, "test_dataset has no rows"),
        ({"eval_dataset": None}, "eval_dataset=None"),
        ({"eval_dataset": {"a": text_rows(4), "b": text_rows(4)}}, r"mapping of \['a', 'b'\]"),
        ({"test_dataset": Rows()}, "test_dataset is a Rows, an iterable set"),
        ({"train_dataset": relabelled(three)}, "train_dataset: Labels must be 0 or 1 .* they include 2"),
        ({"train_dataset": Dataset.from_list(relabelled(three))}, "train_dataset: Labels must be 0 or 1"),
        ({"eval_dataset": relabelled(three)}, "eval_dataset: Labels must be 0 or 1"),
        ({"test_dataset": relabelled(three)}, "test_dataset: Labels must be 0 or 1"),
        ({"eval_dataset": relabelled(lambda label, index: 0)}, "eval_dataset: all 32 rows are negative"),
        ({"train_dataset": relabelled(lambda label, index: 1)}, "train_dataset: all 32 rows are positive"),
        ({"train_dataset": relabelled(lambda label, index: bool(label))}, r"train_dataset: .* labels \(bool, \(8,\)\)"),
        ({"eval_dataset": [{"input_ids": [3, 4]}]}, "eval_dataset: no labels reach the model"),
        ({"model_init": ThreeLogits}, r"Logits of shape \(8, 3\)"),
        (
            {"args": arguments(dataloader_drop_last=True), "train_dataset": text_rows(5)},
            "5 rows do not fill one batch of 8",
        ),
        (
            {"args": arguments(dataloader_drop_last=True), "eval_dataset": text_rows(5)},
            "5 rows do not fill one batch of 16",
        ),
        ({"args": arguments(max_steps=-1, num_train_epochs=0)}, "a run of 0 steps"),
        ({"seeds": 3}, "seeds=3"),
        ({"model_init": dict}, "model_init returned a dict"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
def test_data_and_settings_that_make_no_run_are_refused(tmp_path, trained, given, message):
    with pytest.raises(FreezeError, match=message):
        tiny_comparison(PROBE, tmp_path, **given)
    assert not trained
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        (["full"], r"plans=\['full'\] is a list"),
        ({**PROBE, "b": LoraConfig(target_modules=["qqq"])}, r"plans\['b'\]: PEFT cannot put this adapter"),
        ({**PROBE, "b": FreezePlan(trainable="head", stages=STAGES)}, "at the same step"),
    ],
    ids=["list", "adapter", "stages"],
)
def test_plans_that_fit_neither_model_nor_run_are_refused(tmp_path, trained, plans, message):
    with pytest.raises(PlanError, match=message):
        tiny_comparison(plans, tmp_path, args=arguments(max_steps=2))
    assert not trained


def test_labels_that_the_collator_makes_are_judged_as_the_model_gets_them(tmp_path, trained):
    def collate(rows):
        return {
            "input_ids": torch.tensor([row["input_ids"] for row in rows]),
            "labels": torch.tensor([row["labels"] - 1 for row in rows]),
        }

    later = {"train_dataset": relabelled(lambda label, _: label + 1), "eval_dataset": relabelled(lambda y, _: y + 1)}
    with pytest.raises(FreezeError, match="they include 2"):
        tiny_comparison(PROBE, tmp_path, **later)
    tiny_comparison(PROBE, tmp_path, data_collator=collate, **later)
    assert trained == ["probe"]


def test_labels_that_the_collator_makes_may_be_of_one_class_in_the_few_rows_that_are_looked_at(tmp_path, trained):
    def collate(rows):
        return {
            "input_ids": torch.tensor([row["input_ids"] for row in rows]),
            "labels": torch.tensor([int(row["input_ids"][0] in (11, 12, 13)) for row in rows]),
        }

    rows = [{"input_ids": [10 + place, 5, 6]} for place in range(32)]
    tiny_comparison(PROBE, tmp_path, data_collator=collate, train_dataset=rows, eval_dataset=rows)
    assert trained == ["probe"]


def test_a_model_that_is_returned_again_is_refused(tmp_path, trained):
    model = tiny_bert()
    with pytest.raises(FreezeError, match="model_init returned the same model twice"):
        tiny_comparison({"a": "full", "b": "full"}, tmp_path, model_init=lambda: model)
    wrapped = models.tiny_custom().backbone
    with pytest.raises(FreezeError, match="both calls gave the same 'backbone"):
        tiny_comparison(PROBE, tmp_path, model_init=lambda: models.BackboneWithHead(wrapped))
    assert not trained


def test_a_model_that_draws_its_weights_by_no_seed_is_refused(tmp_path, trained):
    seeds = iter(range(9))
    with pytest.raises(FreezeError, match="different weights under the same seed"):
        tiny_comparison(PROBE, tmp_path, model_init=lambda: tiny_bert(seed=next(seeds)))
    assert not trained


@pytest.mark.parametrize(
    ("steps", "left_out"),
    [(1, {"gradual", "lp-ft"}), (2, {"gradual"}), (4, set()), (8, set())],
)
def test_of_the_default_set_what_does_not_fit_the_run_is_left_out(tmp_path, trained, caplog, steps, left_out):
    tiny_comparison(None, tmp_path, args=arguments(max_steps=steps))
    every = {"linear-probe", "last-layers", "gradual", "lp-ft", "layer-decay", "lora", "full"}
    assert set(trained) == every - left_out
    assert all(f"{name} is left out of the comparison" in caplog.text for name in left_out)


class NoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, input_ids, labels=None):
        logits = self.out(self.embed(input_ids).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_of_the_default_set_what_does_not_fit_the_model_is_left_out(tmp_path, trained, caplog):
    tiny_comparison(None, tmp_path, model_init=NoLayers)
    assert {"linear-probe", "full"} <= set(trained)
    assert not {"last-layers", "gradual", "lora"} & set(trained)
    assert "last-layers is left out of the comparison" in caplog.text


def test_the_last_layers_of_an_encoder_decoder_are_the_decoders():
    model = BartForSequenceClassification(models.tiny_bart(layers=2, decoder_layers=3).config)
    known = default_contenders(model, arguments(), train_rows=48)
    trains = known["last-layers"].freeze_plan.resolve(model).ever_trainable
    layers = {name.rpartition(".layers.")[0] + name.partition(".layers.")[2][:1] for name in trains if "layers" in name}
    assert layers == {"model.decoder1", "model.decoder2"}
    assert "rest" in known["last-layers"].freeze_plan.trainable
    assert math.isfinite(known["gradual"].freeze_plan.resolve(model).timed[-1].epoch)
