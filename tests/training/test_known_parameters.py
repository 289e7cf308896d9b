"""On stored features, gradients are clipped and dropped without a walk through all modules; nothing of it stays."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_freeze import FreezeTrainer
from hf_freeze.training.known_parameters import KnownParameters
from tests.features.runs import CASES, run

BERT = CASES["bert"]


def watching(**events):
    """A FreezeTrainer that calls `look(model)` at each of these events."""
    callback = TrainerCallback()
    for event, look in events.items():
        setattr(callback, event, lambda *_, look=look, model=None, **kwargs: look(model))

    class Watched(FreezeTrainer):
        def train(self, *args, **kwargs):
            self.add_callback(callback)
            return super().train(*args, **kwargs)

    return Watched


@pytest.mark.skipif(not hasattr(Trainer, "_clip_grad_norm"), reason="this Trainer clips within its loop")
@pytest.mark.parametrize("cache", [True, False])
def test_only_steps_on_stored_features_take_no_walk_through_the_model(tmp_path, monkeypatch, cache):
    walked, walks, named_modules = [], [], nn.Module.named_modules

    def counted(self, *args, **kwargs):
        walked.append(self)
        return named_modules(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    events = {
        "on_step_begin": lambda model: walked.clear(),
        "on_step_end": lambda model: walks.append(sum(one is model for one in walked)),
    }
    run(BERT, tmp_path, trainable="head", cache=cache, trainer=watching(**events), max_grad_norm=0.1)
    assert len(walks) == 12
    assert (sum(walks[1:]) == 0) is cache


@pytest.mark.parametrize("max_grad_norm", [1e-2, 0.0])
def test_gradients_are_clipped_and_dropped_as_without(tmp_path, max_grad_norm):
    weights, held = [], []
    for cache in (True, False):
        looks = {"on_step_end": lambda model: held.extend(p for p in model.parameters() if p.grad is not None)}
        trainer = run(
            BERT, tmp_path, trainable="head", cache=cache, trainer=watching(**looks), max_grad_norm=max_grad_norm
        )
        weights.append(trainer.model.classifier.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-8)
    assert held == []


def test_nothing_is_left_on_the_model_after_an_exception(tmp_path):
    models = []

    def fail(model):
        models.append(model)
        assert "zero_grad" in vars(model)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(BERT, tmp_path, trainable="head", trainer=watching(on_step_end=fail))
    assert vars(models[0]).keys().isdisjoint({"zero_grad", "parameters"})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_that_is_made_meanwhile_drops_its_own_gradients(tmp_path, copied):
    copies = []

    def look(model):
        if not copies:
            copies.append(copied(model))

    trainer = run(BERT, tmp_path, trainable="head", trainer=watching(on_step_end=look))
    for part in copies[0].modules():
        own = [vars(part)[name] for name in ("forward", "zero_grad", "train") if name in vars(part)]
        assert all(getattr(value, "__self__", None) is part for value in own)
    for model in (copies[0], trainer.model):
        model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    copies[0].zero_grad()
    assert copies[0].classifier.weight.grad is None
    assert trainer.model.classifier.weight.grad is not None


@pytest.mark.parametrize("where", ["class", "instance"])
def test_a_models_own_way_to_drop_gradients_is_called(tmp_path, where):
    model, calls = BERT.build(), []

    def zero_grad(*args, **kwargs):
        calls.append(args)
        nn.Module.zero_grad(model, **kwargs)

    if where == "class":
        model.__class__ = type("Own", (type(model),), {"zero_grad": zero_grad})
    else:
        model.zero_grad = zero_grad
    run(BERT, tmp_path, trainable="head", model=model)
    assert len(calls) >= 12
    assert ("zero_grad" in vars(model)) is (where == "instance")


def test_gradients_that_are_zeroed_in_place_stay(tmp_path):
    seen = []

    def look(model):
        weight = model.classifier.weight
        weight.grad = torch.ones_like(weight)
        model.zero_grad(set_to_none=False)
        seen.append(weight.grad.count_nonzero().item())

    run(BERT, tmp_path, trainable="head", trainer=watching(on_optimizer_step=look))
    assert seen == [0] * 12


def test_another_model_is_clipped_by_its_own_parameters():
    """A Trainer may clip a second one, such as a critic, with the same method."""
    known, other = KnownParameters(nn.Linear(2, 2)), nn.Linear(3, 3)
    assert [*known.clipped(lambda model: model.parameters(), other)] == [other.weight, other.bias]
