"""debug_sample leaves a model, its Trainer and the random states as it found them, also when it raises."""

import random

import numpy as np
import pytest
import torch

from hf_freeze import FreezeError, SampleCheckError, debug_sample
from tests.debugging.subjects import (
    Pooled,
    checkpoint_activations,
    pooled,
    ragged_rows,
    tiny_lora,
    trainer_of,
    word_tokenizer,
)
from tests.models import image_rows, text_rows, tiny_bert, tiny_gpt2_lm, tiny_resnet

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(model):
    """Everything that a pass could change, by value."""
    return {
        "training": {path: module.training for path, module in model.named_modules()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "storage": {name: p.data_ptr() for name, p in model.named_parameters()},
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "gradient objects": {name: id(p.grad) for name, p in model.named_parameters() if p.grad is not None},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "buffer objects": {name: id(b) for name, b in model.named_buffers()},
        "hooks": {path: [list(getattr(m, key)) for key in HOOKS] for path, m in model.named_modules()},
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
        "config": model.config.to_dict() if hasattr(model, "config") else None,
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or (one.isnan().any() and torch.allclose(one, other, equal_nan=True))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_untouched(before, after):
    assert [key for key in before if not same(before[key], after[key])] == []


class Litters(Pooled):
    """Leaves something of every kind behind, and raises when told to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.seen, self.fail_at = 0, None

    def forward(self, input_ids, attention_mask=None, labels=None):
        self.seen += 1
        self.steps += 1
        self.last_hidden = torch.ones(3)
        self.register_buffer(f"cache{self.seen}", torch.ones(1))
        self.head.register_forward_hook(lambda *_: None)
        self.embed.weight.requires_grad_(False)
        self.body.train()
        random.random(), np.random.rand(), torch.rand(1)
        if self.seen == self.fail_at:
            raise KeyboardInterrupt
        return super().forward(input_ids, attention_mask, labels)


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def mixed_modes(model):
    model.train()
    next(iter(model.children())).eval()
    return model


SUBJECTS = {
    "bert in train mode": lambda: with_gradients(tiny_bert().train()),
    "bert in mixed modes": lambda: with_gradients(mixed_modes(tiny_bert())),
    "tied weights": lambda: tiny_gpt2_lm(),
    "lora": tiny_lora,
    "a module that litters": lambda: with_gradients(Litters()),
    "own module": pooled,
}
OPTIONS = [{}, {"checks": "full", "backward": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=["fast", "full"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_left_behind(name, options):
    model = SUBJECTS[name]()
    rows = text_rows()
    if name == "tied weights":
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
    before = state_of(model)
    debug_sample(model, dataset=rows, quiet=True, **options)
    assert_untouched(before, state_of(model))


@pytest.mark.parametrize("options", OPTIONS, ids=["fast", "full"])
def test_batch_statistics_stand_still(options):
    model = tiny_resnet().train()
    before = state_of(model)
    debug_sample(model, dataset=image_rows(), quiet=True, **options)
    assert_untouched(before, state_of(model))


@pytest.mark.parametrize("fail_at", range(1, 7))
def test_nothing_is_left_behind_when_it_raises_in_any_pass(fail_at):
    model = with_gradients(Litters())
    model.fail_at = fail_at
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        debug_sample(model, dataset=text_rows(), quiet=True, checks="full", backward=True, seed=0)
    assert_untouched(before, state_of(model))


def test_nothing_is_left_behind_when_a_check_fails_and_raises():
    model = with_gradients(tiny_bert())
    model.classifier.weight.data[0, 0] = float("nan")
    before = state_of(model)
    with pytest.raises(SampleCheckError, match="weights_finite"):
        debug_sample(model, dataset=text_rows(), quiet=True, raise_on_failure=True)
    assert_untouched(before, state_of(model))


def test_nothing_is_left_behind_on_a_bad_input():
    model = tiny_bert().eval()
    before = state_of(model)
    with pytest.raises(FreezeError):
        debug_sample(model, dataset=[], quiet=True)
    assert_untouched(before, state_of(model))


def test_reentrant_checkpointing_leaves_gradients_alone():
    model = with_gradients(tiny_bert())
    checkpoint_activations(model)
    before = state_of(model)
    debug_sample(model, dataset=text_rows(), backward=True, quiet=True)
    assert_untouched(before, state_of(model))


def test_a_hook_that_steps_the_optimizer_in_the_backward_pass_is_not_called():
    model = tiny_bert()
    called = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: called.append(p))
    debug_sample(model, dataset=text_rows(), backward=True, quiet=True)
    assert not called


def test_a_trainer_and_its_tokenizer_stay_as_they_were(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer("w5 w6", truncation=True, max_length=7)
    trainer = trainer_of(tiny_bert(), tmp_path, tokenizer=tokenizer, rows=ragged_rows())
    before, truncation, config = dict(vars(trainer)), tokenizer.backend_tokenizer.truncation, state_of(trainer.model)
    for sample in (None, "w5 w6 w7", {"text": "w5", "label": 1}):
        debug_sample(trainer, sample, backward=True, checks="full", quiet=True)
    assert vars(trainer) == before
    assert tokenizer.backend_tokenizer.truncation == truncation
    assert tokenizer.backend_tokenizer.padding is None
    assert_untouched(config, state_of(trainer.model))
    assert trainer.model.config.problem_type is None  # a forward pass with labels sets it


def test_training_after_a_look_is_training_without_one(tmp_path):
    def trained(look):
        torch.manual_seed(0)
        trainer = trainer_of(tiny_bert(), tmp_path)
        trainer.train_dataset = ragged_rows()
        trainer.args.max_steps, trainer.args.save_strategy = 3, "no"
        if look:
            debug_sample(trainer, checks="full", backward=True, quiet=True)
        trainer.train()
        return trainer.model.state_dict()

    one, other = trained(False), trained(True)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_text_leaves_the_truncation_and_padding_of_the_tokenizer_alone():
    tokenizer = word_tokenizer()
    debug_sample(tiny_bert(), "w5 w6 w7", tokenizer=tokenizer, quiet=True)
    assert tokenizer.backend_tokenizer.truncation is None
    tokenizer(["w5", "w6 w7"], padding=True, truncation=True, max_length=9)
    before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
    debug_sample(tiny_bert(), "w5 w6 w7", tokenizer=tokenizer, quiet=True)
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before
