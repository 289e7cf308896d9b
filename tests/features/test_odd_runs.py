"""Odd loaders, odd batches, odd models: with the cache a run ends where one without does, on features or refused."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from hf_freeze import FreezeTrainer
from tests import models
from tests.features.runs import CASES, Case, Pad, images, kept_sets, run, texts
from tests.features.test_exactness import assert_same
from tests.features.test_rows import Head

BOTH, TRAINING, NONE = ["training", "evaluation"], ["training"], []


@dataclass(frozen=True)
class Odd:
    """What is odd about a run, and the sets whose features are kept."""

    kept: list[str] = field(default_factory=lambda: BOTH)
    case: Case = CASES["bert"]
    given: dict = field(default_factory=dict)
    rows: object = None
    held_out: object = None
    trainable: object = "head"


def bert(**config):
    return models.tiny_bert(layers=4, hidden_dropout_prob=0.0, **config)


@dataclass(frozen=True)
class Added:
    """Pad, then add to the batch, or change it."""

    change: object
    side: str = "right"

    def __call__(self, rows):
        return self.change(Pad(self.side)(rows), rows)


class Weighted(nn.Module):
    """A frozen body, and a head that reads another input per row as well."""

    def __init__(self):
        super().__init__()
        self.body = models.tiny_bert(layers=2, hidden_dropout_prob=0.0).bert
        torch.manual_seed(1)
        self.out = nn.Linear(17, 2)

    def forward(
        self, input_ids, attention_mask=None, labels=None, weight=None, names=None, big=None, query=None, tags=None
    ):
        hidden = self.body(input_ids, attention_mask=attention_mask).pooler_output
        weight = torch.zeros(len(hidden)) if weight is None else torch.nan_to_num(weight.float())
        for more in (query, tags):
            weight = weight if more is None else weight + more.float().mean(1) / 20
        if big is not None:
            weight = weight + big % 7
        logits = self.out(torch.cat([hidden, weight[:, None]], dim=1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def weighted(change, side="right"):
    def build():
        torch.manual_seed(0)
        return Weighted()

    return Case(build, collate=Added(change, side))


def entry(name, values):
    return weighted(lambda batch, rows: batch | {name: values(batch, rows)})


class OwnLoader(FreezeTrainer):
    def get_train_dataloader(self):
        rows = self.train_dataset
        return DataLoader(rows, batch_size=5, sampler=SequentialSampler(rows), collate_fn=Pad())


class DrawingLoader(FreezeTrainer):
    """A loader that draws from the global random state when it is made."""

    def get_train_dataloader(self):
        order = torch.randperm(len(self.train_dataset)).tolist()
        return DataLoader(self.train_dataset, batch_size=5, sampler=order, collate_fn=Pad())


class ReadsByAttribute(FreezeTrainer):
    """A loss that reads a batch as what the collator made of it."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        assert inputs.input_ids.shape == inputs.attention_mask.shape
        return super().compute_loss(model, inputs, *args, **kwargs)


class LoaderFailsFirst(FreezeTrainer):
    """An evaluation that is not ready when training begins."""

    calls = 0

    def get_eval_dataloader(self, eval_dataset=None):
        self.calls += 1
        if self.args.output_dir.endswith("cached") and self.calls == 1:
            raise OSError("not there yet")
        return super().get_eval_dataloader(eval_dataset)


class Closed(dict):
    """A batch that takes no other key."""

    def __setitem__(self, name, value):
        raise TypeError("closed")


class OwnPlainBatches(FreezeTrainer):
    """A list of the user's own batches instead of a loader."""

    def get_train_dataloader(self):
        return [Pad()(self.train_dataset[start : start + 6]) for start in range(0, 24, 6)]


class OtherForEvaluation(FreezeTrainer):
    def get_eval_dataloader(self, eval_dataset=None):
        training, self.data_collator = self.data_collator, Added(lambda batch, rows: batch, "left")
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training


