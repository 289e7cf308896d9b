"""The head of a module without a transformers model inside: by names and order, or refused with the candidates."""

import pytest
from torch import nn

from hf_freeze import FreezePlan, SelectionError
from hf_freeze.selection.model_map import map_model
from tests.selection.user_modules import Block, with_children


def conv():
    return nn.Conv2d(8, 8, 1)


def mlp():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def blocks():
    return nn.ModuleList([Block(), Block()])


NORM = nn.BatchNorm2d
CLEAR = {
    "resnet": ({"conv1": conv, "bn1": lambda: NORM(8), "layer1": blocks, "fc": mlp}, {"fc"}),
    "densenet": ({"features": blocks, "classifier": lambda: nn.Linear(8, 2)}, {"classifier"}),
    "vgg": ({"features": conv, "classifier": mlp}, {"classifier"}),
    "vit": ({"conv_proj": conv, "encoder": blocks, "heads": mlp}, {"heads"}),
    "efficientnet": (
        {"_conv_stem": conv, "_blocks": blocks, "_conv_head": conv, "_bn1": lambda: NORM(8), "_fc": mlp},
        {"_fc"},
    ),
    "timm-mobilenet": (
        {"blocks": blocks, "conv_head": conv, "norm_head": lambda: NORM(8), "classifier": mlp},
        {"classifier"},
    ),
    "two-heads": ({"encoder": blocks, "cls_head": mlp, "reg_head": mlp}, {"cls_head", "reg_head"}),
    "head-registered-first": ({"head": mlp, "stem": conv, "blocks": blocks}, {"head"}),
    "two-layers-on-an-encoder": ({"encoder": blocks, "hidden": mlp, "task": mlp}, {"hidden", "task"}),
    "mobilenet-v3": (
        {"features": lambda: nn.Sequential(conv(), Block(), Block(), conv()), "classifier": mlp},
        {"classifier"},
    ),
    "convnext": ({"stem": conv, "stages": blocks, "norm_pre": lambda: NORM(8), "head": mlp}, {"head"}),
    "regnet": ({"stem": conv, "s1": blocks, "s2": blocks, "head": mlp}, {"head"}),
    "two-distilled-heads": (
        {"blocks": blocks, "norm": lambda: NORM(8), "head": mlp, "head_dist": mlp},
        {"head", "head_dist"},
    ),
    "named-out": ({"stem": conv, "blocks": blocks, "out": lambda: nn.Linear(8, 2)}, {"out"}),
    "named-proj": ({"stem": conv, "blocks": blocks, "proj": lambda: nn.Linear(8, 2)}, {"proj"}),
    "named-scorer-behind-a-norm": (
        {"blocks": blocks, "norm": lambda: NORM(8), "scorer": lambda: nn.Linear(8, 2)},
        {"scorer"},
    ),
    "in-a-sequential": ({"0": blocks, "1": lambda: nn.Linear(8, 2)}, {"1"}),
    "a-backbone-alone": ({"stem": conv, "blocks": blocks, "norm": lambda: NORM(8)}, set()),
    "a-backbone-that-ends-in-a-pooler": ({"stem": conv, "blocks": blocks, "pooler": lambda: nn.Linear(8, 8)}, set()),
    "two-branches": ({"image": blocks, "text": blocks, "fc": mlp}, {"fc"}),
}
UNCLEAR = {
    "a-head-in-front-of-weights": (
        {"blocks": blocks, "head": conv, "bn": lambda: NORM(8), "fc": mlp},
        ("'head'", "'fc'"),
    ),
    "a-head-for-each-branch": (
        {"image": blocks, "image_head": mlp, "text": blocks, "text_head": mlp},
        ("'image_head'", "'text_head'"),
    ),
    "weights-after-the-only-name": (
        {"blocks": blocks, "conv_head": conv, "bn": lambda: NORM(8), "mine": mlp},
        ("'conv_head'", "'mine'"),
    ),
    "a-convolution-behind-the-body": ({"features": blocks, "last": conv, "mine": mlp}, ("'last'", "'mine'")),
}


def built(fields):
    return with_children(**{name: make() for name, make in fields.items()})


@pytest.mark.parametrize("shape", CLEAR)
def test_the_head_is_the_classifier_alone(shape):
    fields, head = CLEAR[shape]
    mapped = map_model(built(fields))
    assert {name.partition(".")[0] for name in mapped.roles["head"]} == head
    assert set(mapped.head_by_name) == head


@pytest.mark.parametrize("role", ["head", "backbone"])
@pytest.mark.parametrize("shape", UNCLEAR)
def test_where_nobody_can_tell_the_candidates_are_named(shape, role):
    fields, candidates = UNCLEAR[shape]
    with pytest.raises(SelectionError, match=f"'{role}' is ambiguous in this model") as error:
        FreezePlan(trainable=role).resolve(built(fields))
    assert all(candidate in str(error.value) for candidate in candidates)


def test_a_plan_says_what_it_took_for_the_head():
    resolved = FreezePlan(trainable="head").resolve(built(CLEAR["efficientnet"][0]))
    assert str(resolved).endswith("The head, found by names: _fc.")
