"""PEFT renames parameters, freezes the base and keeps copies; selections see through all three."""

from importlib.metadata import version

import pytest
import torch
import transformers as hf
from packaging.version import Version
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from torch import nn

from hf_freeze import FreezePlan, SelectionError, freeze, unfreeze
from hf_freeze.selection.model_map import map_model
from tests.models import SIZES, tiny_bert, tiny_llama
from tests.selection.test_model_map import tiny_whisper

SEQ_CLS = TaskType.SEQ_CLS
QUERY = "bert.encoder.layer.0.attention.self.query"


def lora(model=None, **config):
    return get_peft_model(model or tiny_bert(), LoraConfig(**{"target_modules": ["query", "value"], **config}))


def prompted(model=None):
    return get_peft_model(model or tiny_bert(), PromptTuningConfig(task_type=SEQ_CLS, num_virtual_tokens=4))


def trains(model, selection):
    return FreezePlan(trainable=selection).resolve(model).ever_trainable


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("infix", ["", ".base_layer"])
def test_a_wrapped_weight_answers_to_its_name_with_and_without_each_wrapping(prefix, infix):
    assert trains(lora(), f"{prefix}{QUERY}{infix}.weight") == {f"base_model.model.{QUERY}.base_layer.weight"}


@pytest.mark.parametrize("path", ["base_model.model.bert.encoder.layer.0", "bert.encoder.layer.0", "encoder.layer.0"])
@pytest.mark.parametrize("build", [lora, prompted])
def test_paths_and_layers_are_those_of_the_model_inside(build, path):
    model = build()
    if build is prompted:
        path = path.replace("base_model.model.", "base_model.")  # prompt learning wraps without `model`
    assert trains(model, path) == trains(model, "layers[0]") == trains(model, "encoder.layers[0]")
    assert len(trains(model, path)) == 16 + (4 if build is lora else 0)


def test_the_prefix_of_a_model_field_inside_is_not_taken_for_pefts():
    config = PromptTuningConfig(task_type=SEQ_CLS, num_virtual_tokens=4)
    model = get_peft_model(tiny_llama(), config)
    assert len(trains(model, "model.layers.0")) == len(trains(model, "base_model.model.layers.0")) == 9


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["query", "value", "dense"]),
        LoraConfig(task_type=SEQ_CLS, target_modules="all-linear"),
        LoraConfig(target_modules=["query"], use_dora=True),
        LoraConfig(target_modules=["query", "word_embeddings", "classifier"]),
        LoraConfig(target_modules=["query"], trainable_token_indices={"word_embeddings": [1, 2]}),
        IA3Config(task_type=SEQ_CLS, target_modules=["query"], feedforward_modules=[]),
        AdaLoraConfig(task_type=SEQ_CLS, target_modules=["query"], total_step=10),
        PromptTuningConfig(task_type=SEQ_CLS, num_virtual_tokens=4),
        PromptEncoderConfig(task_type=SEQ_CLS, num_virtual_tokens=4, encoder_hidden_size=8),
        PrefixTuningConfig(task_type=SEQ_CLS, num_virtual_tokens=4),
    ],
    # PEFT keeps target modules in a set, whose order differs between the workers of pytest-xdist.
    ids=lambda config: f"{type(config).__name__}-{'-'.join(sorted(getattr(config, 'target_modules', None) or ''))}",
)
# PEFT asks for `is_gradient_checkpointing`, which transformers renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_all_that_peft_left_trainable(config):
    model = get_peft_model(tiny_bert(), config)
    mapped = map_model(model)
    left_trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert trains(model, "all") == left_trainable
    assert mapped.every_alias(mapped.roles["adapters"]) == left_trainable
    bare = map_model(tiny_bert())
    for role in ("head", "backbone", "embeddings", "norms", "biases"):
        assert len(mapped.roles[role]) == len(bare.roles[role]), role


def test_roles_thaw_what_peft_froze_but_not_what_the_architecture_did():
    model = lora(tiny_whisper(), target_modules=["q_proj"])
    embeddings = {name.removeprefix("base_model.model.") for name in trains(model, "embeddings")}
    assert "model.decoder.embed_positions.weight" in embeddings
    assert "model.encoder.embed_positions.weight" not in embeddings
    assert len(trains(model, "encoder.embed_positions")) == 1


def test_all_leaves_the_base_as_peft_froze_it():
    assert all("lora_" in name for name in trains(lora(), "all"))


