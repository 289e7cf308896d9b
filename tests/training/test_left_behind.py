"""What a run that broke off leaves on the model: nothing, whatever stopped it and whoever still holds on to it."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, FreezeRun, FreezeSettings
from hf_freeze.training.freezing import freeze
from tests.models import text_batch, text_rows, tiny_bert
from tests.training.runs import AtStep, arguments, moved, weights

EVENTS = ["on_train_begin", "on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_step_end", "on_log"]
old_name = pytest.mark.filterwarnings("ignore:.gradient_checkpointing\\w*. is deprecated:FutureWarning")


class StoppedError(Exception):
    """What the user's code raises."""


def stop(*args, **kwargs):
    raise StoppedError


class StopAt(TrainerCallback):
    def __init__(self, event):
        setattr(self, event, stop)


def plain(model, folder, *callbacks, **overrides):
    given = {"data_collator": overrides.pop("data_collator", None)}
    return Trainer(
        model,
        arguments(folder, TrainingArguments, **overrides),
        train_dataset=text_rows(),
        callbacks=[*callbacks],
        **given,
    )


def broken(model, folder, *callbacks, **overrides):
    """Train with a plan until something raises; return the trainer and the exception, which keep all of it alive."""
    freezing = FreezeCallback(FreezePlan(trainable="head"))
    trainer = plain(model, folder, freezing, *callbacks, gradient_accumulation_steps=2, **overrides)
    try:
        trainer.train()
    except (StoppedError, KeyboardInterrupt) as error:
        return trainer, error
    raise AssertionError("nothing stopped the run")


def hooks(model):
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
    }


def assert_plain(model, before):
    model.train()
    assert all(module.training for module in model.modules())
    assert "train" not in vars(model)
    assert hooks(model) == before


@pytest.mark.parametrize("event", EVENTS)
def test_a_run_that_a_callback_stopped_leaves_a_plain_model(tmp_path, event):
    model = tiny_bert()
    before = hooks(model)
    held = broken(model, tmp_path, StopAt(event))
    assert_plain(model, before)
    assert held


@pytest.mark.parametrize("where", ["collator", "model"])
def test_a_run_that_its_collator_or_its_model_stopped_leaves_a_plain_model(tmp_path, where):
    model = tiny_bert()
    handle = model.classifier.register_forward_hook(stop) if where == "model" else None
    held = broken(model, tmp_path, **({"data_collator": stop} if where == "collator" else {}))
    if handle:
        handle.remove()
    assert_plain(model, hooks(tiny_bert()))
    assert held


@old_name
def test_a_plain_run_after_a_broken_one_is_that_of_a_model_that_never_had_a_plan(tmp_path):
    model = tiny_bert()
    start = copy.deepcopy(model.state_dict())
    held = broken(model, tmp_path, StopAt("on_step_end"), gradient_checkpointing=True)
    model.load_state_dict(start)
    model.requires_grad_(True)
    untouched = tiny_bert()
    untouched.load_state_dict(start)
    for one in (model, untouched):
        plain(one, tmp_path).train()
    assert moved(weights(untouched), model) == set()
    assert held


def test_the_trainer_itself_goes_on_without_the_callback_or_with_it(tmp_path):
    model = tiny_bert()
    seen = []
    look = AtStep(lambda model, optimizer: seen.append(model.bert.encoder.layer[0].training), event="on_step_end")
    trainer, _ = broken(model, tmp_path, StopAt("on_step_end"))
    trainer.remove_callback(StopAt)
    trainer.add_callback(look)
    trainer.train()
    trainer.remove_callback(FreezeCallback)
    trainer.train()
    assert seen == [False, True]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end"])
def test_a_copy_made_while_training_is_a_plain_model(tmp_path, copied, event):
    copies = []
    step = 0 if event == "on_step_begin" else 1
    take = AtStep(lambda model, optimizer: copies.append(copied(model)), step=step, event=event)
    model = tiny_bert()
    plain(model, tmp_path, FreezeCallback(FreezePlan(trainable="head")), take, gradient_accumulation_steps=2).train()
    (twin,) = copies
    twin.train()
    assert all(module.training for module in twin.modules())
    assert torch.isfinite(twin(**text_batch(), num_items_in_batch=torch.tensor(4)).loss)


def test_a_run_by_hand_that_is_forgotten_lets_go_of_the_model():
    model = tiny_bert()
    resolved = FreezePlan(trainable="head").resolve(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = FreezeRun(resolved, model, optimizer, settings=FreezeSettings(), max_steps=2, steps_per_epoch=None)
    run.begin()
    undone = []
    run.undo_at_end(lambda: undone.append("at once, whoever calls train() later"))
    model.train()
    assert not model.bert.training
    del run
    gc.collect()
    assert undone
    assert_plain(model, hooks(tiny_bert()))


def test_another_run_over_the_model_is_not_undone_by_the_end_of_a_forgotten_one(tmp_path):
    model = tiny_bert()
    first = broken(model, tmp_path, StopAt("on_step_end"))
    seen = []

    def forget_and_look(model, optimizer):
        nonlocal first
        first = None
        gc.collect()
        model.train()
        seen.append([module.training for module in (model.bert, model.classifier)])

    plain(model, tmp_path, FreezeCallback(FreezePlan(trainable="head")), AtStep(forget_and_look)).train()
    assert seen == [[False, True]]


@old_name
def test_recomputation_set_up_since_is_not_undone_by_what_a_broken_run_left(tmp_path):
    model = tiny_bert()
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    held = broken(model, tmp_path, StopAt("on_step_end"), **reentrant)
    theirs = object()
    layer: nn.Module = model.bert.encoder.layer[0]
    layer._gradient_checkpointing_func = theirs
    freeze(model, "head")
    model.train()
    assert layer._gradient_checkpointing_func is theirs
    assert held
