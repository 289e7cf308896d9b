"""Which layers a rotation trains when."""

import random

import pytest
import torch
from torch import nn

from hf_freeze import FreezePlan, PlanError, Stage, recipes
from hf_freeze.plan.given import as_plan
from hf_freeze.plan.stages import Rotate
from tests.models import tiny_bert, tiny_t5


def rotation(model=None, **options):
    return recipes.rotate(**options).resolve(model or tiny_bert(layers=5)).rotation


def layers(found, period: int) -> set[int]:
    return {found.layer_of[name] for name in found.names(period)}


def test_every_layer_comes_once_in_a_cycle_and_each_random_cycle_has_its_own_order():
    found = rotation(layers=2)
    cycles = [[layers(found, 3 * cycle + place) for place in range(3)] for cycle in range(6)]
    for cycle in cycles:
        assert set().union(*cycle) == set(range(5))
        assert sum(map(len, cycle)) == 5
    assert len({str(cycle) for cycle in cycles}) > 1


def test_the_layers_follow_the_seed_and_no_global_random_state():
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    first = [layers(rotation(layers=1, seed=3), period) for period in range(20)]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    random.seed(2)
    assert [layers(rotation(layers=1, seed=3), period) for period in reversed(range(20))] == first[::-1]
    assert [layers(rotation(layers=1, seed=4), period) for period in range(20)] != first


@pytest.mark.parametrize(("order", "expected"), [("ascending", [0, 1, 2, 3, 4, 0]), ("descending", [4, 3, 2, 1, 0, 4])])
def test_layers_in_order(order, expected):
    found = rotation(layers=1, order=order)
    assert [layers(found, period) for period in range(6)] == [{layer} for layer in expected]


def test_what_trains_throughout_is_no_layer_of_the_rotation():
    model = tiny_bert(layers=3)
    found = recipes.rotate(layers=1, always=["head", "layers[-1]"]).resolve(model)
    assert [*found.rotation.layers] == ["layers[0]", "layers[1]"]
    for period in range(4):
        assert {n for n, _ in model.named_parameters() if "classifier" in n or "layer.2." in n} < found.trains(
            0, period
        )


def test_the_layers_of_all_stacks_take_turns():
    assert len(rotation(tiny_t5(), layers=1, always="embeddings").layers) == 5


def test_it_is_shown_by_its_first_periods_and_the_length_of_a_cycle():
    lines = str(recipes.rotate(layers=2, every=20, seed=7).resolve(tiny_bert(layers=5))).splitlines()
    assert lines[1].endswith("head, 2 of 5 layers, others every 20 steps (random, seed 7)")
    assert lines[2:] == [
        "The rotation, from step 0 layers[2], layers[4]; 20 layers[0:2]; 40 layers[3]; 60 the next cycle, in another order."
    ]
    many = str(recipes.rotate(layers=1, every=10, order="ascending").resolve(tiny_bert(layers=9))).splitlines()
    assert many[2].endswith("20 layers[2]; 30 layers[3]; ...; 90 the next cycle, in the same order.")


def test_nothing_but_the_layers_may_train():
    model = tiny_bert(layers=3)
    found = recipes.rotate(layers=1, order="ascending", always=None).resolve(model)
    assert found.trains(0, 1) == {name for name, _ in model.named_parameters() if "layer.1." in name}
    assert FreezePlan.from_dict(found.plan.to_dict()) == found.plan
    assert str(found).splitlines()[1].endswith("  only 1 of 3 layers, others every 20 steps (ascending)")


def test_a_group_of_several_layers_trains_while_one_of_them_does_and_with_what_trains_throughout():
    found = rotation(tiny_bert(layers=4), layers=1, every=5, order="ascending")
    of = [{name for name, place in found.layer_of.items() if place == layer} for layer in range(4)]
    assert [found.factor(found.places(of[1] | of[2]), step, 0) for step in (0, 5, 10, 15)] == [0.0, 1.0, 1.0, 0.0]
    assert [found.factor(found.places(of[1] | {"classifier.weight"}), step, 0) for step in (0, 5, 10, 15)] == [1.0] * 4


@pytest.mark.parametrize(
    ("max_steps", "never"), [(10, "2 never train: layers[2:4]"), (15, "1 never train: layers[3]"), (16, "")]
)
def test_a_run_that_ends_before_every_layer_had_its_turn_is_warned_of(caplog, max_steps, never):
    found = rotation(tiny_bert(layers=4), layers=1, every=5, order="ascending")
    found.check_length(max_steps)
    assert never in caplog.text
    assert bool(never) == bool(caplog.records)


def test_it_is_a_recipe_on_the_command_line_and_a_mapping():
    plan = recipes.rotate(layers=1, every=5, seed=2, order="descending", always="all & norms")
    assert as_plan("rotate:layers=1,every=5,seed=2,order=descending,always=all & norms") == plan
    assert FreezePlan.from_dict(plan.to_dict()) == plan
    assert as_plan("rotate:1") == recipes.rotate(layers=1)


@pytest.mark.parametrize(("options", "said"), [("order=", "not option=text"), ("seed=a", "not option=number")])
def test_an_option_of_a_recipe_that_says_nothing_is_refused(options, said):
    with pytest.raises(PlanError, match=said):
        as_plan(f"rotate:layers=1,{options}")


def test_the_period_that_stands_for_all_trains_most_and_reaches_lowest():
    model = tiny_bert(layers=4)
    found = recipes.rotate(layers=1, order="descending").resolve(model)
    assert found.rotation.largest(found.sizes) == 3
    uneven = recipes.rotate(layers=3, order="descending").resolve(model)
    assert uneven.rotation.largest(uneven.sizes) == 0


def test_rotations_that_differ_have_other_fingerprints():
    plans = [{}, {"seed": 1}, {"every": 21}, {"order": "ascending"}, {"layers": 1}]
    assert len({recipes.rotate(**options).resolve(tiny_bert()).fingerprint for options in plans}) == len(plans)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 0},
        {"layers": True},
        {"every": 0},
        {"every": 1.5},
        {"seed": -1},
        {"order": "up"},
        {"order": ["random"]},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(PlanError, match="seed one of at least 0, and order one of random, ascending, descending"):
        recipes.rotate(**options)


def test_what_a_model_cannot_rotate_is_refused():
    with pytest.raises(PlanError, match="trains 3 layers at a time, but this model has only 2"):
        recipes.rotate(layers=3).resolve(tiny_bert(layers=2))
    with pytest.raises(PlanError, match="all layers of this model train from the start"):
        recipes.rotate(always="all").resolve(tiny_bert())
    with pytest.raises(PlanError, match="this model has none"):
        FreezePlan(trainable="all", stages=[Rotate()]).resolve(nn.Linear(2, 2))


def test_a_rotation_beside_other_stages_is_refused():
    with pytest.raises(PlanError, match="Make it the only stage"):
        FreezePlan(trainable="head", stages=[Stage(step=3, unfreeze="embeddings"), Rotate()])
