"""Features belong to what the model was given: which rows are told apart, found again, and never taken for others."""

import os
import random
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from hf_freeze import FreezeTrainer, FreezeTrainingArguments, PlanError
from hf_freeze.features import cache
from hf_freeze.features.row_digests import digest_rows, keys_of, padded_in_front, read_as
from tests import models
from tests.features.runs import CASES, ROWS, Case, Pad, kept_sets, logged, pairs, run, texts
from tests.features.test_exactness import assert_same

BERT = CASES["bert"]


@pytest.fixture
def computed(monkeypatch):
    """Collects how many rows each extraction computes."""
    seen, extract = [], cache.extract

    def noting(*args, **kwargs):
        seen.append(sum(len(work.missing) for work in args[2]))
        return extract(*args, **kwargs)

    monkeypatch.setattr(cache, "extract", noting)
    return seen


# --- digests ----------------------------------------------------------------------------------------------------------


def keys(batch, *, with_labels=False):
    return keys_of(digest_rows(batch).numpy(), with_labels=with_labels).tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_has_one_digest_whatever_the_batch(side):
    rows = texts(12)
    together = keys(Pad(side)(rows))
    assert together == [keys(Pad(side)([row]))[0] for row in rows]
    assert len({tuple(key) for key in together}) == 12


