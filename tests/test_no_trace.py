"""Each keeper puts back the one thing that it names, also when its block raises."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from hf_freeze.no_trace import (
    attributes_kept,
    buffers_kept,
    flags_kept,
    gradients_kept,
    modules_kept,
    random_states_kept,
    tokenizer_kept,
    untouched,
)
from tests.debugging.subjects import word_tokenizer


class Owner:
    def __init__(self):
        self.torch = torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.old_numpy = np.random.RandomState(0)
        self.python = random.Random(0)

    def draw(self):
        own = (
            torch.rand(1, generator=self.torch).item(),
            self.numpy.random(),
            self.old_numpy.rand(),
            self.python.random(),
        )
        return (*own, torch.rand(1).item(), np.random.rand(), random.random())


def model():
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout().eval())
    made[0].weight.grad = torch.ones(2, 2)
    return made


def use(made):
    """Change all that a pass and those who look may change."""
    made.train()
    made[1].running_var = torch.full((2,), 9.0)
    made(torch.rand(4, 2)).sum().backward()
    made.requires_grad_(False)
    made.note = "left behind"
    made[0].register_forward_hook(print)
    made.eval()


KEPT = {
    flags_kept: lambda made: [module.training for module in made.modules()],
    buffers_kept: lambda made: made[1].running_mean.tolist(),
    gradients_kept: lambda made: [(p.requires_grad, p.grad is not None and p.grad.tolist()) for p in made.parameters()],
    modules_kept: lambda made: [*vars(made), len(made[0]._forward_hooks), made[1].running_var.tolist()],
}


@pytest.mark.parametrize("keeper", KEPT, ids=lambda keeper: keeper.__name__)
def test_what_is_named_comes_back_and_nothing_else(keeper):
    made = model()
    before = {name: seen(made) for name, seen in KEPT.items()}
    with pytest.raises(ZeroDivisionError), keeper(made):
        use(made)
        1 / 0  # noqa: B018
    after = {name: seen(made) for name, seen in KEPT.items()}
    # what modules hold includes their flags
    same = {keeper, flags_kept} if keeper is modules_kept else {keeper}
    assert {name for name in KEPT if before[name] == after[name]} == same


def test_a_forward_pass_leaves_nothing():
    made, owner = model(), Owner()
    before = KEPT[flags_kept](made), made[1].running_mean.clone()
    with untouched(made):
        drawn = owner.draw()[4:]
        made.train()
        made(torch.rand(4, 2))
    assert (KEPT[flags_kept](made), owner.draw()[4:]) == (before[0], drawn)
    assert torch.equal(made[1].running_mean, before[1])


def test_the_generators_that_an_owner_holds_are_put_back():
    owner = Owner()
    with random_states_kept(owner):
        drawn = owner.draw()
    assert owner.draw() == drawn


def test_attributes_come_back_in_their_order():
    owner = Owner()
    before = list(vars(owner).items())
    with attributes_kept(owner):
        owner.other, owner.python = 1, None
        del owner.torch
    assert list(vars(owner).items()) == before


def test_a_tokenizer_without_a_backend_is_let_be():
    with tokenizer_kept(None), tokenizer_kept(tokenizer := word_tokenizer()):
        tokenizer(["w5", "w6 w7"], padding=True, truncation=True, max_length=9)
    assert tokenizer.backend_tokenizer.truncation is None
    assert tokenizer.backend_tokenizer.padding is None


def test_a_buffer_changed_in_place_and_one_swapped_both_come_back():
    norm = nn.BatchNorm1d(2)
    buffer = norm.running_mean
    with modules_kept(norm), buffers_kept(norm):
        norm.running_mean += 1
        norm.running_var = torch.full((2,), 9.0)
    assert norm.running_mean is buffer
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]
