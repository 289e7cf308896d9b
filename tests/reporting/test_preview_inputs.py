"""A preview refuses what it cannot answer, and what training refuses."""

import pytest
import torch
import transformers as hf

from hf_freeze import FreezeError, PlanError, Plateau, Stage, UnsupportedSetupError, preview
from hf_freeze.plan import recipes
from hf_freeze.plan.freeze_plan import FreezePlan
from tests.models import text_batch, tiny_bert
from tests.quiet import quiet_arguments as arguments
from tests.training.runs import freeze_trainer

HEAD = FreezePlan(trainable="head")


@pytest.mark.parametrize("name", ["rows", "tokens", "batch_size"])
@pytest.mark.parametrize("count", [0, -3, 2.5, "a", True, [1, 2]])
def test_a_count_is_a_whole_number_of_at_least_one(name, count):
    with pytest.raises(FreezeError, match=rf"{name}=.* is not a whole number of at least 1"):
        preview(tiny_bert(), arguments(), plan=HEAD, **{name: count})


def test_texts_longer_than_the_model_takes_are_refused():
    assert not preview(tiny_bert(), arguments(), plan=HEAD, tokens=32).remarks
    with pytest.raises(FreezeError, match="tokens=33: .* max_position_embeddings=32"):
        preview(tiny_bert(), arguments(), plan=HEAD, tokens=33)


@pytest.mark.parametrize("model", [None, hf.BertForSequenceClassification, 7])
def test_a_model_is_a_model_or_what_names_one(model):
    with pytest.raises(FreezeError, match="Give a model, a configuration, or the name"):
        preview(model, arguments(), plan=HEAD)


@pytest.mark.parametrize("args", [None, {"learning_rate": 1.0}])
def test_arguments_are_training_arguments(args):
    with pytest.raises(FreezeError, match="are not TrainingArguments"):
        preview(tiny_bert(), args, plan=HEAD)


@pytest.mark.parametrize("batch", [[1, 2], {}, {"input_ids": [[1, 2, 3]], "labels": [0]}])
def test_a_batch_holds_tensors_by_name(batch):
    with pytest.raises(FreezeError, match="is not a mapping of a model's inputs to tensors"):
        preview(tiny_bert(), arguments(), plan=HEAD, batch=batch)


def test_a_batch_of_inputs_that_the_model_does_not_take_is_refused():
    with pytest.raises(FreezeError, match=r"batch has 'x', which BertForSequenceClassification\.forward does not take"):
        preview(tiny_bert(), arguments(), plan=HEAD, batch={"x": torch.zeros(2, 3)})
    with pytest.raises(FreezeError, match=r"batch has 'x', which Linear\.forward .* It takes input\."):
        preview(torch.nn.Linear(3, 2), arguments(), batch={"input": torch.zeros(2, 3), "x": torch.zeros(1)})
    assert not preview(tiny_bert(), arguments(), plan=HEAD, batch=text_batch(2)).remarks


def test_a_plan_may_be_a_recipe_or_a_mapping_and_nothing_else():
    of_recipe = preview(tiny_bert(), arguments(), plan="linear-probe").to_dict()
    assert of_recipe == preview(tiny_bert(), arguments(), plan=recipes.linear_probe()).to_dict()
    assert of_recipe == preview(tiny_bert(), arguments(), plan={"trainable": "head"}).to_dict()
    with pytest.raises(PlanError, match="'linear' is not a recipe"):
        preview(tiny_bert(), arguments(), plan="linear")
    with pytest.raises(PlanError, match=r"plan=\['head'\] is of type list"):
        preview(tiny_bert(), arguments(), plan=["head"])


@pytest.mark.parametrize(
    "time", [{"epoch": 1}, {"plateau": Plateau("eval_loss", max_epochs=2)}], ids=["epoch", "max_epochs"]
)
def test_a_plan_in_epochs_over_a_run_in_steps_asks_for_the_rows(time):
    plan = FreezePlan(trainable="head", stages=[Stage(**time, unfreeze="all")])
    args = arguments(max_steps=8, eval_strategy="epoch")
    with pytest.raises(PlanError, match="counts epochs.*Give rows=, the number of rows"):
        preview(tiny_bert(), args, plan=plan)
    assert preview(tiny_bert(), args, plan=plan, rows=16).schedule.steps_per_epoch == 2


def test_what_training_refuses_is_refused_with_the_same_error(tmp_path):
    waits = FreezePlan(trainable="head", stages=[Stage(plateau=Plateau("eval_loss"), unfreeze="all")])
    cases = [
        ({"eval_strategy": "no"}, waits, PlanError),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["query"]}, HEAD, UnsupportedSetupError),
    ]
    for values, plan, error in cases:
        with pytest.raises(error) as in_training:
            freeze_trainer(tiny_bert(), tmp_path, freeze_plan=plan, max_steps=2, **values).train()
        with pytest.raises(error) as ahead:
            preview(tiny_bert(), arguments(**values), plan=plan)
        assert str(ahead.value) == str(in_training.value)
