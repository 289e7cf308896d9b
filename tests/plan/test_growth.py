"""What a plan costs grows with the model, not with its square: counted in calls, never in seconds."""

import sys

import pytest
import torch

from hf_freeze import FreezePlan, freeze, param_groups, recipes, trainable_summary
from hf_freeze.training.bound_plan import bind
from hf_freeze.training.freezing import plan_as_it_is
from hf_freeze.training.saved_names import lost_and_unknown
from hf_freeze.training.schedule import RateGate
from tests.models import tiny_bert
from tests.training.runs import freeze_trainer


def as_it_is(model):
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    return plan_as_it_is(model).resolve(model)


def path_per_layer(model):
    layers = len(model.bert.encoder.layer)
    return FreezePlan(trainable=[f"bert.encoder.layer.{index}" for index in range(layers)]).resolve(model)


def calls(work, layers):
    """Count the calls of functions, C functions and generators that `work` makes on a model of so many layers."""
    model = tiny_bert(layers=layers)
    return counted(lambda: work(model))


def counted(work):
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "work",
    [
        as_it_is,
        path_per_layer,
        recipes.gradual().resolve,
        lambda model: param_groups(model, lr=0.1, plan=recipes.gradual(), layer_lr_decay=0.9),
        lambda model: freeze(model, "backbone"),
        trainable_summary,
        lambda model: FreezePlan(trainable="all").resolve(model).fingerprint,
    ],
    ids=["as it is", "path per layer", "gradual", "groups", "freeze", "summary", "fingerprint"],
)
def test_twice_the_layers_take_at_most_about_twice_the_calls(work):
    calls(work, 2)  # what is imported or cached once
    assert calls(work, 40) < 2.3 * calls(work, 20)


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_rates_of_a_stage_for_each_layer_take_calls_for_each_group_not_for_each_stage_of_it(warmup):
    def rates(layers):
        model, plan = tiny_bert(layers=layers), recipes.gradual()
        bound = bind(plan, model)
        optimizer = torch.optim.SGD(param_groups(model, lr=0.1, plan=plan))
        begins = range(len(bound.resolved.stages))
        return counted(lambda: RateGate(optimizer, bound, warmup=warmup).apply(begins, step=begins[-1]))

    rates(2)
    assert rates(100) < 2.3 * rates(50)


def test_names_of_weights_are_not_looked_up_in_a_list():
    class Saved(list):
        def __contains__(self, name):
            raise AssertionError("this takes as long as the list is")

    model = tiny_bert()
    saved = [name for name, _ in model.named_parameters() if name != "classifier.bias"]
    assert lost_and_unknown(model, Saved(["other", *saved])) == (["classifier.bias"], ["other"])


def test_a_step_without_a_plan_on_a_partly_frozen_model_walks_it_a_fixed_number_of_times(tmp_path):
    def step(model):
        for parameter in list(model.parameters())[::2]:
            parameter.requires_grad_(False)
        freeze_trainer(model, tmp_path, max_steps=1).train()

    calls(step, 2)
    plain, more = calls(step, 10), calls(step, 20)
    assert more < 2.1 * plain
