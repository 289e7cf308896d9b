"""What is uploaded, said in the model card, and typed in a shell about folders of `save_trained_only`."""

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForSequenceClassification, Trainer

from hf_freeze import (
    FreezeError,
    FreezePlan,
    FreezeTrainer,
    UnsupportedSetupError,
    load_thawed,
    load_trained,
    merge_trained,
)
from hf_freeze.reporting.cli import main
from hf_freeze.training.base_model import base_of
from hf_freeze.training.trained_file import TRAINED_NAME
from hf_freeze.training.trained_only import how_to_load
from tests.models import tiny_bert, tiny_custom
from tests.trainers.kinds import tokenizer
from tests.training.staged import arguments, trainer
from tests.training.trained_runs import HEAD, base_folder, classifier, same, trained


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path)


def test_the_card_says_once_how_to_load_it_and_the_code_in_it_runs(tmp_path, base) -> None:
    made = trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    made.save_model()
    for _ in range(2):
        made.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.count("## How to load it") == card.count("## What trained") == 1
    assert "hf-freeze merge FOLDER OUT" in card
    code = card.partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(tmp_path / "run")), names)
    assert same(names["model"], made.model) == []
    merged = (merge_trained(tmp_path / "run", tmp_path / "merged") / "README.md").read_text()
    assert "How to load it" not in merged
    assert "## What trained" in merged


def test_the_card_of_a_module_of_ones_own_says_what_can_be_done(tmp_path) -> None:
    made = trainer(tmp_path / "run", model=tiny_custom(), plan=FreezePlan(trainable="out"), save_trained_only=True)
    card = how_to_load(base_of(made.model))
    assert "BackboneWithHead" in card
    assert "transformers" not in card
    assert "merge" not in card
    compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec")


def test_what_trained_is_in_the_folder_that_is_pushed(tmp_path, base, monkeypatch) -> None:
    made = trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    uploaded = []
    monkeypatch.setattr(
        Trainer,
        "_push_from_checkpoint",
        lambda self, folder: uploaded.extend(path.name for path in Path(self.args.output_dir).iterdir()),
    )
    made._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-1"))
    assert TRAINED_NAME in uploaded
    assert "model.safetensors" not in uploaded


def test_whole_weights_of_an_earlier_run_are_not_pushed_along(tmp_path, base, monkeypatch) -> None:
    trained(tmp_path / "run", base, only=False, plan=HEAD, max_steps=1).save_model()
    assert (tmp_path / "run" / "model.safetensors").exists()
    made = trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    made._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-1"))
    assert same(classifier_from(merge_trained(tmp_path / "run", tmp_path / "merged")), made.model) == []


def classifier_from(folder: Path):
    return AutoModelForSequenceClassification.from_pretrained(folder)


def test_merging_copies_what_belongs_to_the_model_and_no_more(tmp_path, base) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    folder = tmp_path / "run" / "checkpoint-1"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").touch()
    (folder / ".trained.safetensors.7.tmp").touch()
    (folder / "stage_best.safetensors").touch()
    merged = merge_trained(folder, tmp_path / "merged")
    names = {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()}
    of_the_model = {"config.json", "model.safetensors", "training_args.bin"}
    assert names == {*of_the_model, "additional_chat_templates/tool.jinja"}


def test_merging_goes_through_a_link_and_refuses_the_working_folder(tmp_path, base, monkeypatch) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    merge_trained(tmp_path / "run" / "checkpoint-1", tmp_path / "link")
    assert (tmp_path / "linked" / "model.safetensors").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FreezeError, match="'.' exists. Give a new folder"):
        merge_trained(tmp_path / "run" / "checkpoint-1", ".")


def test_the_commands_read_such_a_folder(tmp_path, base, capsys) -> None:
    made = trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    folder, out = str(tmp_path / "run" / "checkpoint-1"), str(tmp_path / "whole")
    tokenizer().save_pretrained(base)
    assert main(["debug", folder, "--text", "w1 w2 w3"]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err
    assert main(["plan", folder, "--trainable", "head"]) == 0
    assert main(["merge", folder, out]) == 0
    assert f"Wrote the whole model to {out!r}" in capsys.readouterr().out
    assert same(AutoModelForSequenceClassification.from_pretrained(out), made.model) == []
    assert main(["merge", folder, out]) == 2
    assert "exists. Give a new folder" in capsys.readouterr().err
    shutil.move(base, tmp_path / "moved")
    assert main(["merge", folder, str(tmp_path / "again"), "--base", str(tmp_path / "moved")]) == 0


FSDP = {"fsdp": "full_shard", "fsdp_config": {"version": 2}}


@pytest.mark.parametrize("kind", ["DeepSpeed", "FSDP"])
@pytest.mark.parametrize("built", [True, False], ids=["model", "path"])
def test_weights_in_pieces_are_refused_in_the_constructor(tmp_path, base, kind, built) -> None:
    args = arguments(tmp_path / "run", save_trained_only=True, **(FSDP if kind == "FSDP" else {}))
    if kind == "DeepSpeed":
        args.deepspeed_plugin = SimpleNamespace(deepspeed_config={}, selected=True)
    with pytest.raises(UnsupportedSetupError, match=f"{kind} writes all weights"):
        FreezeTrainer(classifier(base) if built else str(base), args, freeze_plan=HEAD)
    assert not (tmp_path / "run").exists()


def test_adapters_without_a_peft_model_are_refused(tmp_path) -> None:
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), tiny_bert())
    with pytest.raises(UnsupportedSetupError, match="get_peft_model"):
        trainer(tmp_path, model=model, plan=None, save_trained_only=True)


def test_a_value_that_is_neither_true_nor_false_is_refused(tmp_path) -> None:
    with pytest.raises(FreezeError, match="save_trained_only='yes'"):
        trainer(tmp_path, save_trained_only="yes")


def test_under_peft_the_adapter_and_the_base_weights_that_train_are_saved(tmp_path) -> None:
    def lora():
        torch.manual_seed(0)
        return get_peft_model(tiny_bert(layers=3), LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2))

    values = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "save_trained_only": True}
    plan = {"plan": None, "trainable": ["adapters", "head", "norms"]}
    made = trainer(tmp_path / "run", model=lora(), **plan, **values)
    made.train()
    names = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert {"adapter_model.safetensors", TRAINED_NAME} <= names
    assert "model.safetensors.index.json" not in names
    resumed = trainer(tmp_path / "other", model=lora(), **plan, **values)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert same(resumed.model, made.model) == []
    with pytest.raises(FreezeError, match="PEFT adapter.*from_pretrained.*load_thawed.*merge_and_unload"):
        merge_trained(tmp_path / "run" / "checkpoint-2", tmp_path / "merged")
    model = PeftModel.from_pretrained(tiny_bert(layers=3), tmp_path / "run" / "checkpoint-2")
    load_thawed(model, tmp_path / "run" / "checkpoint-2")
    assert same(model.merge_and_unload(), copy.deepcopy(made.model).merge_and_unload()) == []


def test_a_folder_is_loaded_into_a_model_on_the_way_to_a_second_one(tmp_path, base) -> None:
    """Loading twice, from one folder and then another, ends at the second."""
    trained(tmp_path / "a", base, plan=HEAD, max_steps=1)
    second = trained(tmp_path / "b", base, plan=HEAD, max_steps=3)
    model = classifier(base, seed=9)
    load_trained(model, tmp_path / "a" / "checkpoint-1")
    load_trained(model, tmp_path / "b" / "checkpoint-3")
    assert same(model, second.model) == []
