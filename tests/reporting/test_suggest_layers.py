"""suggest_layers: features of every depth in one pass, a probe at each, one standard error, and the plan that follows."""

import dataclasses
import random

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from transformers import BertTokenizerFast

from hf_freeze.errors import FreezeError, SelectionError, UnsupportedSetupError
from hf_freeze.features.batches import Source
from hf_freeze.reporting.layers.depth_features import depth_features, find_reader
from hf_freeze.reporting.layers.head_reads import read
from hf_freeze.reporting.layers.labelled_batches import LabelledBatches
from hf_freeze.reporting.layers.layer_outputs import find_depths
from hf_freeze.reporting.layers.layers_plot import plot_layers
from hf_freeze.reporting.layers.suggest_layers import suggest_layers
from hf_freeze.reporting.layers.suggestion import DepthScore, ProbeSuggestion, depth_that_suffices
from tests import models
from tests.features.runs import Pad, texts
from tests.models import image_rows, seeded, text_rows

SWIN = {"depths": [2, 2], "num_heads": [2, 2], "embed_dim": 8, "image_size": 32, "patch_size": 4, "window_size": 4}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1}


def score(depth, mean, spread=0.02):
    return DepthScore(depth=depth, folds=(mean - spread, mean, mean + spread))


def suggestion(*means, layers=None, **given):
    scores = tuple(score(depth, mean) for depth, mean in enumerate(means))
    return ProbeSuggestion(
        scores=scores,
        layers=layers or len(means) - 1,
        scoring="accuracy",
        reads=("mean",),
        rows=30,
        extraction_seconds=1.5,
        probe_seconds=0.5,
        **given,
    )


def test_the_smallest_depth_within_one_standard_error_of_the_best_suffices():
    error = score(0, 0.9).error
    assert error == pytest.approx(0.02 / 3**0.5)
    near, far = 0.9 - 0.9 * error, 0.9 - 1.1 * error
    assert depth_that_suffices([score(0, far), score(1, near), score(2, 0.9), score(3, 0.5)]) == 1
    assert depth_that_suffices([score(0, far), score(1, far), score(2, 0.9), score(3, near)]) == 2


def test_the_error_that_counts_is_that_of_the_best_depth():
    uncertain = DepthScore(depth=0, folds=(0.4, 0.8, 1.2))
    assert depth_that_suffices([uncertain, score(1, 0.9, spread=0.001)]) == 1


@pytest.mark.parametrize(
    ("means", "plan"),
    [
        ((0.9, 0.5, 0.5), ["embeddings"]),
        ((0.5, 0.9, 0.9), ["embeddings", "layers[:1]"]),
        ((0.5, 0.6, 0.9), ["embeddings", "layers[:2]"]),
    ],
)
def test_the_plan_trains_the_layers_above_and_the_head(means, plan):
    found = suggestion(*means)
    assert found.plan.to_dict() == {"freeze": plan}
    model = models.tiny_bert(layers=2)
    trained = found.plan.resolve(model).ever_trainable
    layers = {name.split(".")[3] for name in trained if ".layer." in name}
    assert layers == {str(index) for index in range(found.depth, 2)}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= trained
    assert not any("embeddings" in name for name in trained)


class Mixer(nn.Module):
    """A layer that, in the layer `at`, writes the label, which stands in the last token, into the first position."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies
        self.inner = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, hidden):
        if self.copies:
            hidden = torch.cat([hidden[:, -1:], hidden[:, 1:]], dim=1)
        return hidden + 0.01 * self.inner[0](hidden)


class Copies(nn.Module):
    """The features of the first position tell the label from depth 2 on; those of the mean are noise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(64, 8)
        self.layers = nn.ModuleList([Mixer(copies=index == 1) for index in range(4)])
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids, labels=None):
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return {"logits": self.classifier(hidden[:, 0])}


def copied_rows(count=120):
    random = np.random.default_rng(0)
    rows = []
    for index in range(count):
        ids = random.integers(5, 64, 40).tolist()
        ids[-1] = 3 + index % 2
        rows.append({"input_ids": ids, "labels": index % 2})
    return rows


def test_the_depth_where_the_features_appear_is_found():
    found = suggest_layers(Copies(), copied_rows(), show_progress=False)
    means = [score.mean for score in found.scores]
    assert found.reads == ("mean", "first")
    assert max(means[:2]) < 0.85
    assert min(means[2:]) > 0.99
    assert found.depth == 2
    assert found.plan.to_dict() == {"freeze": ["embeddings", "layers[:2]"]}


@pytest.mark.parametrize(
    ("build", "reads"),
    [
        (models.tiny_bert, ("mean", "first")),
        (models.tiny_distilbert, ("mean", "first")),
        (models.tiny_roberta, ("mean", "first")),
        (models.tiny_custom, ("mean", "first")),
        (models.tiny_llama, ("mean", "last")),
        (models.tiny_gpt2, ("mean", "last")),
    ],
)
def test_what_is_probed_is_what_the_head_of_the_model_reads(build, reads):
    found = suggest_layers(build(layers=3), text_rows(40), show_progress=False, folds=2)
    assert found.reads == reads
    assert (found.layers, len(found.scores)) == (3, 4)


@pytest.mark.parametrize(
    ("model", "rows", "layers"),
    [
        (models.tiny_vit(layers=2), image_rows(12), 2),
        (models.tiny_resnet(depths=(2, 2)), image_rows(12, size=32), 4),
        (seeded(hf.SwinForImageClassification, hf.SwinConfig(**SWIN, num_labels=2)), image_rows(12, size=32), 4),
    ],
    ids=["vit", "resnet", "swin"],
)
def test_images_and_stages_of_growing_width(model, rows, layers):
    found = suggest_layers(model, rows, show_progress=False, folds=2)
    assert len(found.scores) == layers + 1
    found.plan.resolve(model)


