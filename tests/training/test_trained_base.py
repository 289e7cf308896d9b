"""What the base of a checkpoint is: what loading it by its name again brings back. Everything else is saved."""

import copy

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)

from hf_freeze import FreezePlan, UnsupportedSetupError, load_trained, merge_trained
from tests.models import SIZES, SPECIAL, seeded, tiny_bert, tiny_custom
from tests.training.staged import trainer
from tests.training.trained_runs import HEAD, base_folder, classifier, description, refused, same, stored, trained

LAYER = FreezePlan(trainable="layers[-1]")


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path)


def in_the_old_format(base) -> None:
    file = base / "model.safetensors"
    torch.save(load_file(file), base / "pytorch_model.bin")
    file.unlink()


def trained_by_another_trainer(base):
    model = classifier(base)
    made = trainer(base.parent / "before", model=model, plan=None, cls=Trainer, max_steps=1)
    made.train()
    return model


def resized(base):
    model = classifier(base)
    model.resize_token_embeddings(70)
    return model


MODELS = {
    "trained by another Trainer": (trained_by_another_trainer, HEAD, "bert.encoder.layer.0.output.dense.weight"),
    "a copy": (lambda base: copy.deepcopy(classifier(base)), LAYER, "classifier.weight"),
    "embeddings resized": (resized, HEAD, "bert.embeddings.word_embeddings.weight[64:70]"),
    "weights of a configuration": (
        lambda base: BertForSequenceClassification(AutoConfig.from_pretrained(base)),
        HEAD,
        "bert.pooler.dense.weight",
    ),
}


@pytest.mark.parametrize("old_format", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_the_files_of_the_base_do_not_hold_is_saved(tmp_path, base, kind, old_format) -> None:
    if old_format:
        in_the_old_format(base)
    build, plan, name = MODELS[kind]
    made = trained(tmp_path / "run", base, model=build(base), plan=plan, max_steps=1)
    merged = merge_trained(tmp_path / "run" / "checkpoint-1", tmp_path / "merged")
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), made.model) == []
    assert name in stored(tmp_path / "run" / "checkpoint-1")


@pytest.mark.parametrize("old_format", [False, True], ids=["safetensors", "bin"])
def test_what_they_hold_is_not_saved_in_whatever_parts_they_are(tmp_path, base, old_format) -> None:
    classifier(base).bert.save_pretrained(base, max_shard_size="10KB")
    if old_format:
        for file in base.glob("*.safetensors"):
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.unlink()
        index = base / "model.safetensors.index.json"
        (base / "pytorch_model.bin.index.json").write_text(index.read_text().replace(".safetensors", ".bin"))
        index.unlink()
    copied = copy.deepcopy(classifier(base))  # nothing in it is marked as loaded
    trained(tmp_path / "run", base, model=copied, plan=HEAD, max_steps=1)
    assert stored(tmp_path / "run" / "checkpoint-1").keys() == {"classifier.weight", "classifier.bias"}


def test_rows_of_zeros_more_are_another_base(tmp_path, base) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    model = classifier(base)
    model.resize_token_embeddings(70, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[64:] = 0
    refused(model, tmp_path / "run" / "checkpoint-1", "word_embeddings.weight' of this model differs")


def test_zeros_in_another_precision_are_another_base(tmp_path, base) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    model = classifier(base)
    bias = model.bert.encoder.layer[0].output.LayerNorm.bias
    assert not bias.any()
    bias.data = bias.data.half()
    refused(model, tmp_path / "run" / "checkpoint-1", "LayerNorm.bias' of this model differs. It was float32 and is")


def test_a_model_without_values_is_refused(tmp_path, base) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    with torch.device("meta"):
        model = BertForSequenceClassification(AutoConfig.from_pretrained(base))
    refused(model, tmp_path / "run" / "checkpoint-1", "'bert.embeddings.word_embeddings.weight'.*no values")


def test_what_began_as_a_merged_folder_goes_on_from_there(tmp_path, base) -> None:
    trained(tmp_path / "first", base, plan=HEAD, max_steps=1)
    merged = merge_trained(tmp_path / "first" / "checkpoint-1", tmp_path / "merged")
    second = trained(tmp_path / "second", merged, plan=LAYER, max_steps=1)
    assert description(tmp_path / "second" / "checkpoint-1")["base"]["name"] == str(merged)
    model = AutoModelForSequenceClassification.from_pretrained(merged)
    load_trained(model, tmp_path / "second" / "checkpoint-1")
    assert same(model, second.model) == []


def mixtral():
    config = MixtralConfig(**SIZES, **SPECIAL, num_key_value_heads=2, num_local_experts=2, num_hidden_layers=2)
    return seeded(MixtralForCausalLM, config)


def test_what_is_filed_under_another_name_is_not_saved(tmp_path) -> None:
    mixtral().save_pretrained(tmp_path / "base")
    model = MixtralForCausalLM.from_pretrained(tmp_path / "base")
    assert not model.state_dict().keys() <= load_file(tmp_path / "base" / "model.safetensors").keys()
    trainer(tmp_path / "run", model=model, plan=FreezePlan(trainable="lm_head"), save_trained_only=True).save_model()
    assert stored(tmp_path / "run").keys() == {"lm_head.weight"}


def test_what_is_filed_under_another_name_is_saved_where_it_was_changed_since(tmp_path) -> None:
    mixtral().save_pretrained(tmp_path / "base")
    model = MixtralForCausalLM.from_pretrained(tmp_path / "base")
    changed = "model.layers.0.mlp.experts.down_proj"
    with torch.no_grad():
        model.get_parameter(changed).mul_(2)
    trainer(tmp_path / "run", model=model, plan=FreezePlan(trainable="lm_head"), save_trained_only=True).save_model()
    assert changed in stored(tmp_path / "run")
    merged = merge_trained(tmp_path / "run", tmp_path / "merged")
    assert same(MixtralForCausalLM.from_pretrained(merged), model) == []


@pytest.mark.parametrize("revision", ["a" * 40, None], ids=["of a commit", "of the default branch"])
def test_a_base_on_the_hub_is_merged_at_its_commit_whatever_was_pushed_since(tmp_path, monkeypatch, revision) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)

    def push(commit: str, seed: int) -> None:
        tiny_bert(layers=3, seed=seed).bert.save_pretrained(repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)

    push("a" * 40, seed=1)
    if revision is not None:
        push("b" * 40, seed=2)
    model = classifier("me/tiny", **({"revision": revision} if revision else {}))
    made = trained(tmp_path / "run", None, model=model, plan=HEAD, max_steps=1)
    push("c" * 40, seed=3)
    assert stored(tmp_path / "run" / "checkpoint-1").keys() == {"classifier.weight", "classifier.bias"}
    merged = merge_trained(tmp_path / "run" / "checkpoint-1", tmp_path / "merged")
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), made.model) == []


