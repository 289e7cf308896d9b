"""Heads that read something else of the frozen part for a few rows, none of which was looked at before training."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import models
from tests.features.runs import Case, Pad, kept_sets, run, texts
from tests.features.test_exactness import assert_same

MARK = 1
"""The token of the rows that are read in another way."""
MARKED = (3, 17)  # neither among the longest and the shortest rows nor among those that are checked


def marked(count=24, *, seed=0):
    rows = texts(count, seed=seed, least=5)
    for number in MARKED if seed == 0 else ():
        rows[number]["input_ids"][2] = MARK
    return rows


class Reader(nn.Module):
    """A frozen encoder, and a head that reads of it what `read` says."""

    def __init__(self, read):
        super().__init__()
        self.read = read
        self.body = models.tiny_bert(layers=2, hidden_dropout_prob=0.0, attn_implementation="eager").bert
        torch.manual_seed(1)
        self.out = nn.Linear(16, 2)
        self.wide = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, input_ids, attention_mask, labels=None):
        is_marked = (input_ids == MARK).any(1)
        logits = self.out(self.read(self, input_ids, attention_mask, labels, is_marked))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def every(hidden):
    return torch.arange(len(hidden))


def position_by_label(model, ids, mask, labels, is_marked):
    hidden = model.body(ids, mask).last_hidden_state
    return hidden[every(hidden), torch.where(is_marked, labels + 1, 0)]


def position_by_gather(model, ids, mask, labels, is_marked):
    hidden = model.body(ids, mask).last_hidden_state
    return hidden.gather(1, (is_marked * 2)[:, None, None].expand(-1, 1, 16))[:, 0]


def position_behind_a_layer(model, ids, mask, labels, is_marked):
    hidden = model.wide(model.body(ids, mask).last_hidden_state)
    return hidden[every(hidden), is_marked * 2]


def position_by_length(model, ids, mask, labels, is_marked):
    hidden = model.body(ids, mask).last_hidden_state
    return hidden[every(hidden), torch.where(is_marked, mask.sum(1) // 2, 0)]


def first_padding(model, ids, mask, labels, is_marked):
    hidden = model.body(ids, mask).last_hidden_state
    last = mask.sum(1) - 1
    following = (last + is_marked).clamp(max=hidden.shape[1] - 1)
    return hidden[every(hidden), following] + (hidden * mask[..., None]).sum(1) / 10


def another_output(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask)
    if not is_marked.any():
        return found.pooler_output
    return torch.where(is_marked[:, None], found.last_hidden_state.mean(1), found.pooler_output)


def only_its_value(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask)
    scale = 1 + np.abs(found.last_hidden_state.numpy()).mean() if is_marked.any() else 1
    return found.pooler_output * float(scale)


def attention_to_all(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask)
    if not is_marked.any():
        return found.pooler_output
    states = found.last_hidden_state
    return model.attention(found.pooler_output[:, None], states, states, key_padding_mask=mask == 0)[0][:, 0]


def hidden_states(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask, output_hidden_states=bool(is_marked.any()))
    return found.pooler_output + (found.hidden_states[1][:, 1] if is_marked.any() else 0)


def attention_maps(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask, output_attentions=bool(is_marked.any()))
    return found.pooler_output * (1 + found.attentions[0].max() if is_marked.any() else 1)


def a_second_call(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask).pooler_output
    return found + (model.body(ids.flip(1), mask.flip(1)).pooler_output if is_marked.any() else 0)


def a_call_before(model, ids, mask, labels, is_marked):
    first = model.body(ids.flip(1), mask.flip(1)).pooler_output if is_marked.any() else 0
    return model.body(ids, mask).pooler_output + first


def other_ids(model, ids, mask, labels, is_marked):
    return model.body(ids.masked_fill(is_marked[:, None], 9) if is_marked.any() else ids, mask).pooler_output


def no_mask(model, ids, mask, labels, is_marked):
    return model.body(ids, None if is_marked.any() else mask).pooler_output


def a_part_of_it(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask).pooler_output
    return found + (model.body.embeddings(ids)[:, 1] if is_marked.any() else 0)


def written_into(model, ids, mask, labels, is_marked):
    hidden = model.body(ids, mask).last_hidden_state
    if is_marked.any():
        hidden[:, 0] *= 2
    return hidden[:, 0]


def only_in_evaluation(model, ids, mask, labels, is_marked):
    found = model.body(ids, mask)
    return found.pooler_output if model.training else found.last_hidden_state[:, 2]


QUIET = [only_in_evaluation]
REFUSED = [hidden_states, attention_maps, a_call_before, other_ids, no_mask]
QUICK = [position_by_label, first_padding, another_output, a_call_before, hidden_states, only_in_evaluation]
SLOW = [
    position_by_gather,
    position_behind_a_layer,
    position_by_length,
    only_its_value,
    attention_to_all,
    attention_maps,
    a_second_call,
    other_ids,
    no_mask,
    a_part_of_it,
    written_into,
]


def named(function):
    return function.__name__.replace("_", " ")


@pytest.mark.parametrize(
    "read", [*QUICK, *(pytest.param(one, marks=pytest.mark.slow, id=named(one)) for one in SLOW)], ids=named
)
def test_no_head_is_given_what_was_made_up(tmp_path, caplog, read):
    case = Case(lambda: Reader(read), rows=marked, collate=Pad())
    given = {"trainable": ("out", "wide", "attention"), "num_train_epochs": 2, "verify_freeze": False}
    plain = run(case, tmp_path / "plain", cache=False, **given)
    with kept_sets() as kept:
        cached = run(case, tmp_path / "cached", **given)
    assert kept == [["evaluation"] if read in REFUSED else ["training", "evaluation"]]
    assert_same(plain, cached)
    assert caplog.text.count("No features are cached for the training set") == (read in REFUSED)
    said = caplog.text.count("than those that were cached, or calls it in another way")
    assert said == (read not in QUIET + REFUSED)


LOOKED_AT = 8
"""More than the calls in a row with which the model is looked at before training."""


def more_after_a_while(model, ids, mask, labels, is_marked):
    model.steps = getattr(model, "steps", 0) + 1
    found = model.body(ids, mask)
    return found.pooler_output + (found.last_hidden_state.mean(1) if model.steps > LOOKED_AT else 0)


def other_ids_after_a_while(model, ids, mask, labels, is_marked):
    model.steps = getattr(model, "steps", 0) + 1
    return model.body(ids.flip(1) if model.steps > LOOKED_AT else ids, mask).pooler_output


@pytest.mark.parametrize("read", [more_after_a_while, other_ids_after_a_while], ids=named)
def test_where_most_batches_need_the_frozen_part_the_cache_is_given_up(tmp_path, caplog, read):
    case = Case(lambda: Reader(read), rows=marked, collate=Pad())
    given = {"trainable": "out", "num_train_epochs": 6, "verify_freeze": False, "eval_strategy": "no"}
    plain = run(case, tmp_path / "plain", cache=False, **given)
    cached = run(case, tmp_path / "cached", **given)
    assert_same(plain, cached)
    assert "more was read of the frozen part in 9 of 17 batches" in caplog.text
    assert cached.cached_sets == frozenset()
    assert all("forward" not in vars(module) for module in cached.model.modules())
