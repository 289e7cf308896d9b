"""A plan held against a model: what trains in each stage."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from hf_freeze import FreezePlan, PlanError, SelectionError, Stage
from hf_freeze.plan.tables import describe_parts
from tests.models import tiny_bart, tiny_bert, tiny_gpt2_lm

MODEL = tiny_bert(layers=4)
NAMES = {name for name, _ in MODEL.named_parameters()}
HEAD = {"classifier.weight", "classifier.bias"}


def named(*prefixes):
    return {name for name in NAMES if f"{name}.".startswith(tuple(f"{prefix}." for prefix in prefixes))}


def layer(*indices):
    return named(*(f"bert.encoder.layer.{index}" for index in indices))


def test_freeze_and_trainable_are_complements():
    assert FreezePlan(trainable="head").resolve(MODEL).ever_trainable == HEAD
    assert FreezePlan(freeze="head").resolve(MODEL).ever_trainable == NAMES - HEAD
    assert FreezePlan(freeze=["backbone", "!norms"]).resolve(MODEL).ever_trainable == HEAD | {
        name for name in NAMES if "LayerNorm" in name
    }


SELECTIONS = [
    "backbone",
    "head",
    "norms",
    "biases",
    "layers",
    "layers[-2:]",
    "embeddings",
    "pooler",
    "layers[0] & biases",
]


@given(st.sampled_from(SELECTIONS), st.sampled_from(SELECTIONS))
def test_freezing_a_selection_is_training_the_rest(first, second):
    selection = [first, f"!{second}"]
    try:
        trainable = FreezePlan(trainable=selection).resolve(MODEL).ever_trainable
    except SelectionError:
        assume(False)
    others = FreezePlan(freeze=selection).resolve(MODEL).ever_trainable
    assert trainable | others == NAMES
    assert not trainable & others


def test_each_stage_changes_what_the_one_before_left():
    plan = FreezePlan(
        trainable="head",
        stages=[
            Stage(epoch=1, unfreeze="layers[-1]"),
            Stage(epoch=2, unfreeze="layers[-2:]", freeze="head"),
            Stage(epoch=3, freeze="layers[-1]"),
        ],
    ).resolve(MODEL)
    assert [set(names) for names in plan.stages] == [HEAD, HEAD | layer(3), layer(2, 3), layer(2)]
    assert plan.ever_trainable == HEAD | layer(2, 3)


def test_ever_trainable_and_names_hold_every_alias_of_a_tied_weight():
    model = tiny_gpt2_lm()
    plan = FreezePlan(trainable="layers[-1]", stages=[Stage(step=1, unfreeze="lm_head")]).resolve(model)
    aliases = {"transformer.wte.weight", "lm_head.weight"}
    assert plan.ever_trainable >= aliases
    assert not plan.names[0] & aliases
    assert plan.names[1] >= aliases
    assert plan.stages[1] - plan.stages[0] == {"transformer.wte.weight"}


def test_two_spellings_of_a_plan_share_their_fingerprint_and_another_plan_does_not():
    def fingerprint(trainable, **stage):
        return FreezePlan(trainable=trainable, stages=[Stage(**stage)]).resolve(MODEL).fingerprint

    one = fingerprint("head", epoch=1, unfreeze="layers[-1]")
    assert fingerprint(["classifier"], epoch=1.0, unfreeze=["encoder.layer.3"]) == one
    assert fingerprint("head", epoch=2, unfreeze="layers[-1]") != one
    assert fingerprint("head", step=1, unfreeze="layers[-1]") != one
    assert fingerprint("head", epoch=1, unfreeze="layers[-2]") != one
    assert FreezePlan(freeze="backbone").resolve(MODEL).fingerprint == (
        FreezePlan(trainable="head").resolve(MODEL).fingerprint
    )


def test_a_fingerprint_is_the_same_in_every_process_and_version():
    plan = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="pooler")])
    assert (
        plan.resolve(MODEL).fingerprint == plan.resolve(tiny_bert(layers=4, seed=1)).fingerprint == "34725c915585d53e"
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"freeze": "all"}, r"Nothing would train from the start: freeze='all' leaves none of the 73 parameters"),
        ({"freeze": ["backbone", "head"]}, "Nothing would train"),
        ({"trainable": "head", "stages": [Stage(step=3, freeze="head")]}, "Nothing would train from step 3"),
    ],
)
def test_a_plan_under_which_nothing_trains_is_refused(plan, message):
    with pytest.raises(PlanError, match=message):
        FreezePlan(**plan).resolve(MODEL)


def test_a_model_that_was_handed_in_frozen_is_why_nothing_trains():
    model = tiny_bert()
    model.requires_grad_(False)
    with pytest.raises(PlanError, match=r"41 of them were already frozen.*dotted path"):
        FreezePlan(trainable="head").resolve(model)
    assert FreezePlan(trainable="classifier").resolve(model).ever_trainable == HEAD


def test_a_stage_that_changes_nothing_is_refused():
    with pytest.raises(PlanError, match=r"The stage at epoch 1 changes nothing: with unfreeze='classifier'"):
        FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="classifier")]).resolve(MODEL)


def test_what_a_stage_both_thaws_and_freezes_is_frozen():
    plan = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="layers", freeze="norms")]).resolve(MODEL)
    assert plan.stages[1] == HEAD | {name for name in layer(0, 1, 2, 3) if "LayerNorm" not in name}


@pytest.mark.parametrize("where", ["trainable", "freeze", "unfreeze"])
def test_what_matches_nothing_is_an_error_wherever_it_stands(where):
    plan = (
        FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="clasifier")])
        if where == "unfreeze"
        else FreezePlan(**{where: "clasifier"})
    )
    with pytest.raises(SelectionError, match=r"'clasifier' matches none of the 73 parameters. Nearest: 'classifier'"):
        plan.resolve(MODEL)


def test_resolving_changes_nothing_and_is_the_same_twice():
    plan = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="layers")])
    assert plan.resolve(MODEL) == plan.resolve(MODEL)
    assert all(parameter.requires_grad for parameter in MODEL.parameters())


def test_declared_says_which_entry_asked_for_what():
    plan = FreezePlan(trainable=["head", "norms", "!embeddings"], stages=[Stage(step=2, unfreeze="pooler")]).resolve(
        MODEL
    )
    assert plan.declared["head"] == HEAD
    assert plan.declared["pooler"] == named("bert.pooler")
    assert not plan.declared["norms"] & named("bert.embeddings")
    assert plan.declared.keys() == {"head", "norms", "pooler"}


def test_a_plan_prints_as_a_table_of_its_stages():
    plan = FreezePlan(
        trainable=["head", "biases & layers[0]"],
        stages=[Stage(epoch=1, unfreeze="layers[1:]"), Stage(fraction=0.5, unfreeze="all")],
    )
    assert str(plan.resolve(MODEL)).splitlines() == [
        "stage  starts        trainable   share  what trains",
        "    0  start               178    1.6%  head, layers[0] (8 of 16 tensors)",
        "    1  epoch 1           6,850   63.4%  layers[1:4], head, layers[0] (8 of 16 tensors)",
        "    2  fraction 0.5     10,802  100.0%  embeddings, layers[0:4], rest, head",
    ]


def test_parts_of_several_stacks_carry_their_path():
    model = tiny_bart()
    plan = FreezePlan(trainable=["decoder.layers[1:]", "encoder.layers[0]"]).resolve(model)
    text = describe_parts(plan.stages[0], plan.model_map)
    assert text == "model.encoder.layers[0], model.decoder.layers[1:3]"


def test_the_share_of_several_layers_is_that_of_each():
    plan = FreezePlan(trainable=["head", "biases & layers[1:]"]).resolve(MODEL)
    assert describe_parts(plan.stages[0], plan.model_map) == "head, layers[1:4] (8 of 16 tensors each)"


def test_the_sizes_are_those_of_the_tensors():
    plan = FreezePlan(trainable="all").resolve(tiny_gpt2_lm())
    assert sum(plan.sizes.values()) == sum(parameter.numel() for parameter in tiny_gpt2_lm().parameters())


def test_a_model_of_one_layer_resolves():
    assert FreezePlan(trainable="all").resolve(nn.Linear(2, 2)).ever_trainable == {"weight", "bias"}
