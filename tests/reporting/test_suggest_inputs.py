"""suggest_layers refuses what cannot be probed, before the pass over the rows and with the reason."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset
from transformers import BertTokenizerFast

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.reporting.layers.class_labels import Classes
from hf_freeze.reporting.layers.suggest_layers import suggest_layers
from tests import models
from tests.features.runs import Pad, texts
from tests.models import text_rows

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "day"]


def labelled(label, *, column="labels", count=24, **row):
    return [{"input_ids": [5 + index % 3, 6, 7, 8], column: label(index), **row} for index in range(count)]


def suggested(rows, *, model=None, folds=2, **given):
    return suggest_layers(model or models.tiny_bert(), rows, show_progress=False, folds=folds, **given)


def refused(rows, match, *, error=FreezeError, most=0, **given):
    """The rows are refused after at most `most` calls of the model."""
    model, calls = given.pop("model", None) or models.tiny_bert(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=match):
        suggested(rows, model=model, **given)
    assert len(calls) <= most


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizerFast(str(tmp_path / "vocab.txt"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"folds": 1}, "folds=1 is not a whole number of at least 2"),
        ({"folds": 2.5}, "folds=2.5"),
        ({"folds": True}, "folds=True"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"seed": "x"}, "seed='x'"),
        ({"scoring": "acuracy"}, r"scoring='acuracy'.*Nearest: \['accuracy'"),
    ],
)
def test_arguments_out_of_range_are_named(given, match):
    refused(text_rows(24), match, **given)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows"),
        (Dataset.from_list(text_rows(4)).select([]), "no rows"),
        ({"train": text_rows(4)}, r"a dict of \['train'\]"),
        (DatasetDict(train=Dataset.from_list(text_rows(4))), r"a dict of \['train'\]. Give one of its sets"),
        (["a", "b"] * 20, "a str. Give rows as dicts"),
        ("rows", "no rows by number"),
        (None, "dataset=None"),
        (IterableDataset.from_generator(lambda: iter(text_rows(4))), "iterable"),
        ([{"text": "a good day", "label": index % 2} for index in range(20)], "no tokenizer was found.*tokenizer="),
        ([{"pixels": [1.0], "label": index % 2} for index in range(20)], "its forward needs input_ids"),
        (labelled(lambda index: 0), "24 of class 0"),
        (labelled(lambda index: index % 2, count=2), "1 of class 0, 1 of class 1"),
        (labelled(lambda index: "ab"[index == 3]), "23 of class a, 1 of class b"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_probed_are_refused_before_the_pass(rows, match):
    refused(rows, match)


def test_a_model_by_its_name_is_refused():
    with pytest.raises(FreezeError, match="model='bert' is a str"):
        suggest_layers("bert", text_rows(4))


def test_rows_of_unequal_length_ask_for_a_tokenizer():
    refused(texts(24), "'input_ids' has 2 to 14 values in a row. Give tokenizer=")


def test_a_tokenizer_without_a_pad_token_is_named(tokenizer):
    tokenizer.pad_token = None
    refused(texts(24), "Give the tokenizer a pad_token", tokenizer=tokenizer)


def test_texts_are_read_with_the_tokenizer(tokenizer):
    words = [{"text": f"{'good' if index % 2 else 'bad'} day", "label": index % 2} for index in range(24)]
    assert suggested(words, tokenizer=tokenizer).best.mean == 1.0


@pytest.mark.parametrize("scoring", ["roc_auc", "f1", "precision", "recall"])
def test_a_scorer_of_two_classes_is_refused_for_three(scoring):
    found = "roc_auc_ovr" if scoring == "roc_auc" else f"{scoring}_macro"
    refused(
        labelled(lambda index: index % 3),
        f"scoring='{scoring}' gives no number for 3 classes.*'{found}'.*'accuracy'",
        scoring=scoring,
    )


@pytest.mark.parametrize("scoring", ["roc_auc_ovr", "average_precision", "neg_log_loss", "f1_macro"])
def test_scorers_of_three_classes_do(scoring):
    assert np.isfinite(suggested(labelled(lambda index: index % 3), scoring=scoring).best.mean)


def test_a_scorer_of_ones_own_that_gives_no_number_is_refused():
    rows = text_rows(24)
    assert suggested(rows, scoring=lambda probe, values, labels: 0.5).best.mean == 0.5
    with pytest.raises(FreezeError, match=r"gave \[nan, nan\] at depth 0"):
        suggested(rows, scoring=lambda probe, values, labels: float("nan"))


@pytest.mark.parametrize("collator", [None, "own"])
@pytest.mark.parametrize("column", ["labels", "label", "label_ids"])
@pytest.mark.parametrize(
    "of",
    [
        lambda number: ["spam", "ham"][number],
        bool,
        float,
        lambda number: number + 1,
        torch.tensor,
        lambda number: [number],
        np.int64,
    ],
    ids=["text", "bool", "float", "from one", "tensor", "list", "numpy"],
)
def test_classes_are_classes_whatever_they_are_called(of, column, collator):
    rows = [{"input_ids": [5 + index % 2, 6, 7], column: of(index % 2)} for index in range(24)]

    def own(batch):
        ids = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": ids, "labels": torch.tensor([np.ravel(row[column])[0].item() for row in batch])}

    found = suggested(rows, collator=own if collator else None)
    assert [round(score.mean, 3) for score in found.scores] == [1.0, 1.0, 1.0]
    assert found.scoring == "average_precision"


def test_labels_of_a_data_set_with_named_classes_or_texts():
    rows = Dataset.from_list(labelled(lambda index: ["b", "a"][index % 2], column="label"))
    assert suggested(rows).rows == 24
    assert suggested(rows.cast_column("label", ClassLabel(names=["a", "b"]))).rows == 24
    refused(rows.select(range(0, 24, 2)), "12 of class b")


def test_classes_come_in_the_order_of_their_names():
    classes = Classes()
    named = classes.named([classes.number(text) for text in ("spam", "ham", "spam")])
    assert (named.ids.tolist(), named.names) == ([1, 0, 1], ("ham", "spam"))


@pytest.mark.parametrize("stored", [("never", "seen"), (0, 1)])
def test_labels_that_a_transform_makes_are_those_that_count(stored):
    rows = Dataset.from_list(labelled(lambda index: stored[index > 0], column="label"))
    made = rows.with_transform(
        lambda batch: {"input_ids": batch["input_ids"], "label": [ids[0] % 2 for ids in batch["input_ids"]]}
    )
    assert suggested(made).rows == 24


def test_labels_that_only_the_collator_knows():
    assert suggested([{"input_ids": row["input_ids"], "label": row["label"], "more": 1} for row in texts(24)],
                     collator=Pad()).rows == 24  # fmt: skip
    scored = [{**row, "label": 0.3} for row in texts(24)]

    def halved(batch):
        made = Pad()(batch)
        return {**made, "labels": made["input_ids"][:, 0] % 2}

    assert suggested(scored, collator=halved).rows == 24
    with pytest.raises(FreezeError, match="24 of class 1"):
        suggested(scored, collator=lambda batch: {**Pad()(batch), "labels": torch.ones(len(batch))})


@pytest.mark.parametrize(
    ("label", "match"),
    [
        (0.5, "label 0.5.*For a regression, give classes"),
        (float("nan"), "label nan"),
        (float("inf"), "label inf"),
        (-100, "label -100.*Leave rows"),
        ([1.0, 0.0], r"label \[1.0, 0.0\].*Several labels"),
        (torch.tensor([1, 0]), r"label \[1, 0\].*Several labels"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_refused_with_what_is_supported(label, match):
    refused(labelled(lambda index: label), f"(?s){match}", error=UnsupportedSetupError)


def test_rows_without_a_label_among_others_are_refused():
    refused(labelled(lambda index: None), "labels=None")
    refused(labelled(lambda index: [0, 1, None][index % 3]), "None")
    refused(labelled(lambda index: [0, "a"][index % 2]), "some labels are texts, and some numbers")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_features_that_are_no_numbers_name_their_depth(value):
    model = models.tiny_bert(layers=3)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.bias.fill_(float(value))
    with pytest.raises(FreezeError, match=r"depth 2 \(after layers\[1\]\) hold NaN or infinity"):
        suggested(text_rows(24), model=model)
