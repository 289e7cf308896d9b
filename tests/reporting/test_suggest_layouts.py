"""suggest_layers finds the rows in what layers return, however they lay it out, and needs no head that works."""

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.reporting.layers.layer_outputs import find_places
from hf_freeze.reporting.layers.suggest_layers import suggest_layers
from tests.features.runs import Pad, texts
from tests.models import VOCABULARY, seeded

LENGTH = 6


def told_by_any_token(count=36, length=LENGTH):
    return [{"input_ids": [10 + index % 2] * length, "labels": index % 2} for index in range(count)]


def means(model, rows, **given):
    found = suggest_layers(model, rows, show_progress=False, folds=3, **given)
    return [score.mean for score in found.scores], found


@pytest.mark.parametrize("batch_size", [LENGTH, 8, 5])
def test_layers_that_work_time_first_are_read_by_rows_even_where_length_equals_rows(batch_size):
    config = hf.XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32)
    scores, found = means(seeded(hf.XLNetForSequenceClassification, config), told_by_any_token(), batch_size=batch_size)
    assert scores == pytest.approx([1.0, 1.0, 1.0])
    assert found.reads == ("mean", "last")


class Layer(nn.Module):
    def __init__(self, flat=False):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.flat = flat

    def forward(self, noise, hidden):
        out = hidden + self.inner(hidden)
        return noise, out.flatten(0, 1) if self.flat else out


class Stacked(nn.Module):
    """Layers take and return a tensor that has nothing to do with rows before the features."""

    def __init__(self, *, flat=False, head_works=True):
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList([Layer(flat) for _ in range(3)])
        self.classifier = nn.Linear(8, 2)
        self.head_works = head_works

    def forward(self, input_ids):
        hidden, noise = self.embeddings(input_ids), torch.ones(LENGTH, 8)
        for layer in self.layers:
            noise, out = layer(noise, hidden)
            hidden = out.reshape(hidden.shape)
        if not self.head_works and len(hidden) > 1:
            raise ValueError("a head for single rows")
        return self.classifier(hidden.mean(1))


def test_a_tensor_that_does_not_follow_the_rows_is_passed_over_even_where_it_has_as_many():
    scores, _ = means(Stacked(), told_by_any_token(), batch_size=LENGTH)
    assert scores == pytest.approx([1.0] * 4)


def test_layers_that_mix_rows_and_positions_are_refused_with_their_shapes():
    with pytest.raises(UnsupportedSetupError, match=r"No dimension of what layer 0 returns.*\(12, 8\).*\(18, 8\)"):
        means(Stacked(flat=True), told_by_any_token())


def test_the_head_is_asked_for_single_rows_only():
    scores, _ = means(Stacked(head_works=False), told_by_any_token())
    assert scores == pytest.approx([1.0] * 4)


def test_the_rows_are_the_one_dimension_that_follows_them():
    assert (
        find_places({0: [None, (3, 3), (2, 2), (3, 2, 4)]}, {0: [None, (3, 3), (3, 3), (3, 3, 4)]}, (2, 3))[0]
        == (find_places({0: [None, (9,), (9,), (3, 2, 4)]}, {0: [None, (9,), (9,), (3, 3, 4)]}, (2, 3))[0])
    )


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_without_a_pad_token_is_probed(padded):
    config = hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, pad_token_id=None)
    model = seeded(hf.BloomForSequenceClassification, config)
    rows, collator = (texts(36), Pad()) if padded else (told_by_any_token(), None)
    scores, found = means(model, rows, collator=collator)
    assert len(scores) == 3
    assert found.reads == ("mean", "last")


def test_layers_in_blocks_with_pooling_between_them():
    config = hf.FunnelConfig(
        vocab_size=VOCABULARY, block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=32, num_decoder_layers=1
    )
    scores, found = means(seeded(hf.FunnelForSequenceClassification, config), told_by_any_token())
    assert scores == pytest.approx([1.0] * (found.layers + 1))
    assert found.plan.to_dict() == {"freeze": ["embeddings"]}


class Unseen(nn.Module):
    """It uses the weights of its layers, and calls none of them."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.classifier = nn.Linear(8, 2)

    def forward(self, input_ids):
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = hidden @ layer.weight + layer.bias
        return self.classifier(hidden.mean(1))


def test_layers_that_are_never_called_are_named_with_the_reason():
    with pytest.raises(UnsupportedSetupError, match=r"did not call layers\[0\], layers\[1\], layers\[2\]: its forward"):
        means(Unseen(), told_by_any_token())


def test_what_follows_the_last_layer_is_left_out_of_the_pass():
    model, rows = Stacked(), told_by_any_token()
    heads = []
    model.classifier.register_forward_pre_hook(lambda module, args: heads.append(len(args[0])))
    means(model, rows)
    assert np.sum(heads) == 5  # one row to see the calls, and four to see what the head reads