CHANGES = {
    "an integer beyond float precision": lambda ids: ids[0].__setitem__(0, 2**60 + 1),
    "a token": lambda ids: ids[0].__setitem__(1, 9),
    "another order": lambda ids: ids.__setitem__(0, ids[0].flip(0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_differs_has_another_digest(change):
    ids = torch.tensor([[2**60, 6, 7], [5, 6, 7]])
    before = keys({"input_ids": ids.clone(), "attention_mask": torch.ones_like(ids)})
    CHANGES[change](ids)
    after = keys({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_inputs_do_not_run_into_each_other():
    one = {"a_input_ids": [[1, 1]], "a_attention_mask": [[1, 1]], "b_input_ids": [[1]], "b_attention_mask": [[1]]}
    other = {"a_input_ids": [[1]], "a_attention_mask": [[1]], "b_input_ids": [[1, 1]], "b_attention_mask": [[1, 1]]}
    assert keys({k: torch.tensor(v) for k, v in one.items()}) != keys({k: torch.tensor(v) for k, v in other.items()})


def test_inputs_that_are_digested_together_are_told_apart_and_have_no_order():
    one, other, mask = torch.tensor([[5, 6]]), torch.tensor([[7, 8]]), torch.tensor([[1, 1]])
    batch = {"input_ids": one, "token_type_ids": other, "attention_mask": mask}
    assert keys(batch) == keys(dict(reversed(batch.items())))
    assert keys(batch) != keys({**batch, "input_ids": other, "token_type_ids": one})
    assert keys(batch) != keys({"input_ids": one, "position_ids": other, "attention_mask": mask})


def test_a_mask_with_a_hole_or_with_padding_on_both_sides_is_no_other_mask():
    ids = torch.tensor([[5, 6, 7, 8]])
    masks = [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert len({tuple(keys({"input_ids": ids, "attention_mask": torch.tensor([mask])})[0]) for mask in masks}) == 7


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_any_type_and_any_shape_is_digested(dtype):
    values = torch.tensor([[[0.0], [1.0]], [[1.0], [1.0]], [[0.0], [1.0]]]).to(dtype)
    first, second, third = keys({"x": values, "flag": True, "names": ["a", "b", "a"]})
    assert first == third != second


def test_the_same_bytes_in_another_type_or_shape_are_another_row():
    zeros = np.zeros((2, 3), np.float32)
    values = [zeros, zeros.T, zeros.astype(np.int32), zeros.ravel()]
    assert len({tuple(keys({"x": torch.tensor(value)[None]})[0]) for value in values}) == 4
    first = torch.zeros(1)
    assert len({tuple(keys({"x": first, "pictures": [value]})[0]) for value in values}) == 4
    assert len({tuple(keys({"x": first, "picture": value})[0]) for value in values}) == 4


def test_nan_and_empty_rows_have_digests_of_their_own():
    assert keys({"x": torch.tensor([[torch.nan], [torch.nan]])})[0] == keys({"x": torch.tensor([[torch.nan]])})[0]
    mask = torch.tensor([[0, 0], [1, 1]])
    assert len({tuple(key) for key in keys({"input_ids": mask * 5, "attention_mask": mask})}) == 2
    assert keys({"x": torch.empty(2, 0)})


def test_a_row_that_is_masked_whole_is_the_same_in_a_wider_batch():
    def batch(width, filling):
        mask = torch.tensor([[0] * width, [1] * width])
        return {"input_ids": torch.tensor([[filling] * width, [5] * width]), "attention_mask": mask}

    assert keys(batch(2, 0))[0] == keys(batch(3, 0))[0] == keys(batch(3, 9))[0]


def test_an_input_that_is_as_long_as_the_mask_by_chance_keeps_all_its_values():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    one, other = ({"attention_mask": mask, "query": torch.tensor([[4, 5, last], [6, 7, 8]])} for last in (1, 2))
    other["query"][1] = 9
    assert keys(one)[0] != keys(other)[0]


def test_what_the_encoder_masks_is_no_padding_of_the_decoder():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    one, other = (
        {"attention_mask": mask, "decoder_input_ids": torch.tensor([[4, 5, last], [6, 7, 8]])} for last in (1, 2)
    )
    assert keys(one)[0] != keys(other)[0]


def test_a_mask_of_global_attention_tells_no_padding():
    ids, mask = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.ones(2, 3, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": torch.tensor([[0, 0, 1], [0, 0, 1]])}
    assert padded_in_front(digest_rows(batch).numpy()) == 0


def test_an_input_of_a_fixed_width_has_one_digest_also_where_a_batch_is_as_wide_by_chance():
    def batch(width):
        mask = torch.tensor([[1, 1, *[0] * (width - 2)], [1] * width])
        return {"attention_mask": mask, "query": torch.tensor([[4, 5, 0], [6, 7, 8]])}

    assert _key_of_first(batch(3), fixed_widths=True) == _key_of_first(batch(4), fixed_widths=True)
    assert _key_of_first(batch(3), fixed_widths=False) != _key_of_first(batch(4), fixed_widths=False)


def _key_of_first(batch, *, fixed_widths):
    return keys_of(read_as(digest_rows(batch).numpy(), fixed_widths=fixed_widths), with_labels=False)[0].tolist()


def test_labels_count_only_where_they_are_asked_for():
    ids = torch.tensor([[5, 6]])
    one, other = ({"input_ids": ids, "labels": torch.tensor([label])} for label in (0, 1))
    assert keys(one) == keys(other)
    assert keys(one, with_labels=True) != keys(other, with_labels=True)


# --- reuse ------------------------------------------------------------------------------------------------------------


def replaced(rows):
    return [{**rows[0], "input_ids": [9, 9, 9]}, *rows[1:]]


OTHER_ROWS = {
    "the same": (lambda rows: rows, 0),
    "shuffled": (lambda rows: rows[::-1], 0),
    "a subset": (lambda rows: rows[4:20], 0),
    "longer": (lambda rows: rows + texts(3, seed=77, least=15, most=17), 3),
    "one changed": (replaced, 1),
    "each twice": (lambda rows: rows + rows, 0),
    "other labels": (lambda rows: [{**row, "label": 1 - row["label"]} for row in rows], 0),
}


@pytest.mark.parametrize("what", OTHER_ROWS)
def test_only_rows_that_are_not_there_are_computed(tmp_path, computed, what):
    change, expected = OTHER_ROWS[what]
    given = {"trainable": "head", "eval_strategy": "no"}
    run(BERT, tmp_path / "one", cache=str(tmp_path / "kept"), **given)
    del computed[:]
    rows = change(texts(ROWS))
    found = run(BERT, tmp_path / "two", cache=str(tmp_path / "kept"), rows=rows, **given)
    assert sum(computed) == expected
    assert_same(run(BERT, tmp_path / "plain", cache=False, rows=rows, **given), found)


def test_where_the_frozen_part_reads_the_labels_other_labels_make_other_features(tmp_path, computed):
    case, rows = CASES["t5"], pairs(ROWS)
    given = {"trainable": case.probe, "eval_strategy": "no"}
    run(case, tmp_path / "one", cache=str(tmp_path / "kept"), rows=rows, **given)
    other = [{**rows[0], "labels": [7, *rows[0]["labels"][1:]]}, *rows[1:]]
    found = run(case, tmp_path / "two", cache=str(tmp_path / "kept"), rows=other, **given)
    assert computed == [ROWS, 1]
    assert_same(run(case, tmp_path / "plain", cache=False, rows=other, **given), found)


class ReadsFewLabels(nn.Module):
    """A frozen part that reads the label of a row only where its second token says so."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.out, self.how = nn.Embedding(64, 8), nn.Linear(8, 2), how

    def forward(self, input_ids, attention_mask, labels):
        read = torch.zeros_like(input_ids[:, :1])
        if self.how == "written":
            read[:, 0] = labels
        else:
            read = read + labels[:, None]
        says_so = (input_ids == 7).any(1, keepdim=True)
        hidden = self.body(input_ids + torch.where(says_so, read, 0)).mean(1)
        logits = self.out(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("how", ["written", "added"])
def test_that_the_frozen_part_reads_labels_is_known_also_where_few_rows_show_it(tmp_path, computed, how):
    rows = [{"input_ids": [5, 6, 8 + number % 40], "label": number % 2} for number in range(ROWS)]
    rows[17]["input_ids"] = rows[18]["input_ids"] = [5, 7, 9]  # their labels differ
    case, given = Case(lambda: ReadsFewLabels(how)), {"trainable": "out", "eval_strategy": "no", "rows": rows}
    found = run(case, tmp_path / "cached", **given)
    assert computed == [ROWS]
    assert_same(run(case, tmp_path / "plain", cache=False, **given), found)


class Bound:
    def __init__(self, token):
        self.token = token

    def collate(self, rows):
        batch = Pad()(rows)
        return batch | {"input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == 7, self.token)}

    __call__ = collate


COLLATORS = {
    "partial": lambda token: partial(lambda rows, token: Bound(token).collate(rows), token=token),
    "bound method": lambda token: Bound(token).collate,
    "attribute": Bound,
    "closure": lambda token: lambda rows: Bound(token).collate(rows),
    "side": lambda token: Pad("left" if token == 7 else "right"),
}


@pytest.mark.parametrize("how", COLLATORS)
def test_a_changed_collator_never_gets_the_features_of_another(tmp_path, how):
    case = CASES["llama"]
    for token in (7, 8):
        folder, other = str(tmp_path / "kept"), Case(case.build, collate=COLLATORS[how](token))
        found = run(other, tmp_path / f"{token}", trainable="head", cache=folder)
        assert_same(run(other, tmp_path / f"plain{token}", trainable="head", cache=False), found)


def test_a_changed_transform_never_gets_the_features_of_another(tmp_path):
    for token in (7, 8):
        rows = Dataset.from_list(texts(ROWS))
        rows.set_transform(
            lambda batch, token=token: {
                **batch,
                "input_ids": [[token if value == 7 else value for value in ids] for ids in batch["input_ids"]],
            }
        )
        given = {"trainable": "head", "rows": rows, "remove_unused_columns": False}
        found = run(BERT, tmp_path / f"{token}", cache=str(tmp_path / "kept"), **given)
        assert_same(run(BERT, tmp_path / f"plain{token}", cache=False, **given), found)


# --- rows that change -------------------------------------------------------------------------------------------------


class Augmented(torch.utils.data.Dataset):
    """Rows of which one changes by chance, with a generator of its own."""

    def __init__(self, chance, *, from_reading=0):
        self.rows, self.chance, self.readings = texts(ROWS), chance, -from_reading
        self.random = random.Random(0)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.readings += 1
        changes = self.readings > 0 and self.random.random() < self.chance
        return {**self.rows[index], **({"input_ids": [5 + self.random.randrange(50), 6]} if changes else {})}


@pytest.mark.parametrize("chance", [0.03, 1.0])
def test_of_rows_that_change_now_and_then_nothing_is_kept_and_the_run_is_as_without(tmp_path, caplog, chance):
    given = {"trainable": "head", "eval_strategy": "no"}
    cached = run(BERT, tmp_path / "cached", rows=Augmented(chance), **given)
    assert "rows change from one reading to the next" in caplog.text
    # All rows are read several times before anything is computed; the few that are looked at first change seldom.
    assert chance == 1 or re.search(rf"\([1-9]\d* of {ROWS} did\)", caplog.text)
    assert not list(Path(tmp_path).rglob("*.arrow"))
    assert logged(cached) == logged(run(BERT, tmp_path / "plain", rows=Augmented(chance), cache=False, **given))


def test_where_a_row_changes_before_it_is_computed_nothing_is_stored(tmp_path, caplog, monkeypatch):
    rows, extract = Augmented(0.0), cache.extract

    def changing(*args, **kwargs):
        before, rows.rows[5] = rows.rows[5], {**rows.rows[5], "input_ids": [9, 9, 9]}
        try:
            return extract(*args, **kwargs)
        finally:
            rows.rows[5] = before

    monkeypatch.setattr(cache, "extract", changing)
    given = {"trainable": "head", "eval_strategy": "no"}
    cached = run(BERT, tmp_path / "cached", rows=rows, **given)
    assert "rows change from one reading to the next" in caplog.text
    assert not list(Path(tmp_path).rglob("*.arrow"))
    assert_same(run(BERT, tmp_path / "plain", rows=rows, cache=False, **given), cached)


def test_a_row_that_changes_later_goes_through_the_model_and_is_counted_once_in_the_log(tmp_path, caplog):
    class Later(Pad):
        def __call__(self, rows):
            batch = super().__call__(rows)
            if torch.is_grad_enabled() and model.training and changed:
                batch["input_ids"][0, 0] = 9
            return batch

    model, changed = models.tiny_bert(layers=4, hidden_dropout_prob=0.0), []

    class Trainer(FreezeTrainer):
        def training_step(self, *args, **kwargs):
            changed.append(1)
            return super().training_step(*args, **kwargs)

    given = {"trainable": "head", "eval_strategy": "no", "trainer": Trainer, "num_train_epochs": 4}
    cached = run(Case(lambda: model, collate=Later()), tmp_path / "cached", **given)
    assert caplog.text.count("Rows of the training set change from one reading to the next: 1 of 8") == 1
    assert "rows that change were in" in caplog.text
    model = models.tiny_bert(layers=4, hidden_dropout_prob=0.0)
    changed.clear()
    assert_same(run(Case(lambda: model, collate=Later()), tmp_path / "plain", cache=False, **given), cached)


def test_where_padding_comes_to_be_in_front_rows_go_through_the_model(tmp_path, caplog):
    sides = []

    class Trainer(FreezeTrainer):
        def training_step(self, *args, **kwargs):
            sides.append("left" if len(sides) >= 6 else "right")
            return super().training_step(*args, **kwargs)

    def padded(rows):
        return Pad(sides[-1] if sides and torch.is_grad_enabled() else "right")(rows)

    given = {"trainable": "head", "eval_strategy": "no", "trainer": Trainer, "num_train_epochs": 4}
    cached = run(Case(BERT.build, collate=padded), tmp_path / "cached", **given)
    assert caplog.text.count("Rows of the training set change from one reading to the next") == 1
    sides.clear()
    assert_same(run(Case(BERT.build, collate=padded), tmp_path / "plain", cache=False, **given), cached)


# --- models that write into what they get, and rows that depend on their neighbours ------------------------------------


class Head(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.body = models.tiny_bert(layers=2, hidden_dropout_prob=0.0).bert
        self.write = write
        self.out = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.write(self.body(input_ids, attention_mask=attention_mask).pooler_output)
        logits = self.out(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def zeroed(hidden):
    hidden[:, 0] = 0
    return hidden


WRITES = {
    "relu": nn.ReLU(inplace=True),
    "dropout": nn.Dropout(0.5, inplace=True),
    "add": lambda x: x.add_(1),
    "set": zeroed,
}


@pytest.mark.parametrize("write", WRITES)
def test_a_head_may_write_into_the_features(tmp_path, write):
    def build():
        torch.manual_seed(0)
        return Head(WRITES[write])

    plain = run(Case(build), tmp_path / "plain", trainable="out", cache=False)
    with kept_sets() as kept:
        cached = run(Case(build), tmp_path / "cached", trainable="out")
    assert kept == [["training", "evaluation"]]
    assert_same(plain, cached)


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, hidden):
        return hidden * self.weight - hidden.mean(0)


def test_a_row_that_depends_on_its_neighbours_is_refused(tmp_path, caplog):
    def build():
        torch.manual_seed(0)
        return Head(Centred())

    with kept_sets() as kept:
        run(Case(build), tmp_path, trainable="out")
    assert kept == [[]]
    assert "depends on the other rows of its batch" in caplog.text


# --- nothing that is looked for ends a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, AttributeError])
def test_the_cut_is_looked_for_with_the_rows_of_a_batch_and_may_fail(tmp_path, caplog, error):
    rows = []

    class Fits(Head):
        def forward(self, input_ids, attention_mask=None, labels=None):
            rows.append(len(input_ids))
            if len(rows) == 1:
                raise error("no")
            return super().forward(input_ids, attention_mask, labels)

    model = Fits(nn.Identity())
    run(Case(lambda: model), tmp_path, trainable="out", eval_strategy="no", per_device_train_batch_size=2)
    assert max(rows) == 2
    assert ("memory ran out" if error is torch.OutOfMemoryError else "failed (AttributeError") in caplog.text


def test_nothing_that_is_tried_takes_more_rows_than_a_batch_of_the_run(tmp_path):
    rows = []

    class Counts(Head):
        def forward(self, input_ids, attention_mask=None, labels=None):
            rows.append(len(input_ids))
            return super().forward(input_ids, attention_mask, labels)

    model = Counts(nn.Identity())
    with kept_sets() as kept:
        run(Case(lambda: model), tmp_path, trainable="out", eval_strategy="no", per_device_train_batch_size=2)
    assert kept == [["training"]]
    assert max(rows) == 2


@pytest.mark.parametrize("limit", [0, -1, float("nan"), True])
def test_a_limit_that_is_none_is_refused_at_construction(tmp_path, limit):
    with pytest.raises(PlanError, match="cache_frozen_max_gb=.* is not a number of GB above 0"):
        FreezeTrainingArguments(str(tmp_path), cache_frozen_max_gb=limit)


def test_rows_that_are_tuples_have_features(tmp_path):
    rows = [(row["input_ids"], row["label"]) for row in texts(ROWS)]
    case = Case(BERT.build, collate=lambda rows: Pad()([{"input_ids": ids, "label": label} for ids, label in rows]))
    given = {"trainable": "head", "eval_strategy": "no", "rows": rows, "remove_unused_columns": False}
    with kept_sets() as kept:
        cached = run(case, tmp_path / "cached", **given)
    assert kept == [["training"]]
    assert_same(run(case, tmp_path / "plain", cache=False, **given), cached)


@pytest.mark.parametrize("damage", ["letter", "note gone", "arrow gone", "foreign", "cut off", "nested", "pipe"])
def test_a_damaged_file_is_computed_again(tmp_path, computed, damage):
    folder, given = tmp_path / "kept", {"trainable": "head", "eval_strategy": "no"}
    plain = run(BERT, tmp_path / "one", cache=str(folder), **given)
    note = next(folder.glob("*/part-00000.json"))
    if damage == "letter":
        note.write_text(note.read_text().replace("float32", "floit32"))
    elif damage == "foreign":
        note.write_text('["of another version"]')
    elif damage == "cut off":
        note.write_text(note.read_text()[:40])
    elif damage == "nested":
        note.write_text("[" * 100_000)
    elif damage == "pipe":  # opening it would wait for somebody who writes
        note.unlink()
        os.mkfifo(note)
    else:
        (note if damage == "note gone" else note.with_suffix(".arrow")).unlink()
    again = run(BERT, tmp_path / "two", cache=str(folder), **given)
    assert computed == [ROWS, ROWS]
    assert logged(plain) == logged(again)


def test_digests_of_a_large_store_are_found_and_others_are_not():
    from hf_freeze.features.store import Features

    held = np.random.default_rng(0).integers(-(2**62), 2**62, (10_000, 2))
    features = Features(held, [])
    assert features.places(held[[5, 77]]).tolist() == [5, 77]
    assert features.places(held[[5, 77]] + [[0, 0], [0, 1]]) is None