def test_depths_are_the_hidden_states_that_the_model_itself_reports():
    model, rows = models.tiny_bert(layers=3).eval(), texts(10)
    source = Source(rows, LabelledBatches(model, Pad(), None), dict)
    depths, batches = find_depths(model), [[0, 1, 2], [3, 4, 5, 6, 7, 8, 9]]
    reader = find_reader(model, depths, source, list(range(10)))
    found = depth_features(model, depths, reader, source, batches, show_progress=False)
    batch = Pad()(rows)
    mask = batch["attention_mask"] != 0
    with torch.no_grad():
        states = model.bert(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        )
    assert len(found.values) == len(states.hidden_states)
    for values, hidden in zip(found.values, states.hidden_states, strict=True):
        mean = torch.stack([row[real].mean(0) for row, real in zip(hidden, mask, strict=True)])
        expected = torch.cat([mean, hidden[:, 0]], dim=1)
        np.testing.assert_allclose(values, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert found.numbers.tolist() == [row["label"] for row in rows]


@pytest.mark.parametrize("side", ["left", "right"])
def test_first_and_last_are_real_tokens_on_either_side_of_the_padding(side):
    hidden = torch.arange(8.0).reshape(1, 4, 2)
    mask = torch.tensor([[False, True, True, False]])
    assert read(hidden, mask, "first").tolist() == [[2.0, 3.0]]
    assert read(hidden, mask, "last").tolist() == [[4.0, 5.0]]
    assert read(hidden, mask, "mean").tolist() == [[3.0, 4.0]]


def test_the_model_is_run_once_over_the_rows_and_left_as_it_was():
    model, rows = models.tiny_bert(layers=2).train(), text_rows(40)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    suggest_layers(model, rows, batch_size=10, show_progress=False, folds=2)
    assert seen == [1, 2, 3, 1, 1, 1, 1, 10, 10, 10, 10]  # first a few rows, to see how features are read
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_more_rows_than_wanted_are_read_and_the_same_for_the_same_seed():
    model = models.tiny_bert(layers=2)
    rows = [{**row, "labels": index // 7 % 2} for index, row in enumerate(text_rows(60))]
    first, again, other = (
        suggest_layers(model, rows, max_rows=30, seed=seed, show_progress=False, folds=2) for seed in (0, 0, 1)
    )
    assert first.rows == 30
    assert first.scores == again.scores != other.scores


def test_a_tokenizer_pads_and_columns_that_the_model_does_not_take_are_dropped(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(40))]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    rows = [{**row, "text": "a", "attention_mask": [1] * len(row["input_ids"])} for row in texts(24)]
    found = suggest_layers(models.tiny_bert(), rows, tokenizer=tokenizer, show_progress=False, folds=2)
    assert found.rows == 24


def test_stacks_are_named_where_there_are_several_and_what_one_reads_stays_frozen_with_it():
    config = hf.T5Config(**T5, num_layers=2, num_decoder_layers=2, decoder_start_token_id=0, num_labels=2)
    model = seeded(hf.T5ForSequenceClassification, config)
    with pytest.raises(SelectionError, match=r"stack= was not given.*encoder', '.*decoder'"):
        suggest_layers(model, texts(20), collator=Pad(end=1), show_progress=False)
    with pytest.raises(SelectionError, match=r"stack='middle'"):
        suggest_layers(model, texts(20), collator=Pad(end=1), stack="middle", show_progress=False)
    found = suggest_layers(model, texts(20), collator=Pad(end=1), stack="decoder", show_progress=False, folds=2)
    top = dataclasses.replace(found, scores=tuple(score(d, 0.5 + 0.1 * d) for d in range(3)))
    trained = top.plan.resolve(model).ever_trainable
    assert top.plan.to_dict() == {
        "freeze": ["embeddings", "transformer.encoder.layers[:]", "transformer.decoder.layers[:2]"]
    }
    assert not any(".block." in name for name in trained)


def test_more_than_two_classes_are_scored_by_accuracy():
    found = suggest_layers(models.tiny_bert(num_labels=3), text_rows(30, num_labels=3), show_progress=False, folds=2)
    assert found.scoring == "accuracy"


def test_a_class_with_fewer_rows_than_folds_is_refused_with_the_counts():
    rows = [{**row, "labels": int(index == 0)} for index, row in enumerate(text_rows(20))]
    with pytest.raises(FreezeError, match="5 rows of each; found 19 of class 0, 1 of class 1"):
        suggest_layers(models.tiny_bert(), rows, show_progress=False)


def test_labels_that_are_no_classes_are_refused():
    rows = [{**row, "labels": 0.5} for row in text_rows(20)]
    with pytest.raises(UnsupportedSetupError, match="one class per row"):
        suggest_layers(models.tiny_bert(), rows, show_progress=False)
    with pytest.raises(FreezeError, match="no labels"):
        suggest_layers(models.tiny_bert(), [{"input_ids": [5, 6, 7]}] * 20, show_progress=False)


def test_the_report_has_the_cost_and_the_plan():
    text = str(suggestion(0.5, 0.9, 0.9))
    assert "Cost: 1.5 s for one pass through the model, 0.5 s for 3 probes in 3 folds." in text
    assert "Plan: {'freeze': ['embeddings', 'layers[:1]']}" in text
    assert "after layers[0]      0.9000      0.0115  best, suffices" in text


def test_the_picture_marks_the_depth(tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_layers(suggestion(0.5, 0.9, 0.91), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "depth 1 suffices" in names
    assert "best: depth 2" in names


def test_random_states_are_afterwards_what_they_were():
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    suggest_layers(models.tiny_bert(), text_rows(40), show_progress=False)
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
