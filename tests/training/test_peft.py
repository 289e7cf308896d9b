"""PEFT saves adapters only; what else trained is saved beside them and comes back."""

import itertools

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezeError, FreezePlan, load_thawed, save_thawed
from hf_freeze.training import checkpoint
from hf_freeze.training.thawed_base import THAWED_NAME, thawed_tensors
from hf_freeze.training.trained_file import TRAINED_NAME
from tests.installed import since
from tests.models import text_rows, tiny_bert, tiny_resnet
from tests.training.runs import arguments, freeze_trainer, moved, training_logs, weights

PLANS = {
    "norms": FreezePlan(trainable=["adapters", "head", "norms"]),
    "layer": FreezePlan(trainable=["adapters", "head", "layers[-1]"]),
    "embeddings": FreezePlan(trainable=["adapters", "bert.embeddings.word_embeddings", "bert.pooler"]),
}
SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def lora(seed=0, **config):
    """LoRA on query and value; PEFT itself keeps a whole copy of the head, to be trained and saved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": 2, "init_lora_weights": False}
        return get_peft_model(tiny_bert(), LoraConfig(**{**settings, **config}))


def trainer_for(kind, model, folder, plan, **overrides):
    if kind == "FreezeTrainer":
        return freeze_trainer(model, folder, freeze_plan=plan, **overrides)
    own = {name: overrides.pop(name) for name in ("compute_metrics", "eval_dataset") if name in overrides}
    args = arguments(folder, TrainingArguments, **overrides)
    return Trainer(model, args, train_dataset=text_rows(), callbacks=[FreezeCallback(plan)], **own)


def reloaded(folder):
    """What a user does: load the adapter onto the base model, then what was thawed in it."""
    model = PeftModel.from_pretrained(tiny_bert(), folder)
    load_thawed(model, folder)
    return model


both = pytest.mark.parametrize("kind", ["FreezeTrainer", "callback"])
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@both
@every_plan
def test_adapters_and_thawed_base_weights_train_and_nothing_else(tmp_path, kind, plan):
    model = lora()
    before = weights(model)
    trainer_for(kind, model, tmp_path, plan).train()
    assert moved(before, model) == plan.resolve(model).ever_trainable
    assert any("lora_A" in name for name in moved(before, model))


@pytest.mark.smoke
@since("0.20", "it cannot be loaded beside the newest torchao, an extra of the tests", "peft")
@both
@every_plan
def test_a_checkpoint_reloads_to_the_model_that_was_saved(tmp_path, kind, plan):
    model = lora()
    trainer_for(kind, model, tmp_path, plan, **SAVES).train()
    assert moved(weights(model), reloaded(tmp_path / "run" / "checkpoint-3")) == set()


@both
def test_rows_of_the_base_that_trained_are_saved_and_come_back(tmp_path, kind):
    plan, model = FreezePlan(trainable=["adapters", "embeddings[5:60]"]), lora()
    before = weights(model)
    trainer_for(kind, model, tmp_path, plan, **SAVES).train()
    assert any("word_embeddings" in name for name in moved(before, model))
    resumed, folder = lora(seed=1), tmp_path / "run" / "checkpoint-1"
    trainer_for(kind, resumed, tmp_path / "again", plan, **SAVES).train(resume_from_checkpoint=str(folder))
    assert moved(weights(model), resumed) == set()


def test_without_load_thawed_the_base_weights_would_be_lost(tmp_path):
    model = lora()
    freeze_trainer(model, tmp_path, freeze_plan=PLANS["layer"], **SAVES).train()
    adapter_only = PeftModel.from_pretrained(tiny_bert(), tmp_path / "run" / "checkpoint-3")
    lost = moved(weights(model), adapter_only)
    assert lost
    assert all(".layer.1." in name for name in lost)


@every_plan
def test_save_model_of_freeze_trainer_saves_all_of_it(tmp_path, plan):
    model = lora()
    trainer = freeze_trainer(model, tmp_path, freeze_plan=plan)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert moved(weights(model), reloaded(tmp_path / "final")) == set()


def test_save_thawed_does_the_same_without_a_trainer(tmp_path):
    model, plan = lora(), PLANS["layer"]
    with torch.no_grad():
        model.get_parameter("base_model.model.bert.encoder.layer.1.output.dense.weight").add_(1)
    model.save_pretrained(tmp_path)
    written = save_thawed(model, tmp_path, plan.resolve(model).ever_trainable)
    assert written == tmp_path / TRAINED_NAME
    assert moved(weights(model), reloaded(tmp_path)) == set()


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_file_of_an_earlier_version_is_loaded(tmp_path, plan):
    model = lora()
    freeze_trainer(model, tmp_path, freeze_plan=plan, **SAVES).train()
    folder = tmp_path / "run" / "checkpoint-3"
    (folder / TRAINED_NAME).unlink()
    tensors = thawed_tensors(model, plan.resolve(model).ever_trainable)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / THAWED_NAME)
    assert moved(weights(model), reloaded(folder)) == set()


def test_another_base_under_the_adapter_is_refused_by_its_first_tensor(tmp_path):
    model, plan = lora(), PLANS["layer"]
    model.save_pretrained(tmp_path)
    save_thawed(model, tmp_path, plan.resolve(model).ever_trainable)
    other = PeftModel.from_pretrained(tiny_bert(seed=1), tmp_path)
    with pytest.raises(FreezeError, match="'base_model.model.bert.embeddings.word_embeddings.weight' .*differs"):
        load_thawed(other, tmp_path)


def test_without_peft_nothing_is_written_beside_the_model(tmp_path):
    freeze_trainer(tiny_bert(), tmp_path, trainable=["head"], **SAVES).train()
    assert not list((tmp_path / "run").rglob(TRAINED_NAME))
    assert save_thawed(tiny_bert(), tmp_path, {"classifier.weight"}) is None


def test_adapters_alone_write_nothing_beside_themselves(tmp_path):
    freeze_trainer(lora(), tmp_path, trainable=["adapters"], **SAVES).train()
    assert not list((tmp_path / "run").rglob(TRAINED_NAME))


@both
@every_plan
@pytest.mark.parametrize("step", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(tmp_path, kind, plan, step):
    whole = trainer_for(kind, lora(), tmp_path, plan, **SAVES)
    whole.train()
    resumed = trainer_for(kind, lora(seed=3), tmp_path, plan, **SAVES)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert moved(weights(whole.model), resumed.model) == set()
    assert training_logs(whole)[step:] == training_logs(resumed)[step:]


@both
@every_plan
def test_the_best_model_is_loaded_at_the_end_though_it_is_not_the_last(tmp_path, kind, plan):
    scores = itertools.count(3, -1)
    model = lora()
    trainer = trainer_for(
        kind,
        model,
        tmp_path,
        plan,
        **SAVES,
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=text_rows(4),
        compute_metrics=lambda prediction: {"score": next(scores)},
        metric_for_best_model="score",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-1")
    assert moved(weights(model), reloaded(tmp_path / "run" / "checkpoint-1")) == set()
    assert moved(weights(model), reloaded(tmp_path / "run" / "checkpoint-3")) != set()


@both
def test_a_thawed_batchnorm_comes_back_with_its_statistics(tmp_path, kind):
    """The statistics of the thawed stage move while it trains; as buffers they are in no adapter file either."""
    settings = {"target_modules": ["convolution"], "r": 2, "modules_to_save": ["classifier"]}
    model = get_peft_model(tiny_resnet(), LoraConfig(**settings))
    plan = FreezePlan(trainable=["adapters", "resnet.encoder.stages.1"])
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": index % 2} for index in range(8)]
    if kind == "FreezeTrainer":
        trainer = freeze_trainer(model, tmp_path, freeze_plan=plan, rows=rows, label_names=["labels"], **SAVES)
    else:
        args = arguments(tmp_path, TrainingArguments, label_names=["labels"], **SAVES)
        trainer = Trainer(model, args, train_dataset=rows, callbacks=[FreezeCallback(plan)])
    before = weights(model)
    trainer.train()
    assert any("stages.1" in name and "running_mean" in name for name in moved(before, model))
    folder = tmp_path / "run" / "checkpoint-3"
    back = PeftModel.from_pretrained(tiny_resnet(), folder)
    load_thawed(back, folder)
    assert moved(weights(model), back) == set()


def test_freeze_trainer_resumes_from_another_folder(tmp_path):
    whole = trainer_for("FreezeTrainer", lora(), tmp_path / "whole", PLANS["layer"], **SAVES)
    whole.train()
    resumed = trainer_for("FreezeTrainer", lora(seed=3), tmp_path / "resumed", PLANS["layer"], **SAVES)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-1"))
    assert moved(weights(whole.model), resumed.model) == set()


def test_a_model_merged_since_is_saved_as_it_is_now(tmp_path):
    trainer = trainer_for("FreezeTrainer", lora(), tmp_path, PLANS["norms"])
    trainer.train()
    trainer.model = trainer.model.merge_and_unload()
    trainer.save_model(str(tmp_path / "merged"))
    assert {path.name for path in (tmp_path / "merged").iterdir()} >= {"model.safetensors"}
    assert not (tmp_path / "merged" / TRAINED_NAME).exists()


# What is wrong with the file


@both
def test_resuming_without_the_file_is_refused(tmp_path, kind):
    trainer_for(kind, lora(), tmp_path, PLANS["norms"], **SAVES).train()
    folder = tmp_path / "run" / "checkpoint-1"
    (folder / TRAINED_NAME).unlink()
    with pytest.raises(FreezeError, match=f"{TRAINED_NAME}' is missing.*base weights that trained are lost"):
        trainer_for(kind, lora(), tmp_path, PLANS["norms"], **SAVES).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize(
    "tensors",
    [{"base_model.model.bert.other.weight": torch.ones(2)}, {"base_model.model.bert.pooler.dense.bias": torch.ones(2)}],
    ids=["name", "shape"],
)
def test_a_file_of_another_model_is_refused_and_changes_nothing(tmp_path, tensors):
    model = lora()
    own = {"base_model.model.bert.embeddings.LayerNorm.bias": torch.full((16,), 7.0)}
    save_file(own | tensors, tmp_path / THAWED_NAME)
    before = weights(model)
    with pytest.raises(FreezeError, match=r"holds 'base_model.*which this model does not have"):
        load_thawed(model, tmp_path)
    assert moved(before, model) == set()


def test_a_truncated_file_is_refused_by_name(tmp_path):
    model, plan = lora(), PLANS["norms"]
    path = save_thawed(model, tmp_path, plan.resolve(model).ever_trainable)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FreezeError, match=f"{TRAINED_NAME}' cannot be read"):
        load_thawed(model, tmp_path)


def test_an_interrupted_write_leaves_the_file_whole_or_absent(tmp_path, monkeypatch):
    def dies_half_way(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    model, names = lora(), PLANS["norms"].resolve(lora()).ever_trainable
    monkeypatch.setattr(checkpoint, "save_file", dies_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_thawed(model, tmp_path, names)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    whole = save_thawed(model, tmp_path, names).read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", dies_half_way)
    with pytest.raises(OSError, match="No space left"):
        save_thawed(model, tmp_path, names)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [whole]


def test_a_folder_without_the_file_loads_nothing(tmp_path):
    assert load_thawed(lora(), tmp_path) == []
