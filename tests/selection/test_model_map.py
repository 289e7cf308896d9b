"""What selections pick in transformers models: stacks, ties, shared layers, what was handed in frozen, wrappers."""

import copy

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_freeze import FreezePlan, SelectionError, UnsupportedSetupError, freeze, recipes
from hf_freeze.selection.language import evaluate
from hf_freeze.selection.model_map import map_model, unwrap
from tests.models import (
    SIZES,
    tiny_bart,
    tiny_bert,
    tiny_clip,
    tiny_gpt2_lm,
    tiny_resnet,
    tiny_roberta,
    tiny_t5,
)


def pick(model, selection):
    return set(evaluate(selection, map_model(model)).names)


def named(model, *prefixes):
    return {name for name, _ in model.named_parameters() if f"{name}.".startswith(tuple(f"{p}." for p in prefixes))}


def tiny_wav2vec2():
    config = hf.Wav2Vec2Config(
        **{key: SIZES[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")},
        num_hidden_layers=2,
        vocab_size=32,
        classifier_proj_size=8,
        conv_dim=(16, 16),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return hf.Wav2Vec2ForSequenceClassification(config)


def tiny_whisper():
    config = hf.WhisperConfig(
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_layers=2,
        decoder_layers=2,
        vocab_size=64,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return hf.WhisperForConditionalGeneration(config)


# --- paths and layers -------------------------------------------------------------------------------------------------


def test_layer_1_is_not_layer_10():
    model = tiny_bert(layers=12)
    assert pick(model, "bert.encoder.layer.1") == pick(model, "layers[1]") == named(model, "bert.encoder.layer.1")
    assert pick(model, "layers[10:]") == named(model, "bert.encoder.layer.10", "bert.encoder.layer.11")


def test_the_base_models_prefix_may_be_left_out():
    model = tiny_roberta()
    assert pick(model, "encoder.layer.0") == named(model, "roberta.encoder.layer.0")
    assert pick(model, "encoder.layers[0]") == named(model, "roberta.encoder.layer.0")
    assert pick(model, "classifier.dense") == named(model, "classifier.dense")


@pytest.mark.parametrize(
    ("build", "selection", "expected"),
    [
        (tiny_bart, "encoder.layers[-1]", "model.encoder.layers.1"),
        (tiny_bart, "decoder.layers[:1]", "model.decoder.layers.0"),
        (tiny_bart, "model.decoder.layers[-1]", "model.decoder.layers.2"),
        (tiny_t5, "encoder.layers[-1]", "encoder.block.1"),
        (tiny_t5, "decoder.layers[:1]", "decoder.block.0"),
        (tiny_clip, "vision_model.layers[2:]", "vision_model.encoder.layers.2"),
        (tiny_clip, "text_model.layers[0]", "text_model.encoder.layers.0"),
    ],
)
def test_a_path_in_front_chooses_one_of_several_stacks(build, selection, expected):
    model = build()
    assert pick(model, selection) == named(model, expected)


@pytest.mark.parametrize(
    ("build", "listed"),
    [
        (tiny_bart, r"'model.encoder.layers' has 2 layers, 'model.decoder.layers' has 3 layers"),
        (tiny_t5, r"'encoder.block' has 2 layers, 'decoder.block' has 3 layers"),
        (tiny_clip, r"'text_model.encoder.layers' has 2 layers, 'vision_model.encoder.layers' has 3 layers"),
    ],
)
def test_layers_alone_are_an_error_that_lists_the_stacks_and_the_role_means_all_of_them(build, listed):
    model = build()
    with pytest.raises(SelectionError, match=listed):
        pick(model, "layers[-1]")
    assert pick(model, "layers") == set().union(*(set().union(*s.layers) for s in map_model(model).stacks))


def test_layers_count_across_the_stages_of_a_model_that_has_some():
    model = tiny_resnet(depths=(1, 2))
    assert pick(model, "layers[1]") == named(model, "resnet.encoder.stages.1.layers.0")
    with pytest.raises(SelectionError, match="has 3 layers"):
        pick(model, "layers[3]")


def test_a_shared_block_is_one_layer_however_often_it_runs():
    config = hf.AlbertConfig(**{**SIZES, "embedding_size": 8}, num_hidden_layers=4)
    model = hf.AlbertForSequenceClassification(config)
    assert pick(model, "layers[0]") == pick(model, "layers")
    with pytest.raises(SelectionError, match="has 1 layers"):
        pick(model, "layers[1]")


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(SelectionError, match=r"'clasifier' matches none of the 41 parameters. Nearest: 'classifier'"):
        pick(tiny_bert(), "clasifier")
    with pytest.raises(SelectionError, match=r"Nearest: .*'encoder.layer'"):
        pick(tiny_bert(), "encoder.layers")


def test_a_model_without_parameters_is_told_so():
    with pytest.raises(SelectionError, match="the model has no parameters"):
        freeze(nn.ReLU())


# --- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alias", ["transformer.wte", "wte.weight", "lm_head", "re:lm_head.weight"])
def test_a_tied_weight_answers_to_either_name(alias):
    model = tiny_gpt2_lm()
    plan = FreezePlan(trainable=alias).resolve(model)
    assert plan.ever_trainable == {"transformer.wte.weight", "lm_head.weight"}
    assert plan.stages == (frozenset({"transformer.wte.weight"}),)


def test_equal_values_are_not_a_tie():
    model = tiny_bert()
    first, second = (layer.output.LayerNorm for layer in model.bert.encoder.layer)
    assert torch.equal(first.weight, second.weight)
    assert pick(model, "encoder.layer.0.output.LayerNorm") == named(model, "bert.encoder.layer.0.output.LayerNorm")


@pytest.mark.parametrize("wrapped", [False, True], ids=["", "peft"])
def test_a_head_that_is_tied_to_the_embeddings_is_said_to_be(wrapped):
    model = tiny_gpt2_lm()
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    tied = r"tied to the embeddings \(lm_head.weight is transformer.wte.weight\).*leave 'head' out"
    with pytest.raises(SelectionError, match=tied):
        recipes.last_layers(1).resolve(model)


def test_a_model_without_a_head_is_not_said_to_have_a_tied_one():
    model = get_peft_model(tiny_bert().bert, LoraConfig(target_modules=["query"]))
    with pytest.raises(SelectionError, match="'head' matches none of.*This model has"):
        FreezePlan(trainable="head").resolve(model)


def test_taking_a_tied_weight_out_under_one_name_takes_it_out_under_the_other():
    plan = FreezePlan(trainable=["all", "!lm_head"]).resolve(tiny_gpt2_lm())
    assert not plan.ever_trainable & {"transformer.wte.weight", "lm_head.weight"}


# --- handed in frozen -------------------------------------------------------------------------------------------------

EXTRACTOR = "wav2vec2.feature_extractor"


@pytest.mark.parametrize("selection", ["all", "backbone", ["all", "!head"], "layers"])
def test_what_was_frozen_before_stays_frozen_under_all_and_roles(selection):
    model = tiny_wav2vec2()
    model.freeze_feature_encoder()
    assert not FreezePlan(trainable=selection).resolve(model).ever_trainable & named(model, EXTRACTOR)
    assert not FreezePlan(freeze="head").resolve(model).ever_trainable & named(model, EXTRACTOR)


@pytest.mark.parametrize(
    "selection", [EXTRACTOR, "feature_extractor", "*.feature_extractor", r"re:.*feature_extractor\..*"]
)
def test_what_was_frozen_before_thaws_when_a_path_or_regex_names_it(selection):
    model = tiny_wav2vec2()
    model.freeze_feature_encoder()
    assert FreezePlan(trainable=selection).resolve(model).ever_trainable == named(model, EXTRACTOR)
    as_complement = FreezePlan(freeze=["backbone", f"!{selection}"]).resolve(model)
    assert as_complement.ever_trainable >= named(model, EXTRACTOR)


def test_a_convolutional_front_is_a_stack_that_only_its_path_reaches():
    model = tiny_wav2vec2()
    assert pick(model, "layers[0]") == named(model, "wav2vec2.encoder.layers.0")
    assert pick(model, "wav2vec2.layers[0]") == named(model, "wav2vec2.encoder.layers.0")
    assert pick(model, "feature_extractor.layers[0]") == named(model, f"{EXTRACTOR}.conv_layers.0")


def test_a_table_that_the_architecture_freezes_trains_only_by_name():
    model = tiny_whisper()
    table = "model.encoder.embed_positions.weight"
    assert not model.get_parameter(table).requires_grad
    assert table not in FreezePlan(trainable=["embeddings", "encoder.layers[0]"]).resolve(model).ever_trainable
    assert table in FreezePlan(trainable="encoder.embed_positions").resolve(model).ever_trainable


# --- what cannot train ------------------------------------------------------------------------------------------------


def with_integers():
    model = tiny_bert()
    model.classifier.packed = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize("selection", ["all", "head"])
def test_integers_are_passed_over_by_all_and_roles(selection):
    trainable = FreezePlan(trainable=selection).resolve(with_integers()).ever_trainable
    assert "classifier.weight" in trainable
    assert "classifier.packed" not in trainable


@pytest.mark.parametrize("selection", ["classifier", "classifier.packed", ["all", "re:.*packed"]])
def test_integers_that_are_named_are_refused(selection):
    with pytest.raises(UnsupportedSetupError, match=r"'classifier.packed' cannot be trained: the values are integers"):
        FreezePlan(trainable=selection).resolve(with_integers())
    with pytest.raises(UnsupportedSetupError, match="quantised"):
        FreezePlan(freeze=["all", "!classifier"]).resolve(with_integers())


@pytest.mark.filterwarnings("ignore")  # of bitsandbytes and what it imports
def test_four_bit_weights_are_passed_over_by_all_and_refused_by_name(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_bert(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=hf.BitsAndBytesConfig(load_in_4bit=True)
    )
    packed = {name for name, parameter in model.named_parameters() if type(parameter).__name__ == "Params4bit"}
    assert len(packed) >= 12
    trainable = FreezePlan(trainable="all").resolve(model).ever_trainable
    assert trainable == {name for name, _ in model.named_parameters()} - packed
    with pytest.raises(UnsupportedSetupError, match=r"weight'.* cannot be trained: the values are integers"):
        FreezePlan(trainable="bert.encoder.layer.0").resolve(model)


def test_complex_weights_can_train():
    model = nn.Linear(2, 2)
    model.kernel = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    assert "kernel" in FreezePlan(trainable="kernel").resolve(model).ever_trainable


# --- wrappers ---------------------------------------------------------------------------------------------------------


def test_a_wrapped_model_has_the_names_of_the_model_inside(one_process):
    model = tiny_bert()
    bare = map_model(model)
    for wrapped in (
        nn.parallel.DistributedDataParallel(model),
        torch.compile(model, backend="eager"),
        nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager")),
        nn.DataParallel(model),
    ):
        assert unwrap(wrapped) is model
        assert map_model(wrapped) == bare
        assert freeze(wrapped, "layers[0]") == sorted(named(model, "bert.encoder.layer.0"), key=bare_order(model))
        model.requires_grad_(True)


def test_a_module_that_is_compiled_on_its_own_keeps_its_name():
    model = tiny_bert()
    model.bert = torch.compile(model.bert, backend="eager")
    assert any("_orig_mod" in name for name, _ in model.named_parameters())
    for path in ("bert.encoder.layer.0", "encoder.layer.0", "layers[0]", "bert._orig_mod.encoder.layer.0"):
        assert pick(model, path) == named(model, "bert._orig_mod.encoder.layer.0")
    assert pick(model, "head") == named(model, "classifier")


def bare_order(model):
    return [name for name, _ in model.named_parameters()].index


def test_looking_at_a_model_changes_nothing_in_it():
    model = tiny_bart()
    model.model.encoder.requires_grad_(False)
    twin = copy.deepcopy(model)

    map_model(model)
    FreezePlan(trainable="decoder.layers[0]").resolve(model)

    for (name, parameter), (_, before) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(parameter, before), name
        assert parameter.requires_grad == before.requires_grad, name
