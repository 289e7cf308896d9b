"""Checkpoints of what trained hold the rows that trained, and the base holds the others."""

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from hf_freeze import FreezeError, FreezePlan, Stage, load_trained, merge_trained
from tests.models import tiny_bert
from tests.training.runs import freeze_trainer, weights

WORDS = "bert.embeddings.word_embeddings.weight"
ROWS = [{"input_ids": [61 + i % 3, 5 + i % 7, 6, 7 + i % 9], "labels": i % 2} for i in range(16)]
ADDED = [{**row, "input_ids": [64 + i % 3, *row["input_ids"][1:]]} for i, row in enumerate(ROWS)]
VALUES = {"save_trained_only": True, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture
def base(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(base, *, tokens: int | None = None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base)
        if tokens:
            model.resize_token_embeddings(tokens, mean_resizing=False)
    return model


def trained(base, folder, *, tokens=None, rows=ROWS, resume=None, **values):
    values = {**VALUES, "trainable": ["head", "embeddings[-3:]"], **values}
    trainer = freeze_trainer(loaded(base, tokens=tokens), folder, rows=rows, **values)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, folder / "run" / "checkpoint-4"


def shapes(folder) -> dict:
    with safe_open(folder / "trained.safetensors", framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping


def same(one, other) -> bool:
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_only_the_rows_are_written_and_load_trained_puts_them_back(tmp_path, base):
    trainer, folder = trained(base, tmp_path)
    assert shapes(folder) == {f"{WORDS}[61:64]": [3, 16], "classifier.weight": [2, 16], "classifier.bias": [2]}
    model = loaded(base)
    assert set(load_trained(model, folder)) == shapes(folder).keys()
    assert same(model, trainer.model)
    merge_trained(folder, tmp_path / "whole")
    assert same(loaded(tmp_path / "whole"), trainer.model)


def test_rows_of_added_tokens_are_put_back_into_a_base_without_them(tmp_path, base):
    """The matrix is longer than in the base: the old rows are the base's, and one that never trained is saved too."""
    entries = ["head", "embeddings[64:67]"]
    trainer, folder = trained(base, tmp_path, tokens=68, rows=ADDED, trainable=entries)
    held = shapes(folder)
    assert held[f"{WORDS}[64:67]"] == [3, 16]
    assert held[f"{WORDS}[67:68]"] == [1, 16]
    assert not any("[0:64]" in name for name in held)
    model = loaded(base, tokens=68)
    load_trained(model, folder)
    assert same(model, trainer.model)
    merge_trained(folder, tmp_path / "whole")
    assert same(loaded(tmp_path / "whole"), trainer.model)
    with pytest.raises(FreezeError, match=r"has 68 rows; here it has 64. .*resize_token_embeddings\(68\)"):
        load_trained(loaded(base), folder)


def test_another_base_is_refused_by_its_frozen_rows(tmp_path, base):
    _, folder = trained(base, tmp_path)
    other = loaded(base)
    with torch.no_grad():
        other.get_parameter(WORDS)[5, 3] += 1
    before = weights(other)
    with pytest.raises(FreezeError, match=r"word_embeddings.weight\[0:61\]' of this model differs"):
        load_trained(other, folder)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in before.items())


def test_a_run_over_rows_resumes_bit_equal_from_what_trained(tmp_path, base):
    whole, _ = trained(base, tmp_path / "a")
    resumed, _ = trained(base, tmp_path / "b", resume=str(tmp_path / "a" / "run" / "checkpoint-2"))
    assert same(resumed.model, whole.model)


def test_the_best_model_comes_back_with_its_rows(tmp_path, base):
    values = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.5}
    trainer, _ = trained(base, tmp_path, eval_dataset=ROWS, metric_for_best_model="loss", **values)
    model = loaded(base)
    load_trained(model, trainer.state.best_model_checkpoint)
    assert same(model, trainer.model)


def test_rows_that_thaw_later_are_in_the_checkpoints_from_then_on(tmp_path, base):
    plan = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="embeddings[-3:]")])
    trained(base, tmp_path, trainable=None, freeze_plan=plan)
    assert [f"{WORDS}[61:64]" in shapes(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 4)] == [False, True]