def test_norms_are_taken_out_of_the_frozen_backbone_under_peft_as_well():
    model = lora(task_type=SEQ_CLS)
    trainable = FreezePlan(freeze=["backbone", "!norms"]).resolve(model).ever_trainable
    kinds = {
        "lora": [name for name in trainable if "lora_" in name],
        "norms": [name for name in trainable if "LayerNorm" in name],
        "head": [name for name in trainable if ".modules_to_save." in name],
    }
    assert {kind: len(names) for kind, names in kinds.items()} == {"lora": 8, "norms": 10, "head": 2}
    assert len(trainable) == 20


def test_the_original_beside_a_modules_to_save_copy_never_trains():
    model = lora(modules_to_save=["classifier"])
    copies = {f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")}
    for selection in ("head", "classifier", "re:.*classifier.*"):
        assert trains(model, selection) == copies
    assert trains(model, "classifier.weight") == {"base_model.model.classifier.modules_to_save.default.weight"}


def test_what_adalora_counts_with_never_trains():
    model = get_peft_model(tiny_bert(), AdaLoraConfig(task_type=SEQ_CLS, target_modules=["query"], total_step=10))
    assert any("ranknum" in name for name, _ in model.named_parameters())
    assert not any("ranknum" in name for name in trains(model, ["layers", "encoder.layer.0", "re:.*ranknum.*", "all"]))


def test_quantised_weights_that_peft_froze_are_passed_over_by_roles():
    model = lora()
    model.base_model.model.classifier.packed = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert {name.rpartition(".")[2] for name in trains(model, "head")} == {"weight", "bias"}


def test_adapters_of_a_model_without_any_are_an_error():
    with pytest.raises(SelectionError, match="'adapters' matches none"):
        trains(tiny_bert(), "adapters")


@pytest.mark.skipif(
    Version(version("transformers")) >= Version("5.24") and Version(version("peft")) < Version("0.22"),
    reason="add_adapter of transformers 5.24 asks for peft 0.22",
)
def test_an_adapter_that_transformers_added_itself_is_seen():
    model = tiny_bert()
    model.add_adapter(LoraConfig(target_modules=["query"]))
    assert trains(model, "adapters") == {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains(model, f"{QUERY}.weight") == {f"{QUERY}.base_layer.weight"}
    assert len(trains(model, "norms")) == 10


def test_two_adapters_and_their_head_copies_are_told_apart_by_path():
    model = lora(task_type=SEQ_CLS)
    model.add_adapter("second", LoraConfig(task_type=SEQ_CLS, target_modules=["key"]))
    left_trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains(model, "adapters") == left_trainable
    assert not any("second" in name for name in left_trainable)
    assert all("second" in name for name in trains(model, "re:.*lora.*second.*"))


class WithAdaptedBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = lora(hf.BertModel(hf.BertConfig(**SIZES, num_hidden_layers=2)), target_modules=["query"])
        self.reduce = nn.Linear(16, 4)
        self.out = nn.Linear(4, 2)


def test_a_peft_model_in_a_users_field_is_seen_through():
    model = WithAdaptedBackbone()
    model.reduce.requires_grad_(False)
    mapped = map_model(model)

    assert mapped.roles["head"] == {"reduce.weight", "reduce.bias", "out.weight", "out.bias"}
    assert len(mapped.roles["adapters"]) == 4
    assert trains(model, "encoder.encoder.layer.0") == trains(model, "encoder.base_model.model.encoder.layer.0")
    assert trains(model, "head") == {"out.weight", "out.bias"}  # the user froze `reduce`, PEFT froze the encoder
    assert len(trains(model, "norms")) == 10


class NeedsMoreThanAConfig(hf.BertPreTrainedModel):
    def __init__(self, config, classes):
        super().__init__(config)
        self.bert = hf.BertModel(config)
        self.classifier = nn.Linear(16, classes)
        self.post_init()


def test_a_users_class_that_needs_more_than_a_config_can_be_wrapped():
    model = lora(NeedsMoreThanAConfig(hf.BertConfig(**SIZES, num_hidden_layers=2), 3))
    assert len(trains(model, ["adapters", "norms", "head"])) == 8 + 10 + 2


@pytest.mark.parametrize("selection", ["backbone", "all"])
def test_what_hf_freeze_froze_before_the_wrapping_thaws_after_it(selection):
    model = tiny_bert()
    freeze(model, "backbone")
    thawed = unfreeze(lora(model), selection)
    assert f"base_model.model.{QUERY}.base_layer.weight" in thawed  # whose owner has another name now
    assert len(thawed) == 39


def test_thawed_weights_move_and_the_rest_of_the_base_does_not():
    model = lora(task_type=SEQ_CLS)
    unfreeze(model, "norms")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()

    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {name for name in moved if "lora_" not in name and "modules_to_save" not in name} == {
        name for name in before if "LayerNorm" in name
    }
