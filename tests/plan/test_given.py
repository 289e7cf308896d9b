"""A plan may be given in every form wherever one is taken."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from hf_freeze import (
    FreezeCallback,
    FreezePlan,
    FreezeTrainer,
    FreezeTrainingArguments,
    PlanError,
    freeze,
    param_groups,
    unfreeze,
)
from hf_freeze.plan.given import as_plan
from tests.models import tiny_bert
from tests.quiet import quiet_arguments

ROWS = [{"input_ids": [5, 6, 7, 8], "labels": i % 2} for i in range(8)]
PLAN = FreezePlan(trainable=["head", "rest", "layers[-2:]"])


def forms(folder):
    file = folder / "plan.json"
    file.write_text(json.dumps(PLAN.to_dict()))
    (folder / "plan.yaml").write_text("trainable: [head, rest, 'layers[-2:]']")
    return [PLAN, PLAN.to_dict(), "last-layers:2", "last_layers:k=2", file, str(file), str(folder / "plan.yaml")]


def arguments(folder, **given):
    return quiet_arguments(folder, cls=TrainingArguments, max_steps=1, save_strategy="no", **given)


def test_every_form_is_the_same_plan(tmp_path):
    assert all(as_plan(form) == PLAN for form in forms(tmp_path))


def test_the_callback_the_trainer_and_the_groups_take_every_form(tmp_path):
    model = tiny_bert(layers=3)
    for form in forms(tmp_path):
        assert FreezeCallback(form).plan == PLAN
        trainer = FreezeTrainer(tiny_bert(layers=3), arguments(tmp_path), train_dataset=ROWS, freeze_plan=form)
        assert trainer._freezing.plan == PLAN
        assert param_groups(model, lr=1.0, plan=form)[0]["name"] == param_groups(model, lr=1.0, plan=PLAN)[0]["name"]


@pytest.mark.parametrize("name", ["freeze", "trainable"])
def test_a_callback_takes_a_selection_instead_of_a_plan(name):
    assert FreezeCallback(**{name: "head"}).plan == FreezePlan(**{name: "head"})


@pytest.mark.parametrize("given", [{}, {"plan": "full", "freeze": "head"}, {"freeze": "head", "trainable": "norms"}])
def test_a_callback_takes_exactly_one(given):
    with pytest.raises(PlanError, match="exactly one of plan, freeze= and trainable="):
        FreezeCallback(**given)


@pytest.mark.parametrize("given", [7, ["head"], b"full"])
def test_what_is_no_plan_is_refused_by_the_argument_it_came_in(given):
    with pytest.raises(PlanError, match=f"freeze_plan=.* is of type {type(given).__name__}. Give a FreezePlan"):
        as_plan(given, argument="freeze_plan")


def test_a_file_that_is_not_there_is_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PlanError, match="plan file .* cannot be read"):
        as_plan(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(("theirs", "refused"), [("last-layers:1", True), ("linear-probe", False)])
def test_groups_of_another_plan_are_refused(tmp_path, theirs, refused):
    model = tiny_bert()
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1, plan=theirs))
    trainer = Trainer(
        model,
        arguments(tmp_path),
        train_dataset=ROWS,
        optimizers=(optimizer, None),
        callbacks=[FreezeCallback("linear-probe")],
    )
    if not refused:
        trainer.train()
        return
    with pytest.raises(PlanError, match="Two plans: the optimizer's groups were built by param_groups"):
        trainer.train()


def with_lora(then=lambda model: None):
    model = get_peft_model(tiny_bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    then(model)
    return model


def test_a_model_init_that_freezes_what_the_plan_trains_is_refused_with_advice_that_helps(tmp_path):
    def train(model_init):
        callback = FreezeCallback(trainable=["adapters", "norms"])
        Trainer(args=arguments(tmp_path), model_init=model_init, train_dataset=ROWS, callbacks=[callback]).train()

    with pytest.raises(PlanError, match=r"model_init returned a model.*hf_freeze.unfreeze\(model, \['norms'\]\)"):
        train(lambda: with_lora())
    train(lambda: with_lora(lambda model: unfreeze(model, ["norms"])))


def test_a_file_that_is_called_like_a_recipe_takes_no_recipes_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").write_text("trainable: head")
    assert as_plan("full") == FreezePlan(trainable="all")
    assert as_plan("./full") == as_plan(tmp_path / "full") == FreezePlan(trainable="head")


@pytest.mark.parametrize("misspelt", ["linear_prob", "linear-prob", "LINEAR-PROBE"])
def test_a_misspelt_recipe_is_answered_with_the_nearest(misspelt):
    with pytest.raises(PlanError, match=rf"'{misspelt}' is not a recipe. Nearest: 'linear-probe'"):
        as_plan(misspelt)


@pytest.mark.parametrize("form", range(6))
def test_arguments_with_a_plan_in_any_form_can_be_saved(tmp_path, form):
    given = forms(tmp_path)[form]
    saved = FreezeTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], freeze_recipe=given)
    assert saved.freeze_plan() == PLAN
    assert json.loads(saved.to_json_string())["freeze_recipe"]


def trained_with(groups, tmp_path, model, plan="linear-probe", kind=Trainer):
    optimizers = (torch.optim.SGD(groups), None)
    if kind is FreezeTrainer:
        FreezeTrainer(model, arguments(tmp_path), train_dataset=ROWS, optimizers=optimizers, freeze_plan=plan).train()
    else:
        callbacks = [FreezeCallback(plan)]
        Trainer(model, arguments(tmp_path), train_dataset=ROWS, optimizers=optimizers, callbacks=callbacks).train()


def test_a_trainer_of_ours_refuses_groups_of_another_plan_as_well(tmp_path):
    model = tiny_bert()
    with pytest.raises(PlanError, match="Two plans: .* for another plan than"):
        trained_with(param_groups(model, lr=0.1, plan="full"), tmp_path, model, kind=FreezeTrainer)


def test_groups_without_a_plan_are_held_to_what_the_callback_trains(tmp_path):
    model = tiny_bert()
    with pytest.raises(PlanError, match="without plan=.* and hold 'bert.*never trains'?. Give param_groups the same"):
        trained_with(param_groups(model, lr=0.1), tmp_path, model)

    freeze(model, "backbone")
    with pytest.raises(PlanError, match="without plan=.* and lack 'bert.* trains. Give param_groups the same"):
        trained_with(param_groups(model, lr=0.1), tmp_path, model, plan="last-layers:1")

    model = tiny_bert()
    freeze(model, "backbone")
    trained_with(param_groups(model, lr=0.1), tmp_path, model)


def test_groups_of_two_parts_may_be_built_apart(tmp_path):
    model = tiny_bert()
    groups = [*param_groups(model.classifier, lr=0.1), *param_groups(model.bert, lr=0.01)]
    trained_with(groups, tmp_path, model, plan="full")
