"""A plan is held against a model once, and again only when the model is another one."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, FreezeRun, FreezeTrainer, PlanError, freezing
from hf_freeze.training import bound_plan
from hf_freeze.training.bound_plan import bind
from tests.models import text_rows, tiny_bert
from tests.training.runs import arguments, freeze_trainer

HEAD = FreezePlan(trainable="head")


@pytest.fixture
def resolved(monkeypatch):
    """The models against which a plan was held, in order."""
    models: list[nn.Module] = []
    resolve = bound_plan.resolve

    def noting(plan, model, **given):
        models.append(model)
        return resolve(plan, model, **given)

    monkeypatch.setattr(bound_plan, "resolve", noting)
    return models


def test_a_freeze_trainer_holds_its_plan_against_the_model_once(tmp_path, resolved):
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, trainable="head", save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resolved == [model]


def test_a_callback_holds_its_plan_against_the_model_once(tmp_path, resolved):
    model = tiny_bert()
    args = arguments(tmp_path, TrainingArguments)
    trainer = Trainer(model, args, train_dataset=text_rows(), callbacks=[FreezeCallback(HEAD)])
    for _ in range(2):
        trainer.train()
    assert resolved == [model]


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_a_model_of_other_sizes_is_held_against_the_plan_again(tmp_path, resolved, kind):
    model = tiny_bert()
    plan = FreezePlan(trainable=["head", "embeddings"])
    given = {"freeze_plan": plan} if kind == "trainer" else {"callbacks": [FreezeCallback(plan)]}
    cls = FreezeTrainer if kind == "trainer" else Trainer
    trainer = cls(model, arguments(tmp_path, TrainingArguments), train_dataset=text_rows(), **given)
    model.resize_token_embeddings(80)
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    trainer.train()
    assert resolved == [model, model]


def test_it_fits_the_model_in_any_wrapper_and_no_copy_of_it():
    model = tiny_bert()
    bound = bind(HEAD, model)
    assert bound.fits(HEAD, nn.DataParallel(model))
    assert not bound.fits(HEAD, tiny_bert())
    assert not bound.fits(FreezePlan(trainable="all"), model)
    model.resize_token_embeddings(80)
    assert not bound.fits(HEAD, model)


def test_its_tensors_are_those_that_the_model_has_now():
    """FSDP puts others in their place."""
    model = tiny_bert()
    bound = bind(HEAD, model)
    model.classifier.bias = nn.Parameter(torch.zeros(2))
    assert bound.ever_trainable["classifier.bias"] is model.classifier.bias
    assert bound.ever_trainable.keys() == {"classifier.weight", "classifier.bias"}


def test_a_loop_written_for_the_first_names_of_its_calls_goes_on():
    assert FreezeRun.optimizer_steps is FreezeRun.before_optimizer_step
    assert FreezeRun.optimizer_stepped is FreezeRun.after_optimizer_step


class WithLoss(Trainer):
    """A Trainer of a library: it may be given a loss, and freezes what it likes."""

    def __init__(self, model=None, args=None, loss=None, freezes=None, **given):
        super().__init__(model, args, **given)
        for parameter in [] if freezes is None else model.get_submodule(freezes).parameters():
            parameter.requires_grad_(False)


def test_all_of_a_model_may_be_frozen_only_beside_a_loss_that_trains(tmp_path):
    trainer, _ = freezing(WithLoss)
    with pytest.raises(PlanError, match="Nothing would train"):
        trainer(tiny_bert(), arguments(tmp_path), freeze_plan=FreezePlan(freeze="all"), loss=nn.Identity())


def test_what_the_trainer_freezes_in_its_constructor_is_taken_as_handed_in_frozen(tmp_path):
    trainer, _ = freezing(WithLoss)
    plan = FreezePlan(trainable="all")
    made = trainer(tiny_bert(), arguments(tmp_path), freeze_plan=plan, freezes="bert.embeddings")
    assert not any("embeddings" in name for name in made.resolved_plan.ever_trainable)
    assert "classifier.weight" in made.resolved_plan.ever_trainable