class InFrozen(nn.Module):
    """Frozen layers that write into what they get."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(inplace=True), nn.Linear(16, 16))
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(16, 2)

    def forward(self, pixel_values, labels=None):
        logits = self.out(self.relu(self.body(pixel_values)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class BetweenFrozen(nn.Module):
    """Two frozen layers, and a write into what the first returns before the second reads it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(48, 16), nn.Linear(16, 16)
        self.out = nn.Linear(32, 2)

    def forward(self, pixel_values, labels=None):
        one = self.one(pixel_values.flatten(1))
        one += 1
        logits = self.out(torch.cat([one, self.two(one)], dim=1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def zero_first(hidden):
    hidden[:, 0] = 0
    return hidden


def zeroing():
    torch.manual_seed(0)
    return Head(zero_first)


def masked_at_random(rows):
    batch = Pad()(rows)
    ids = batch["input_ids"]
    hidden = (torch.rand(ids.shape) < 0.3) & (ids != 0)
    return {
        "input_ids": ids.masked_fill(hidden, 4),
        "attention_mask": batch["attention_mask"],
        "labels": ids.masked_fill(~hidden, -100),
    }


def tiny_mlm():
    return hf.BertForMaskedLM(hf.BertConfig(**models.SIZES, num_hidden_layers=2, hidden_dropout_prob=0.0))


def mobile(build, config):
    def built():
        torch.manual_seed(0)
        return build(config(num_labels=2, image_size=32, depth_multiplier=0.25))

    return Case(built, rows=partial(images, size=32), collate=hf.default_data_collator)


def seeded_mlm():
    torch.manual_seed(0)
    return tiny_mlm()


LONG = [*texts(64, most=6), *texts(6, seed=5, least=15, most=17)]
SHIFTED = [LONG[index * 13 % 70] for index in range(70)]
LONGEST = max(len(row["input_ids"]) for row in texts())
EVALUATIONS = {"easy": texts(11, seed=1), "hard": texts(9, seed=2, least=10)}


def popped(rows):
    """A collator that takes the labels out of the rows: a second reading finds none."""
    labels = [row.pop("label") for row in rows]
    return Pad()([{**row, "label": label} for row, label in zip(rows, labels, strict=True)])


def counted_down(rows):
    """A collator that writes into the rows: each reading finds other numbers."""
    for row in rows:
        row["input_ids"][:] = [number - 1 if number > 6 else number for number in row["input_ids"]]
    return Pad()(rows)


class Remembers(Head):
    """A head that reads what it keeps of earlier batches: a tensor, one that it writes into, and a list."""

    def __init__(self):
        super().__init__(self.moved)
        self.last, self.sum, self.sizes = None, torch.zeros(16), []

    def moved(self, hidden):
        shift = self.sum / 50 + len(self.sizes) / 10 + (0 if self.last is None else self.last)
        self.last = hidden.detach().mean(0)
        self.sum += self.last
        self.sizes.append(len(hidden))
        return hidden + shift


def remembering():
    torch.manual_seed(0)
    return Remembers()


ODD = {
    "a collator that makes two rows of one": Odd(NONE, Case(bert, collate=lambda rows: Pad()(rows + rows))),
    "a collator that takes entries out of the rows": Odd(
        NONE,  # those of the first batches are gone by then
        Case(bert, collate=popped),
        given={"num_train_epochs": 1, "eval_strategy": "no", "remove_unused_columns": False},
    ),
    "a head that remembers": Odd(case=Case(remembering), trainable="out"),
    "drop_last": Odd(given={"dataloader_drop_last": True}),
    "workers": Odd(given={"dataloader_num_workers": 2, "num_train_epochs": 2}),
    "batches of one": Odd(NONE, given={"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}),
    "a last batch of one": Odd(given={"per_device_train_batch_size": 5, "per_device_eval_batch_size": 5}),
    "duplicates": Odd(rows=texts() + texts()[:9]),
    "all rows the same": Odd(rows=texts(1) * 20),
    "rows longer than any that were looked at": Odd(rows=SHIFTED, given={"num_train_epochs": 1}),
    "left padding, by which BERT's positions move": Odd(NONE, case=Case(bert, collate=Pad("left"))),
    "left padding": Odd(case=CASES["llama-left"]),
    "evaluation with another collator": Odd(case=CASES["llama"], given={"trainer": OtherForEvaluation}),
    "evaluation with one that is refused": Odd(TRAINING, given={"trainer": OtherForEvaluation}),
    "several evaluation sets": Odd(["training", "evaluation easy", "evaluation hard"], held_out=EVALUATIONS),
    "a training loader of the user's own": Odd(given={"trainer": OwnLoader}),
    "a training loader that draws": Odd(given={"trainer": DrawingLoader}),
    "random masking": Odd(
        NONE, Case(seeded_mlm, collate=masked_at_random, metrics=False), trainable="cls", given={"num_train_epochs": 2}
    ),
    "names that are no tensors": Odd(case=entry("names", lambda _, rows: [str(row["label"]) for row in rows])),
    "weights that are not a number": Odd(
        case=entry("weight", lambda _, rows: torch.tensor([torch.nan if row["label"] else 2.0 for row in rows]))
    ),
    "a number per row": Odd(
        case=entry("weight", lambda _, rows: torch.tensor([len(row["input_ids"]) for row in rows]))
    ),
    "an input as wide as some batches": Odd(
        case=entry(
            "query", lambda _, rows: torch.tensor([[len(row["input_ids"]), *[0] * (LONGEST - 1)] for row in rows])
        )
    ),
    "an input that is padded with the rest": Odd(case=entry("tags", lambda batch, _: batch["input_ids"] % 5)),
    "a mask of bool": Odd(case=weighted(lambda batch, _: batch | {"attention_mask": batch["attention_mask"].bool()})),
    "an integer beyond 2**53": Odd(
        case=entry("big", lambda _, rows: torch.tensor([2**53 + len(row["input_ids"]) for row in rows]))
    ),
    "one number for the batch": Odd(
        case=entry("weight", lambda batch, _: torch.tensor([2.0]).expand(len(batch["labels"])))
    ),
    "MobileNetV1": Odd(case=mobile(hf.MobileNetV1ForImageClassification, hf.MobileNetV1Config)),
    "MobileNetV2": Odd(case=mobile(hf.MobileNetV2ForImageClassification, hf.MobileNetV2Config)),
    "a head that sets a column": Odd(case=Case(zeroing), trainable="out"),
    "in place in the frozen part": Odd(
        case=Case(InFrozen, rows=partial(images, size=4), collate=hf.default_data_collator), trainable="out"
    ),
    "batches read by attribute": Odd(
        NONE, Case(bert, collate=lambda rows: hf.BatchEncoding(Pad()(rows))), given={"trainer": ReadsByAttribute}
    ),
    "batches that take no other key": Odd(NONE, Case(bert, collate=lambda rows: Closed(Pad()(rows)))),
    "a loader that fails at first": Odd(TRAINING, given={"trainer": LoaderFailsFirst}),
    "in place between two frozen parts": Odd(
        case=Case(BetweenFrozen, rows=partial(images, size=4), collate=hf.default_data_collator), trainable="out"
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_run_ends_where_one_without_features_does(tmp_path, caplog, what):
    odd = ODD[what]
    given = {"trainable": odd.trainable, "rows": odd.rows, "held_out": odd.held_out, **odd.given}
    plain = run(odd.case, tmp_path / "plain", cache=False, **given)
    with kept_sets() as kept:
        cached = run(odd.case, tmp_path / "cached", **given)
    assert kept == [odd.kept]
    assert "are not those that were cached" not in caplog.text
    assert_same(plain, cached)


def test_where_a_collator_leaves_rows_out_the_reason_is_said(tmp_path, caplog):
    case = Case(bert, collate=lambda rows: Pad()([row for row in rows if row["input_ids"][-1] != 7]))
    rows = [{**row, "input_ids": [*row["input_ids"], 5 + number % 9]} for number, row in enumerate(texts())]
    plain = run(case, tmp_path / "plain", trainable="head", rows=rows, cache=False)
    assert_same(plain, run(case, tmp_path / "cached", trainable="head", rows=rows))
    assert "training set: its collator makes 23 rows out of 26" in caplog.text


def test_a_collator_that_writes_into_the_rows_finds_them_as_in_a_run_without(tmp_path):
    case = Case(bert, collate=counted_down)
    plain = run(case, tmp_path / "plain", trainable="head", cache=False)
    assert_same(plain, run(case, tmp_path / "cached", trainable="head"))


def multiple_of(number):
    def widened(batch, _):
        width = -batch["input_ids"].shape[1] % number
        padded = {name: nn.functional.pad(batch[name], (0, width)) for name in ("input_ids", "attention_mask")}
        return batch | padded

    return Case(bert, collate=Added(widened))


def cut_to(length):
    return Case(bert, collate=lambda rows: Pad()([{**row, "input_ids": row["input_ids"][:length]} for row in rows]))


CHANGED = {
    "padded to a multiple": (multiple_of(1), multiple_of(8)),
    "padded to another multiple": (multiple_of(8), multiple_of(16)),
    "truncated": (cut_to(20), cut_to(5)),
    "truncated less": (cut_to(5), cut_to(20)),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_preparation_that_changed_between_runs_changes_nothing_but_what_is_computed(tmp_path, what):
    for number, case in enumerate(CHANGED[what]):
        plain = run(case, tmp_path / f"plain{number}", trainable="head", cache=False)
        with kept_sets() as kept:
            cached = run(case, tmp_path / f"cached{number}", trainable="head", cache=str(tmp_path / "kept"))
        assert kept == [BOTH]
        assert_same(plain, cached)


@pytest.mark.parametrize("rows", ["as they were", "changed meanwhile"])
def test_a_run_resumed_in_mid_epoch_ends_where_the_uninterrupted_one_does(tmp_path, rows):
    given = {
        "trainable": "head",
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "no",
        "num_train_epochs": 2,
    }
    later = texts() if rows == "as they were" else [{**row, "input_ids": row["input_ids"][:4]} for row in texts()]
    case = Case(bert)
    run(case, tmp_path / "cached", **given)
    ends = []
    for cache in (False, str(tmp_path / "cached" / "_frozen_features")):
        trainer = run(case, tmp_path / f"{bool(cache)}", cache=cache, rows=later, max_steps=1, **given)
        trainer.args.max_steps = -1
        trainer.train(resume_from_checkpoint=str(tmp_path / "cached" / "checkpoint-2"))
        ends.append(trainer)
    assert_same(*ends)


def test_batches_that_are_a_list_of_the_users_own_train_without(tmp_path):
    given = {"trainable": "head", "eval_strategy": "no", "trainer": OwnPlainBatches, "max_steps": 8}
    plain = run(Case(bert), tmp_path / "plain", cache=False, **given)
    with kept_sets() as kept:
        cached = run(Case(bert), tmp_path / "cached", **given)
    assert kept == [NONE]
    assert_same(plain, cached)


def test_an_attention_mask_may_hold_weights(tmp_path):
    """A mask of 2 and 1 hides nothing, and yet is not one of ones."""

    def twos(batch, _):
        return batch | {"attention_mask": batch["attention_mask"] * 2}

    for change in (lambda batch, _: batch, twos):
        case = Case(bert, collate=Added(change))
        plain = run(case, tmp_path / "plain", trainable="head", cache=False)
        assert_same(plain, run(case, tmp_path / "cached", trainable="head", cache=str(tmp_path / "kept")))


def test_numbers_of_numpy_in_rows_are_digested(tmp_path):
    rows = [{**row, "label": np.int64(row["label"])} for row in texts()]
    with kept_sets() as kept:
        run(Case(bert), tmp_path, trainable="head", rows=rows)
    assert kept == [BOTH]
