"""The role `adapters` is what PEFT itself trains, for every kind of adapter that it has."""

import pytest
import transformers as hf
from peft import LoraConfig, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from hf_freeze.selection.model_map import map_model
from tests.models import tiny_bert, tiny_llama

QUERY = {"target_modules": ["query"]}
TOKENS = {"num_virtual_tokens": 4}
OPTIONS = {
    "ADALORA": {**QUERY, "total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "C3A": {**QUERY, "block_size": 4},
    "CARTRIDGE": TOKENS,
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {**QUERY, "n_frequency": 4},
    "IA3": {**QUERY, "feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "MISS": {**QUERY, "r": 2},
    "MULTITASK_PROMPT_TUNING": TOKENS,
    "PREFIX_TUNING": TOKENS,
    "PROMPT_TUNING": TOKENS,
    "PSOFT": {**QUERY, "r": 2},
    "P_TUNING": TOKENS,
    "ROAD": {**QUERY, "group_size": 4},
    "SHIRA": {**QUERY, "r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["word_embeddings"], "token_indices": [1, 2]},
    "VBLORA": {**QUERY, "vector_length": 4, "num_vectors": 8},
    "WAVEFT": {**QUERY, "n_frequency": 4},
}
CAUSAL = {"ADAPTION_PROMPT", "CARTRIDGE", "CPT"}
# X-LoRA mixes adapters that were trained and saved before.
KINDS = sorted(kind.name for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.name != "XLORA")


def causal_llama():
    return hf.LlamaForCausalLM(tiny_llama().config)


def left_trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.filterwarnings("ignore")  # PEFT warns of what is experimental
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_what_peft_trains(kind):
    configs = {one.name: config for one, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    task = TaskType.CAUSAL_LM if kind in CAUSAL else TaskType.SEQ_CLS
    config = configs[kind](task_type=task, **OPTIONS.get(kind, QUERY))
    model = get_peft_model(causal_llama() if kind in CAUSAL else tiny_bert(), config)

    assert left_trainable(model)
    assert map_model(model).roles["adapters"] == left_trainable(model)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_biases_that_lora_trains_are_among_the_adapters(bias):
    model = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", bias=bias, **QUERY))
    assert map_model(model).roles["adapters"] == left_trainable(model)


@pytest.mark.parametrize("active", ["default", "second"])
def test_of_several_adapters_those_count_that_are_active(active):
    model = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", **QUERY))
    model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", target_modules=["key"]))
    model.set_adapter(active)

    adapters = map_model(model).roles["adapters"]
    assert adapters == left_trainable(model)
    assert {name.split(f".{active}.")[0] != name for name in adapters} == {True}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_inside_the_attention_are_adapters(family):
    configs = {one.name: config for one, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    gpt2 = hf.GPT2Config(vocab_size=64, n_embd=16, n_head=2, n_layer=2, n_positions=32)
    model = causal_llama() if family == "llama" else hf.GPT2LMHeadModel(gpt2)
    model = get_peft_model(model, configs["ADAPTION_PROMPT"](adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"))
    assert left_trainable(model)
    assert map_model(model).roles["adapters"] == left_trainable(model)


def test_mixing_saved_adapters_is_what_x_lora_trains(tmp_path):
    configs = {one.name: config for one, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    get_peft_model(causal_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    fresh = causal_llama()
    fresh.config.use_cache = False
    model = get_peft_model(fresh, configs["XLORA"](hidden_size=16, adapters={"one": str(tmp_path)}))
    assert left_trainable(model)
    assert map_model(model).roles["adapters"] == left_trainable(model)
