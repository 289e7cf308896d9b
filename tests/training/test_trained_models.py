"""Models with ties, statistics, other precisions or a wrapper: what trained is saved once, and comes back exactly."""

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage, load_trained, merge_trained
from tests.models import (
    SIZES,
    SPECIAL,
    image_rows,
    seeded,
    text_rows,
    tiny_bert,
    tiny_custom,
    tiny_gpt2_lm,
    tiny_resnet,
    tiny_t5,
)
from tests.quiet import quiet_arguments
from tests.training.trained_runs import same, stored


def masked_lm():
    config = hf.BertConfig(**SIZES, num_hidden_layers=2)
    return seeded(hf.BertForMaskedLM, config)


def llama_lm():
    config = hf.LlamaConfig(**SIZES, **SPECIAL, num_key_value_heads=2, num_hidden_layers=2, tie_word_embeddings=True)
    return seeded(hf.LlamaForCausalLM, config)


def token_rows(labels: bool = True):
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in text_rows()]
    return [{**row, "labels": row["input_ids"]} for row in rows]


def half(build):
    return lambda: build().to(torch.bfloat16)


def mixed():
    """Frozen weights in low precision, the head in full."""
    model = tiny_bert().to(torch.bfloat16)
    model.classifier.float()
    model.dropout.register_forward_hook(lambda module, args, output: output.float())
    return model


LAYER = {"trainable": "layers[-1]"}
CASES = {
    "BERT MLM": (masked_lm, token_rows, LAYER, "embeddings"),
    "GPT-2, tied": (tiny_gpt2_lm, token_rows, LAYER, "transformer.wte"),
    "GPT-2, by the other name": (tiny_gpt2_lm, token_rows, {"trainable": "lm_head"}, "layers[-1]"),
    "Llama, tied": (llama_lm, token_rows, LAYER, "model.embed_tokens"),
    "T5, tied": (tiny_t5, token_rows, {"trainable": "decoder.layers[-1]"}, "shared"),
    "BatchNorm": (tiny_resnet, image_rows, {"trainable": "head"}, "resnet.encoder.stages.1"),
    "bfloat16": (half(tiny_bert), text_rows, {"trainable": "head"}, "layers[-1]"),
    "two precisions": (mixed, text_rows, {"trainable": "head"}, "bert.pooler"),
    "a module of one's own": (tiny_custom, text_rows, {"trainable": "out"}, "layers[-1]"),
}


def trained(folder, case, *, only=True, resume=None, build=None, **values):
    made_anew, rows, start, later = CASES[case]
    plan = FreezePlan(**start, stages=[Stage(step=2, unfreeze=later)])
    short = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
    settings = {"learning_rate": 0.1, "save_trained_only": only, "label_names": ["labels"], **short, **values}
    args = quiet_arguments(folder, cls=FreezeTrainingArguments, **settings)
    hf.set_seed(0)
    made = FreezeTrainer((build or made_anew)(), args, train_dataset=rows(), freeze_plan=plan)
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return made


@pytest.mark.parametrize("case", CASES)
def test_what_trained_comes_back_in_a_fresh_base_and_in_a_resumed_run(tmp_path, case) -> None:
    whole = trained(tmp_path / "run", case)
    model = CASES[case][0]()
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_trained(model, tmp_path / "run" / "checkpoint-4")
    assert same(model, whole.model) == []
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, untouched[name])}
    assert changed
    assert len(loaded) == len({model.state_dict()[name].data_ptr() for name in loaded})  # tied weights once
    for step in (1, 2, 3):
        resumed = trained(tmp_path / str(step), case, resume=tmp_path / "run" / f"checkpoint-{step}")
        assert same(resumed.model, whole.model) == [], step


@pytest.mark.parametrize("case", [name for name in CASES if "own" not in name and "two" not in name])
def test_the_merged_file_is_that_of_the_trainer(tmp_path, case) -> None:
    model = CASES[case][0]()
    model.save_pretrained(tmp_path / "base")

    def build():
        return type(model).from_pretrained(tmp_path / "base")

    trained(tmp_path / "small", case, build=build)
    trained(tmp_path / "full", case, build=build, only=False)
    for step in (2, 4):
        merged = merge_trained(tmp_path / "small" / f"checkpoint-{step}", tmp_path / f"out-{step}")
        whole = tmp_path / "full" / f"checkpoint-{step}" / "model.safetensors"
        assert (merged / "model.safetensors").read_bytes() == whole.read_bytes()


def test_statistics_that_moved_are_saved_and_others_are_not(tmp_path) -> None:
    trained(tmp_path / "run", "BatchNorm")
    before, after = (stored(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 3))
    assert not any("running" in name for name in before)
    assert {name for name in after if "running" in name}
    assert all("stages.1" in name for name in after if "running" in name)


def test_with_statistics_of_frozen_parts_in_motion_the_run_resumes_exactly(tmp_path) -> None:
    whole = trained(tmp_path / "run", "BatchNorm", frozen_eval=False)
    assert any("stages.0" in name for name in stored(tmp_path / "run" / "checkpoint-1"))
    resumed = trained(tmp_path / "other", "BatchNorm", frozen_eval=False, resume=tmp_path / "run" / "checkpoint-1")
    assert same(resumed.model, whole.model) == []


def test_a_head_in_full_precision_over_a_half_precision_base_keeps_it(tmp_path) -> None:
    made = trained(tmp_path / "run", "two precisions")
    model = tiny_bert().to(torch.bfloat16)
    load_trained(model, tmp_path / "run" / "checkpoint-4")
    assert model.classifier.weight.dtype is torch.float32
    assert same(model, made.model) == []


def test_resized_embeddings_are_saved_whole(tmp_path) -> None:
    tiny_gpt2_lm().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(70)
    args = quiet_arguments(
        tmp_path / "run", cls=FreezeTrainingArguments, max_steps=1, save_trained_only=True, trainable=["layers[-1]"]
    )
    made = FreezeTrainer(model, args, train_dataset=token_rows())
    made.train()
    made.save_model()
    merged = merge_trained(tmp_path / "run", tmp_path / "merged")
    assert same(AutoModelForCausalLM.from_pretrained(merged), made.model) == []
    assert load_file(merged / "model.safetensors")["transformer.wte.weight"].shape[0] == 70


def test_parameters_over_the_same_memory_are_saved_each(tmp_path) -> None:
    def build():
        model = tiny_custom()
        model.other = torch.nn.Linear(16, 2, bias=False)
        model.other.weight.data = model.out.weight.data
        return model

    plan = FreezePlan(trainable=["out", "other"])
    args = quiet_arguments(tmp_path, cls=FreezeTrainingArguments, save_trained_only=True)
    FreezeTrainer(build(), args, train_dataset=text_rows(), freeze_plan=plan).save_model()
    model = build()
    with torch.no_grad():
        model.out.weight.zero_()
    assert {"out.weight", "other.weight"} <= {*load_trained(model, tmp_path)}
    assert same(model, build()) == []
