"""The model map against a hand-written table of models as users write them."""

import re

import pytest
import torch
from torch import nn

from hf_freeze import FreezePlan, SelectionError, freeze, recipes
from hf_freeze.plan.tables import describe_parts
from hf_freeze.selection.model_map import ModelMap, map_model
from tests.installed import since
from tests.models import BackboneWithHead
from tests.selection.user_modules import USER_MODULES, Block, UserModule, bert, with_children

names_of_vit = since("5.15", "the layers of ViT have another path")
every_module = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[names_of_vit] if row.name == "two-backbones" else [])
        for row in USER_MODULES
    ],
)


def below(mapped: ModelMap, paths: tuple[str, ...]) -> set[str]:
    prefixes = tuple(f"{path}." for path in paths)
    return {name for name in mapped.parts if f"{name}.".startswith(prefixes)}


@every_module
def test_every_parameter_belongs_to_the_part_that_the_table_says(row: UserModule):
    mapped = map_model(row.build())

    stated = dict.fromkeys(mapped.parts, "rest")
    stated |= dict.fromkeys(below(mapped, row.embeddings), "embeddings")
    stated |= dict.fromkeys(below(mapped, row.layers), "layers")
    stated |= dict.fromkeys(below(mapped, row.head), "head")

    wrong = {name: (part, stated[name]) for name, part in mapped.parts.items() if part != stated[name]}
    assert not wrong, "name: (found, stated)"
    assert below(mapped, (*row.head, *row.embeddings, *row.layers)) or not (row.head or row.embeddings or row.layers)


@every_module
def test_stacks_norms_and_biases_are_those_of_the_table(row: UserModule):
    mapped = map_model(row.build())

    assert {stack.path: len(stack.layers) for stack in mapped.stacks} == row.stacks
    assert len(mapped.roles["norms"]) == row.norms
    assert len(mapped.roles["biases"]) == row.biases


@every_module
def test_head_and_backbone_are_complements(row: UserModule):
    mapped = map_model(row.build())

    assert mapped.roles["head"] | mapped.roles["backbone"] == set(mapped.parts)
    assert not mapped.roles["head"] & mapped.roles["backbone"]


@names_of_vit
def test_a_path_chooses_between_the_stacks_of_two_backbones():
    model = next(row for row in USER_MODULES if row.name == "two-backbones").build()

    with pytest.raises(SelectionError, match=r"Say which: 'text.encoder.layers\[0\]', 'vision.layers\[0\]'"):
        FreezePlan(trainable="layers[0]").resolve(model)
    (trainable,) = FreezePlan(trainable="vision.layers[-1]").resolve(model).stages
    assert {name.rpartition(".layers.")[2].partition(".")[0] for name in trainable} == {"1"}
    assert all(name.startswith("vision.layers.1.") for name in trainable)


def two_stacks_side_by_side():
    """`net.down` and `net.up`, and one more below: no parent tells the three apart."""
    layers = [nn.ModuleList([Block() for _ in range(count)]) for count in (2, 3, 4)]
    return with_children(
        net=with_children(down=layers[0], up=layers[1], inner=with_children(blocks=layers[2])), out=nn.Linear(8, 2)
    )


def test_stacks_side_by_side_are_told_apart_by_their_own_paths():
    model = two_stacks_side_by_side()

    with pytest.raises(SelectionError, match="could mean several stacks") as error:
        FreezePlan(trainable="layers[-1]").resolve(model)
    advised = re.findall(r"'(\S+layers\[-1\])'", str(error.value).partition("Say which")[2])
    assert advised == ["net.down.layers[-1]", "net.up.layers[-1]", "net.inner.layers[-1]"]
    picked = [FreezePlan(trainable=entry).resolve(model).ever_trainable for entry in advised]
    assert [next(iter(names)).rpartition(".")[0].rsplit(".", 1)[0] for names in picked] == [
        "net.down.1",
        "net.up.2",
        "net.inner.blocks.3",
    ]


def test_stacks_side_by_side_have_labels_of_their_own():
    plan = FreezePlan(trainable=["layers", "head"]).resolve(two_stacks_side_by_side())
    labels = describe_parts(plan.stages[0], plan.model_map)
    assert labels == "net.down.layers[0:2], net.up.layers[0:3], net.inner.layers[0:4], head"


def test_stacks_side_by_side_thaw_from_the_top_down():
    stages = recipes.gradual().resolve(two_stacks_side_by_side()).stages
    assert len(stages[1] - stages[0]) == 3 * 4


def test_layers_of_numbered_siblings_count_across_the_stages():
    model = next(row for row in USER_MODULES if row.name == "torchvision-like-resnet").build()

    (trainable,) = FreezePlan(trainable="layers[2]").resolve(model).stages
    assert {name.rpartition(".")[0] for name in trainable} == {"layer2.0.conv1", "layer2.0.bn1"}


def test_a_plan_needs_no_forward_so_that_a_model_may_return_anything():
    class ReturnsATensor(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.encoder(x))

    model = ReturnsATensor()
    freeze(model, "backbone")
    model(torch.ones(1, 4)).sum().backward()

    assert model.encoder.weight.grad is None
    assert model.head.weight.grad is not None


def test_a_backbone_that_was_frozen_before_stays_so_under_all_and_thaws_by_path():
    model = BackboneWithHead(bert(2))
    model.backbone.requires_grad_(False)

    assert FreezePlan(trainable="all").resolve(model).ever_trainable == {"out.weight", "out.bias"}
    (trainable,) = FreezePlan(trainable=["head", "backbone.encoder.layer.1"]).resolve(model).stages
    assert len(trainable) == 2 + 16


def test_two_names_of_one_module_are_one_tensor_and_either_selects_it():
    shared = nn.Linear(4, 4)
    model = with_children(encoder=shared, decoder=shared, fc=nn.Linear(4, 2))

    plan = FreezePlan(trainable="decoder").resolve(model)
    assert plan.stages == (frozenset({"encoder.weight", "encoder.bias"}),)
    assert plan.ever_trainable == {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}


def test_a_stem_of_the_class_of_the_stages_is_no_stage():
    stages = [
        nn.Sequential(Block(), Block()),
        with_children(reduction=nn.Linear(8, 8)),
        nn.Sequential(Block(), Block()),
    ]
    model = with_children(features=nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 4), nn.LayerNorm(8)), *stages))
    assert [(stack.path, len(stack.layers)) for stack in map_model(model).stacks] == [("features.", 4)]
