"""What lies inside a wrapper means what it means on its own: roles and layers of the one encoder in it."""

import pytest
import transformers as hf
from torch import nn

from hf_freeze import FreezePlan
from hf_freeze.selection.model_map import map_model
from tests.models import tiny_bert
from tests.selection.user_modules import bert, torch_encoder, with_children


def transformer(field="auto_model", inside=bert):
    """A module as sentence-transformers puts it around an encoder; the field is `model` from version 6 on."""
    return with_children(**{field: inside()})


def siamese():
    encoder = bert()
    return with_children(left=nn.Sequential(encoder), right=nn.Sequential(encoder))


def routes():
    encoder = transformer()
    return nn.Sequential(
        with_children(
            sub_modules=nn.ModuleDict(
                {"query": nn.Sequential(encoder, nn.Identity()), "document": nn.Sequential(encoder)}
            )
        )
    )


def dense():
    return with_children(linear=nn.Linear(16, 16))


class EncoderBlock(nn.Module):
    """Named like a layer, and none: it holds a whole model."""

    def __init__(self):
        super().__init__()
        self.inner = bert()


SHAPES = {
    "version-5": lambda: nn.Sequential(transformer(), nn.Identity()),
    "version-6": lambda: nn.Sequential(transformer("model"), nn.Identity()),
    "dense": lambda: nn.Sequential(transformer(), nn.Identity(), dense(), nn.Identity()),
    "two-denses": lambda: nn.Sequential(transformer(), nn.Identity(), dense(), dense()),
    "convolutions": lambda: nn.Sequential(
        transformer(), with_children(convs=nn.ModuleList([nn.Conv1d(16, 8, k) for k in (1, 3, 5)])), nn.Identity()
    ),
    "lstm": lambda: nn.Sequential(transformer(), with_children(encoder=nn.LSTM(16, 8)), nn.Identity()),
    "a-list": lambda: nn.ModuleList([transformer()]),
    "a-list-and-nothing": lambda: nn.ModuleList([transformer(), nn.Identity()]),
    "nested": lambda: nn.Sequential(nn.Sequential(transformer(), nn.Identity()), nn.Identity()),
    "lightning": lambda: with_children(model=bert(), loss=nn.CrossEntropyLoss()),
    "one-encoder-in-both-routes": routes,
    "siamese": siamese,
    "named-like-a-block": lambda: nn.Sequential(EncoderBlock(), nn.Identity()),
}


@pytest.mark.parametrize("selection", ["layers[-1]", "embeddings", "norms", "rest", "layers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_roles_and_layers_are_those_of_the_bare_encoder(shape, selection):
    model = SHAPES[shape]()
    bare = {id(p) for p in _picked(next(part for part in model.modules() if isinstance(part, hf.BertModel)), selection)}

    assert {id(parameter) for parameter in _picked(model, selection)} == bare


@pytest.mark.parametrize("shape", ["dense", "two-denses", "convolutions", "lstm"])
def test_what_is_trained_on_top_of_the_encoder_is_the_head(shape):
    model = SHAPES[shape]()
    inside = {
        id(parameter) for parameter in next(p for p in model.modules() if isinstance(p, hf.BertModel)).parameters()
    }

    head = map_model(model).roles["head"]
    assert head == {name for name, parameter in model.named_parameters() if id(parameter) not in inside}


def test_a_task_model_in_a_wrapper_keeps_its_head():
    model = nn.Sequential(transformer("model", tiny_bert))
    assert map_model(model).roles["head"] == {"0.model.classifier.weight", "0.model.classifier.bias"}


def test_a_value_head_is_a_head():
    gpt = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=64, n_embd=16, n_head=2, n_layer=3, n_positions=32))
    model = with_children(pretrained_model=gpt, v_head=with_children(summary=nn.Linear(16, 1)))
    mapped = map_model(model)
    assert mapped.roles["head"] == {"v_head.summary.weight", "v_head.summary.bias"}
    assert len(_picked(model, "layers[-1]")) == len(_picked(gpt, "layers[-1]"))


def test_an_encoder_of_torchs_own_is_looked_through_as_well():
    model = nn.Sequential(with_children(net=torch_encoder(3)), nn.Identity())
    assert [len(stack.layers) for stack in map_model(model).stacks] == [3]


def _picked(model, selection):
    names = FreezePlan(trainable=selection).resolve(model).ever_trainable
    return [parameter for name, parameter in model.named_parameters() if name in names]
