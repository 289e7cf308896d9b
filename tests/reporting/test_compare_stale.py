"""A run is found again by the next process, and is another run once anything is changed that it depends on."""

import os
import random
import subprocess
import sys
from functools import partial

import pytest
import torch
from datasets import Dataset
from torch import nn

from hf_freeze.reporting.comparison.described import describe, describe_model
from hf_freeze.reporting.comparison.runs import digest
from tests.models import text_rows, tiny_bert, tiny_llama
from tests.reporting import compared
from tests.reporting.compared import Augmented, Weighted, resumable, tiny_comparison


def transformed(shift):
    rows = Dataset.from_list(text_rows(48))

    def shifted(batch):
        return {**batch, "input_ids": [[(token + shift) % 64 for token in tokens] for tokens in batch["input_ids"]]}

    rows.set_transform(shifted)
    return rows


def collate(rows, *, masked=0.0):
    ids = torch.tensor([row["input_ids"] for row in rows])
    if torch.is_grad_enabled() and masked:
        ids = ids.clone()
    return {"input_ids": ids, "labels": torch.tensor([row["labels"] for row in rows])}


class OtherLoss(Weighted):
    def forward(self, input_ids, attention_mask=None, labels=None):
        found = super().forward(input_ids, attention_mask, labels)
        return {**found, "loss": found["loss"] * 2}


OtherLoss.__name__ = OtherLoss.__qualname__ = "Weighted"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        [{"model_init": partial(tiny_llama, attention_dropout=p)} for p in (0.0, 0.9)],
        [{"model_init": partial(Weighted, weight)} for weight in (1.0, 20.0)],
        [{"model_init": kind} for kind in (Weighted, OtherLoss)],
        [{"train_dataset": transformed(shift)} for shift in (0, 1)],
        [{"data_collator": partial(collate, masked=share)} for share in (0.0, 0.5)],
        [{"train_dataset": Augmented(text_rows(48, seed=seed))} for seed in (0, 1)],
    ],
    ids=["configuration", "attribute", "forward", "transform", "collator", "augmented rows"],
)
def test_a_change_of_model_or_data_makes_another_run(tmp_path, trained, before, after):
    plans = {"plan": "full"}
    for given in (before, after, before, after):
        tiny_comparison(plans, tmp_path, **given)
    assert len(trained) == 2
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_global_that_the_loss_reads_belongs_to_the_model(monkeypatch):
    before = digest(describe_model(Weighted()))
    assert digest(describe_model(Weighted())) == before
    monkeypatch.setattr(compared, "SCALE", 2.0)
    assert digest(describe_model(Weighted())) != before


def test_where_a_model_was_loaded_from_does_not_belong_to_it():
    here, there = tiny_bert(), tiny_bert()
    there.config._name_or_path = there.name_or_path = "/somewhere/else"
    assert describe_model(here) == describe_model(there)


def test_functions_are_told_apart_by_code_defaults_and_what_they_enclose():
    def by(number):
        return lambda value: value * number

    same = [digest(describe(by(2))) for _ in range(2)]
    assert same[0] == same[1]
    other = [by(3), lambda value, number=2: value * number, lambda value, number=3: value * number]
    assert len({same[0], *(digest(describe(function)) for function in other)}) == 4
    assert describe(nn.Linear) == describe(nn.Linear)
    assert describe(nn.functional.relu)[:6] == "torch "


@pytest.mark.slow
def test_another_process_finds_the_runs_of_this_one(tmp_path, trained):
    code = f"from tests.reporting.compared import resumable; resumable({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    random.seed(11)
    resumable(tmp_path)
    assert trained == []


class Restless(Augmented):
    def __init__(self, rows):
        super().__init__(rows)
        self.draws = 0

    def __getitem__(self, number):
        self.draws += 1
        return {**self.rows[number], "input_ids": [self.draws % 60, *self.rows[number]["input_ids"][1:]]}


def test_rows_that_no_seed_repeats_do_not_make_another_run_of_each_call(tmp_path, trained, caplog):
    rows = Restless(text_rows(48))
    for _ in range(2):
        tiny_comparison({"plan": "full"}, tmp_path, train_dataset=rows)
    assert len(trained) == 1
    assert "The train rows differ each time" in caplog.text


def test_names_that_differ_only_in_what_a_file_name_cannot_hold_are_different_runs(tmp_path, trained):
    names = ["lr 1", "lr_1", "a/b", "a_b"]
    for _ in range(2):
        found = tiny_comparison(dict.fromkeys(names, "full"), tmp_path)
        assert [one.name for one in found.runs] == names
    assert trained == names
    tiny_comparison({"lr_1": "linear-probe"}, tmp_path)
    assert len(trained) == 5
