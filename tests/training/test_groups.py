"""Optimizer groups: what ever trains is in exactly one, with the rate and the weight decay that it should have."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezePlan, PlanError, SelectionError, Stage, freeze, param_groups, recipes
from hf_freeze.training.groups import group_specs
from tests.models import tiny_bart, tiny_bert, tiny_gpt2_lm
from tests.quiet import quiet_arguments
from tests.selection.architectures import ARCHITECTURES

RATE, DECAY = 1e-3, 0.01


@functools.cache
def arguments():
    return quiet_arguments(cls=TrainingArguments, learning_rate=RATE, weight_decay=DECAY)


def decayed_names(model):
    return set(Trainer.get_decay_parameter_names(None, model))


def specs(model, plan=None, *, group_lrs=None, layer_lr_decay=1.0):
    resolved = (plan or FreezePlan(trainable="all")).resolve(model)
    decayed = decayed_names(model)
    return group_specs(resolved, arguments(), decayed=decayed, group_lrs=group_lrs or {}, layer_lr_decay=layer_lr_decay)


def rates(found):
    """Return the rate of each parameter."""
    return {name: spec.options["lr"] for spec in found for name in spec.parameters}


def names(found):
    return [spec.name for spec in found]


# --- one group each ---------------------------------------------------------------------------------------------------

SAMPLE = {row.name: row for row in ARCHITECTURES[::6]}
SELECTIONS = [
    "all",
    "head",
    "norms",
    "biases",
    "layers",
    "embeddings",
    "backbone",
    "*.*",
    "re:.*weight",
    "re:.*[02468].*",
]


@functools.cache
def built(name):
    return SAMPLE[name].build()


def staged(trainable, later, model):
    """A plan with a second stage where that changes anything."""
    for stages in ([Stage(epoch=1, unfreeze=later)], []):
        try:
            return FreezePlan(trainable=trainable, stages=stages).resolve(model)
        except (SelectionError, PlanError):
            continue
    return None


@settings(max_examples=60)
@given(
    st.sampled_from(list(SAMPLE)),
    st.lists(st.sampled_from(SELECTIONS), min_size=1, max_size=3, unique=True),
    st.sampled_from(SELECTIONS),
    st.sampled_from([1.0, 0.9]),
    st.sampled_from([None, *SELECTIONS]),
)
def test_every_ever_trainable_parameter_is_in_exactly_one_group(name, trainable, later, layer_lr_decay, own_rate):
    model = built(name)
    resolved = staged([trainable[0], *(f"!{entry}" for entry in trainable[1:])], later, model)
    assume(resolved)
    options = {"group_lrs": {own_rate: 1e-2} if own_rate else {}, "layer_lr_decay": layer_lr_decay}
    try:
        found = specs(model, resolved.plan, **options)
    except (SelectionError, PlanError):  # the rate's selection is empty, or never trains
        assume(False)

    grouped = [parameter for spec in found for parameter in spec.parameters]
    assert len(grouped) == len(set(grouped))
    assert resolved.model_map.every_alias(grouped) == resolved.ever_trainable
    assert len(set(names(found))) == len(found)
    assert specs(model, resolved.plan, **options) == found
    decayed = decayed_names(model)
    for spec in found:
        for parameter in spec.parameters:
            decays = any(alias in decayed for alias in resolved.model_map.ties[parameter])
            assert spec.options["weight_decay"] == (DECAY if decays else 0.0), parameter
            assert (".no_decay" in spec.name) is not decays


def test_groups_hold_the_models_own_parameters_and_tied_ones_once():
    model = tiny_gpt2_lm()
    groups = param_groups(model, arguments())
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert [group["name"] for group in groups] == ["trainable", "trainable.no_decay"]


def test_the_decay_split_is_the_trainers_own(tmp_path):
    model = tiny_bert()
    args = TrainingArguments(output_dir=str(tmp_path), weight_decay=DECAY, use_cpu=True, report_to="none")
    theirs = Trainer(model, args).create_optimizer().param_groups
    ours = param_groups(model, args)
    assert [set(map(id, group["params"])) for group in ours] == [set(map(id, group["params"])) for group in theirs]
    assert [group["weight_decay"] for group in ours] == [group["weight_decay"] for group in theirs] == [DECAY, 0.0]


def test_an_optimizer_takes_the_groups_and_moves_nothing_else():
    model = tiny_bert()
    freeze(model, "backbone")
    groups = param_groups(model, arguments())  # without a plan: what requires a gradient now
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
    assert {group["lr"] for group in optimizer.param_groups} == {RATE}


def test_without_a_plan_a_model_with_nothing_trainable_is_refused():
    model = tiny_bert()
    model.requires_grad_(False)
    with pytest.raises(PlanError, match="Nothing would train"):
        param_groups(model, arguments())


def test_stages_are_told_apart_by_the_groups_that_begin_with_them():
    plan = FreezePlan(
        trainable="head",
        stages=[Stage(epoch=1, unfreeze="layers[-1]"), Stage(epoch=2, unfreeze="layers[0]", freeze="head")],
    )
    found = specs(tiny_bert(), plan)
    stages = {
        spec.name.replace(".no_decay", ""): {p.split(".")[3] if "layer." in p else p for p in spec.parameters}
        for spec in found
    }
    assert names(found) == [
        "trainable in stages 0-1",
        "trainable.no_decay in stages 0-1",
        "trainable from stage 1",
        "trainable.no_decay from stage 1",
        "trainable from stage 2",
        "trainable.no_decay from stage 2",
    ]
    assert stages["trainable from stage 1"] == {"1"}
    assert stages["trainable from stage 2"] == {"0"}


def test_groups_know_peft_adapters():
    model = get_peft_model(tiny_bert(), LoraConfig(target_modules=["query"]))
    (group,) = param_groups(model, arguments(), plan=FreezePlan(trainable="adapters"))
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters() if p.requires_grad}


# --- layer-wise decay -------------------------------------------------------------------------------------------------


def test_each_layer_below_the_head_has_the_rate_above_times_the_decay_and_embeddings_come_last():
    found = rates(specs(tiny_bert(layers=3), layer_lr_decay=0.5))
    assert found["classifier.weight"] == found["bert.pooler.dense.weight"] == RATE
    for layer, power in ((2, 1), (1, 2), (0, 3)):
        assert found[f"bert.encoder.layer.{layer}.output.dense.bias"] == pytest.approx(RATE * 0.5**power)
    assert found["bert.embeddings.LayerNorm.weight"] == pytest.approx(RATE * 0.5**4)


def test_encoder_and_decoder_decay_each_from_their_own_top():
    found = rates(specs(tiny_bart(layers=2, decoder_layers=3), layer_lr_decay=0.5))
    for stack, count in (("encoder", 2), ("decoder", 3)):
        for layer in range(count):
            name = f"model.{stack}.layers.{layer}.fc1.weight"
            assert found[name] == pytest.approx(RATE * 0.5 ** (count - layer)), name
    assert found["model.shared.weight"] == pytest.approx(RATE * 0.5**4)


def test_groups_are_named_after_their_layer_from_the_head_down():
    found = names(specs(tiny_bert(layers=2), layer_lr_decay=0.9))
    assert [name for name in found if not name.endswith(".no_decay")] == [
        "head",
        "rest",
        "layers.1",
        "layers.0",
        "embeddings",
    ]
    assert [name.replace(".no_decay", "") for name in found if name.endswith(".no_decay")] == found[::2]


@pytest.mark.parametrize("decay", [0, -0.1, 1.1, math.nan, math.inf])
def test_a_decay_that_is_no_factor_is_refused(decay):
    with pytest.raises(PlanError, match=f"layer_lr_decay={decay!r} is not a factor per layer"):
        specs(tiny_bert(), layer_lr_decay=decay)


def test_a_model_without_layers_decays_only_its_embeddings():
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    assert rates(specs(model, layer_lr_decay=0.5)) == {
        "0.weight": RATE * 0.5,
        **dict.fromkeys(["1.weight", "1.bias", "2.weight", "2.bias"], RATE),
    }


# --- rates by selection -----------------------------------------------------------------------------------------------


def test_a_selection_has_its_own_rate_and_options_and_the_rest_keeps_the_base_rate():
    found = specs(
        tiny_bert(), group_lrs={"head": 1e-2, "embeddings": {"lr": 1e-4, "betas": (0.8, 0.9), "weight_decay": 0.3}}
    )
    options = {spec.name: dict(spec.options) for spec in found}
    assert options == {
        "trainable": {"lr": RATE, "weight_decay": DECAY},
        "trainable.no_decay": {"lr": RATE, "weight_decay": 0.0},
        "head": {"lr": 1e-2, "weight_decay": DECAY},
        "head.no_decay": {"lr": 1e-2, "weight_decay": 0.0},
        "embeddings": {"lr": 1e-4, "betas": (0.8, 0.9), "weight_decay": 0.3},
        "embeddings.no_decay": {"lr": 1e-4, "betas": (0.8, 0.9), "weight_decay": 0.0},
    }


def test_a_weight_decay_given_to_nothing_but_norms_is_theirs():
    found = {
        spec.name: spec.options for spec in specs(tiny_bert(), group_lrs={"norms": {"lr": 1e-4, "weight_decay": 0.1}})
    }
    assert found["norms"] == {"lr": 1e-4, "weight_decay": 0.1}
    assert "norms.no_decay" not in found
    only_rate = {spec.name: spec.options for spec in specs(tiny_bert(), group_lrs={"norms": 1e-4})}
    assert only_rate["norms.no_decay"] == {"lr": 1e-4, "weight_decay": 0.0}


def test_options_without_a_rate_keep_the_base_rate():
    found = specs(tiny_bert(), group_lrs={"head": {"weight_decay": 0.5}})
    assert {spec.name: spec.options["lr"] for spec in found}["head"] == RATE


@pytest.mark.parametrize(
    ("plan", "decay", "selection"),
    [
        (recipes.lp_ft(), 1.0, "head"),
        (recipes.lp_ft(), 1.0, "all"),
        (recipes.fine_tune(), 1.0, "layers"),
        (FreezePlan(trainable="all"), 0.5, "backbone"),
        (recipes.rotate(layers=1, every=1), 0.5, "layers"),
    ],
)
def test_options_without_a_rate_keep_the_rate_that_plan_and_depth_give(plan, decay, selection):
    model = tiny_bert()
    before = specs(model, plan, layer_lr_decay=decay)
    given = specs(model, plan, layer_lr_decay=decay, group_lrs={selection: {"weight_decay": 0.5}})
    assert rates(given) == rates(before)
    assert len({spec.name for spec in given}) == len(given)
    assert {spec.options["weight_decay"] for spec in given if spec.name.startswith(selection)} == {0.5, 0.0}
    own = {name for spec in before if spec.has_own_rate for name in spec.parameters}
    assert {name for spec in given if spec.has_own_rate for name in spec.parameters} == own


def test_a_rate_by_selection_goes_before_the_layer_wise_one():
    found = rates(specs(tiny_bert(), group_lrs={"layers[0]": 7e-3}, layer_lr_decay=0.5))
    assert found["bert.encoder.layer.0.output.dense.bias"] == 7e-3
    assert found["bert.encoder.layer.1.output.dense.bias"] == RATE * 0.5


def test_a_rate_for_what_never_trains_is_an_error():
    with pytest.raises(PlanError, match=r"group_lrs\['layers'\] matches nothing that the plan ever trains"):
        specs(tiny_bert(), FreezePlan(trainable="head"), group_lrs={"layers": 1e-4})
    with pytest.raises(SelectionError, match=r"'hed' matches none of the 41 parameters. Nearest: 'head'"):
        specs(tiny_bert(), group_lrs={"hed": 1e-4})


def test_a_parameter_that_two_selections_match_is_an_error_that_names_it_and_both():
    with pytest.raises(
        PlanError, match=r"'bert.*LayerNorm.*' is matched twice by group_lrs: by 'layers' and by 'norms'"
    ) as raised:
        specs(tiny_bert(), group_lrs={"layers": 1e-5, "norms": 1e-4})
    assert (advised := "layers & re:(?!.*LayerNorm).*") in str(raised.value)
    assert specs(tiny_bert(), group_lrs={advised: 1e-5, "norms": 1e-4})
    assert specs(
        tiny_bert(), FreezePlan(trainable=["all", "!layers & norms"]), group_lrs={"norms": 1e-4, "layers": 1e-5}
    )


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf, True, None, "1e-3"])
def test_a_rate_that_is_no_rate_is_refused(rate):
    with pytest.raises(PlanError, match=r"group_lrs\['head'\]: lr=.* is not a finite number of at least 0"):
        specs(tiny_bert(), group_lrs={"head": rate})
    with pytest.raises(PlanError, match=r"group_lrs\['head'\]: weight_decay=.* is not a finite number"):
        specs(tiny_bert(), group_lrs={"head": {"lr": 1e-3, "weight_decay": rate}})


@pytest.mark.parametrize("key", ["params", "name"])
def test_what_groups_are_made_of_is_not_an_option(key):
    with pytest.raises(PlanError, match=rf"group_lrs\['head'\]: '{key}' is set by hf_freeze"):
        specs(tiny_bert(), group_lrs={"head": {"lr": 1e-3, key: "mine"}})


@pytest.mark.parametrize("given", [{"optimizer_cls": torch.optim.SGD}, {}])
def test_a_misspelt_option_is_refused_with_the_nearest_one(given):
    with pytest.raises(PlanError, match=r"group_lrs\['head'\]: 'lrr' is not an option of .*Nearest: 'lr'"):
        param_groups(tiny_bert(), arguments(), group_lrs={"backbone": 1e-4, "head": {"lrr": 1e-3}}, **given)


def test_the_options_of_the_optimizer_that_is_named_are_the_ones_that_pass():
    ask = {"head": {"lr": 1e-3, "momentum": 0.9}}
    for kwargs in ({"optimizer_cls": torch.optim.SGD}, {}):
        assert param_groups(tiny_bert(), arguments(), group_lrs=ask, **kwargs)[-1]["momentum"] == 0.9
    with pytest.raises(PlanError, match="'momentum' is not an option of AdamW"):
        param_groups(tiny_bert(), arguments(), group_lrs=ask, optimizer_cls=torch.optim.AdamW)


def test_the_options_of_the_optimizer_in_the_arguments_pass():
    args = TrainingArguments("never-written", use_cpu=True, report_to="none", optim="adafactor")
    ask = {"head": {"clip_threshold": 2.0}}
    assert param_groups(tiny_bert(), args, group_lrs=ask)[-1]["clip_threshold"] == 2.0
    with pytest.raises(PlanError, match="'clip_threshold'.*torch's optimizers or adamw_torch"):
        param_groups(tiny_bert(), arguments(), group_lrs=ask)


def test_a_rate_of_nought_is_a_rate():
    assert rates(specs(tiny_bert(), group_lrs={"head": 0}))["classifier.weight"] == 0


def test_digests_tell_groups_of_other_members_apart():
    def digests(selection):
        return [spec.digest for spec in specs(tiny_bert(), FreezePlan(trainable=selection))]

    assert digests("layers[0]") == digests("encoder.layer.0")
    assert set(digests("layers[0]")).isdisjoint(digests("layers[1]"))
    assert all(digest.startswith(("6 tensors, ", "10 tensors, ")) for digest in digests("layers[0]"))


def test_a_loop_without_training_arguments_gives_the_rates_itself():
    model = tiny_bert()
    groups = param_groups(model, lr=1e-3, weight_decay=0.1, group_lrs={"head": 1e-2})
    args = TrainingArguments("never-written", learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to=[])
    expected = param_groups(model, args, group_lrs={"head": 1e-2})
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        (group["name"], group["lr"], group["weight_decay"]) for group in expected
    ]
    assert {group["weight_decay"] for group in param_groups(model, lr=1e-3)} == {0.0}
    assert param_groups(model, args, lr=5e-3)[0]["lr"] == 5e-3


@pytest.mark.parametrize("lr", [None, -1.0, float("nan")])
def test_no_rate_at_all_is_refused(lr):
    with pytest.raises(PlanError, match="learning rate.*lr= or args="):
        param_groups(tiny_bert(), lr=lr)


def test_a_misspelt_option_without_training_arguments_is_refused_too():
    with pytest.raises(PlanError, match="'lrr'.*torch's own optimizers.*optimizer_cls"):
        param_groups(tiny_bert(), lr=1e-3, group_lrs={"head": {"lrr": 1e-3}})


# --- rates of the plan ------------------------------------------------------------------------------------------------


def test_a_plan_brings_its_rates_and_what_is_given_beside_it_wins():
    model = tiny_bert()
    plan = FreezePlan(trainable="all", lr_factors={"head": 10.0, "norms": 0.5})
    own = rates(specs(model, plan))
    head = {"classifier.weight", "classifier.bias"}
    norms = {name for name in own if "LayerNorm" in name}
    assert {own[name] for name in head} == {10 * RATE}
    assert {own[name] for name in norms} == {0.5 * RATE}
    assert {rate for name, rate in own.items() if name not in head | norms} == {RATE}
    given = rates(specs(model, plan, group_lrs={"head": 3.0}))
    assert {given[name] for name in head} == {3.0}
    assert {name: rate for name, rate in given.items() if name not in head} == {
        name: rate for name, rate in own.items() if name not in head
    }


def test_what_has_a_rate_from_the_plan_keeps_it_where_others_are_given_one():
    model = tiny_bert()
    plan = FreezePlan(trainable=["head", "layers[-1]"], lr_factors={"layers[-1]": 0.1})
    groups = param_groups(model, lr=1e-3, plan=plan, group_lrs={"head": 5e-3})
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    top = model.bert.encoder.layer[-1].output.dense
    assert [rate_of[id(one)] for one in (top.weight, top.bias)] == pytest.approx([1e-4, 1e-4])
    assert rate_of[id(model.classifier.weight)] == 5e-3


def test_a_spread_goes_from_the_head_to_the_embeddings_by_one_factor_per_layer():
    plan = FreezePlan(trainable="all", lr_spread=1000.0)
    own = rates(specs(tiny_bert(layers=2), plan))
    ladder = sorted(set(own.values()), reverse=True)
    assert own["classifier.weight"] == ladder[0] == RATE
    assert own["bert.embeddings.word_embeddings.weight"] == ladder[-1] == pytest.approx(RATE / 1000)
    assert [high / low for high, low in itertools.pairwise(ladder)] == pytest.approx([10, 10, 10])
    given = rates(specs(tiny_bert(layers=2), plan, layer_lr_decay=0.5))
    assert given == rates(specs(tiny_bert(layers=2), layer_lr_decay=0.5))


def test_a_spread_over_a_model_without_layers_is_one_rate():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert set(rates(specs(model, FreezePlan(trainable="all", lr_spread=100.0))).values()) == {RATE}


def test_a_factor_for_what_the_plan_never_trains_is_refused():
    with pytest.raises(PlanError, match=r"lr_factors\['embeddings'\] matches nothing that the plan ever trains"):
        specs(tiny_bert(), FreezePlan(trainable="head", lr_factors={"embeddings": 2.0}))