class TwoTowers(nn.Module):
    """Two encoders, each from files of its own, and the second one frozen."""

    def __init__(self, first, second) -> None:
        super().__init__()
        self.first, self.second = (AutoModel.from_pretrained(base) for base in (first, second))
        self.out = nn.Linear(32, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        towers = (self.first, self.second)
        pooled = [tower(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0] for tower in towers]
        logits = self.out(torch.cat(pooled, dim=-1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_each_model_inside_a_module_is_held_against_its_own_files(tmp_path) -> None:
    bases = [base_folder(tmp_path / name, tiny_bert(seed=seed).bert) for seed, name in enumerate(("one", "two"))]
    model = TwoTowers(*bases)
    made = trained(tmp_path / "run", None, model=copy.deepcopy(model), plan=FreezePlan(trainable="out"), max_steps=1)
    assert stored(tmp_path / "run" / "checkpoint-1").keys() == {"out.weight", "out.bias"}
    load_trained(model, tmp_path / "run" / "checkpoint-1")
    assert same(model, made.model) == []
    tiny_bert(seed=5).bert.save_pretrained(bases[1])
    refused(TwoTowers(*bases), tmp_path / "run" / "checkpoint-1", "'second.embeddings.word_embeddings.weight'")


def test_the_base_of_adapters_is_held_against_its_files_too(tmp_path, base) -> None:
    def adapted(changed: float):
        model = classifier(base)
        with torch.no_grad():
            model.bert.encoder.layer[0].attention.self.query.weight += changed
            model.bert.encoder.layer[1].output.dense.weight += changed
        return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2))

    layers = ("layer.0.attention.self.query.base_layer.weight", "layer.1.output.dense.weight")
    names = {f"base_model.model.bert.encoder.{layer}" for layer in layers}
    for folder, changed in (("as it was", 0.0), ("changed", 1e-3)):
        plan = FreezePlan(trainable=["adapters", "norms"])
        trainer(tmp_path / folder, model=adapted(changed), plan=plan, max_steps=1).save_model()
        assert names & stored(tmp_path / folder).keys() == (names if changed else set())


def test_a_sparse_buffer_is_refused_before_training(tmp_path) -> None:
    model = tiny_custom()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(UnsupportedSetupError, match="saves dense tensors, but 'graph'"):
        trainer(tmp_path, model=model, plan=FreezePlan(trainable="out"), save_trained_only=True)


def test_a_zero_that_changed_its_sign_is_saved(tmp_path, base) -> None:
    model = classifier(base)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias.zero_().neg_()
    trained(tmp_path / "run", base, model=model, plan=HEAD, max_steps=1)
    load_trained(classifier(base), tmp_path / "run" / "checkpoint-1")


def test_what_is_changed_between_building_a_trainer_and_training_is_saved(tmp_path, base) -> None:
    made = trainer(tmp_path / "run", model=classifier(base), plan=HEAD, save_trained_only=True, max_steps=1)
    with torch.no_grad():
        made.model.bert.pooler.dense.weight += 1
    made.train()
    made.save_model()
    model = classifier(base)
    load_trained(model, tmp_path / "run")
    assert same(model, made.model) == []
