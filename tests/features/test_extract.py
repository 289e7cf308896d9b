"""`extract_features`: the features that a run would store, for anything else."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from torch import nn

from hf_freeze import FreezeError, SelectionError, UnsupportedSetupError, extract_features
from tests import models
from tests.features.runs import CASES, Pad, images, texts


def reference(model, row, collate=None):
    model.eval()
    with torch.no_grad():
        return model((collate or Pad())([row])["input_ids"])


@pytest.mark.parametrize("given", ["list", "dataset", "folder"])
def test_features_come_in_the_order_of_the_rows_with_their_labels(tmp_path, given):
    model, rows = models.tiny_bert(layers=3), texts(40)
    data = rows if given == "list" else Dataset.from_list([{**row, "note": "left out"} for row in rows])
    features = extract_features(model, data, collator=Pad(), folder=tmp_path if given == "folder" else None)
    assert features.column_names == ["features", "label"]
    assert features["label"] == [row["label"] for row in rows]
    for number in (0, 17, 39):
        np.testing.assert_allclose(
            features[number]["features"], reference(model.bert, rows[number]).pooler_output[0], rtol=1e-4, atol=1e-6
        )


def test_every_position_comes_where_every_position_is_read():
    model, rows = models.tiny_bert(layers=3), texts(20)
    features = extract_features(model, rows, ["backbone", "!layers[-1]"], collator=Pad())
    assert [len(row) for row in features["features"]] == [len(row["input_ids"]) for row in rows]
    model.eval()
    with torch.no_grad():
        hidden = model.bert(Pad()([rows[3]])["input_ids"], output_hidden_states=True).hidden_states[-2]
    np.testing.assert_allclose(features[3]["features"], hidden[0], rtol=1e-4, atol=1e-6)


def test_the_outputs_of_a_bare_backbone_without_padding():
    model, rows = models.tiny_bert(layers=2).bert, texts(20)
    features = extract_features(model, rows, "all", collator=Pad())
    assert features.column_names == ["last_hidden_state", "pooler_output", "label"]
    assert [len(row) for row in features["last_hidden_state"]] == [len(row["input_ids"]) for row in rows]


def test_images_and_low_precision():
    features = extract_features(models.tiny_vit(layers=2, image_size=32), images(12))
    assert np.asarray(features["features"]).shape == (12, 16)
    half = extract_features(models.tiny_bert().to(torch.bfloat16), texts(12), collator=Pad())
    full = extract_features(models.tiny_bert(), texts(12), collator=Pad())
    np.testing.assert_allclose(half["features"], full["features"], atol=0.05)


def test_the_model_is_left_as_it_was():
    model = models.tiny_resnet()
    model.train()
    model.classifier[1].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    extract_features(model, images(12))
    assert model.training
    assert all(module.training for module in model.modules())
    assert not model.classifier[1].weight.requires_grad
    assert sum(parameter.requires_grad for parameter in model.parameters()) == len(list(model.parameters())) - 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_generators_that_the_data_and_the_collator_hold_are_put_back():
    class Drawing(list):
        def __init__(self, rows):
            super().__init__(rows)
            self.generator = np.random.default_rng(0)

        def __getitem__(self, index):
            self.generator.random()
            return super().__getitem__(index)

    @dataclass(frozen=True)
    class DrawingPad(Pad):
        generator: random.Random = field(default_factory=lambda: random.Random(0))

        def __call__(self, rows):
            self.generator.random()
            return super().__call__(rows)

    rows, pad = Drawing(texts(12)), DrawingPad()
    extract_features(models.tiny_bert(), rows, collator=pad)
    assert rows.generator.random() == np.random.default_rng(0).random()
    assert pad.generator.random() == random.Random(0).random()


def test_a_probe_in_scikit_learn_learns_from_them():
    # The first token tells the label, and BERT's first position sees it.
    features = extract_features(models.tiny_bert(layers=1), texts(200), collator=Pad())
    probe = LogisticRegression(C=1e4, max_iter=2000).fit(features["features"], features["label"])
    assert probe.score(features["features"], features["label"]) > 0.8


def test_mistakes_are_named():
    with pytest.raises(FreezeError, match="dataset has no rows"):
        extract_features(models.tiny_bert(), [], collator=Pad())
    with pytest.raises(SelectionError, match="'backbon'"):
        extract_features(models.tiny_bert(), texts(12), "backbon", collator=Pad())
    with pytest.raises(UnsupportedSetupError, match="no module before the part that trains"):
        extract_features(models.tiny_bert(), texts(12), "head", collator=Pad())
    with pytest.raises(UnsupportedSetupError, match="3 rows are too few"):
        extract_features(models.tiny_bert(), texts(3), collator=Pad())


def test_another_call_with_the_same_weights_and_rows_reads_the_folder(tmp_path):
    case = CASES["roberta"]
    rows = texts(26)
    first = extract_features(case.build(), rows, collator=case.collate, folder=tmp_path)
    (arrow,) = list(tmp_path.rglob("part-*.arrow"))
    stamp = arrow.stat().st_mtime_ns
    again = extract_features(case.build(), rows, collator=case.collate, folder=tmp_path)
    assert arrow.stat().st_mtime_ns == stamp
    assert first["features"] == again["features"]


def test_a_peft_model_is_given_every_input_that_the_model_inside_takes():
    rows = [{**row, "token_type_ids": [1] * len(row["input_ids"])} for row in texts(12, least=9, most=9)]
    with_adapter, base = CASES["lora"].build(), models.tiny_bert(layers=4)  # a fresh adapter adds nothing
    expected = extract_features(base, rows, "all")
    np.testing.assert_allclose(extract_features(with_adapter, rows, "all")["features"], expected["features"])
    without = [{name: value for name, value in row.items() if name != "token_type_ids"} for row in rows]
    assert extract_features(base, without, "all")["features"] != expected["features"]


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize(("odd", "why"), [(Centred(), "depends on the other rows"), (Noisy(), "is random")])
def test_rows_whose_features_are_not_their_own_are_refused(odd, why):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 8), odd, nn.Linear(8, 8)), nn.Linear(8, 2)

        def forward(self, x, labels=None):
            return {"logits": self.head(self.body(x))}

    rows = [{"x": torch.randn(4, generator=torch.Generator().manual_seed(row)), "labels": 0} for row in range(20)]
    with pytest.raises(UnsupportedSetupError, match=why):
        extract_features(Model(), rows, "body")
