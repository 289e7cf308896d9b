"""Stages under mixed precision: bfloat16 autocast, and float16 with a gradient scaler, which only a GPU has."""

import pytest
import torch

from tests.installed import GPU
from tests.models import tiny_bert
from tests.nearness import assert_near
from tests.training.staged import PLAN, STEPS, losses, trainer

SETUPS = [
    pytest.param("bf16", True, id="bf16-cpu"),
    pytest.param("bf16", False, id="bf16-cuda", marks=GPU),
    pytest.param("fp16", False, id="fp16-cuda", marks=GPU),
]
STAGE_OF_STEP = [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4]


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of several the Trainer makes a DataParallel


@pytest.mark.parametrize(("precision", "use_cpu"), SETUPS)
def test_stages_move_what_they_should_and_resume_bit_equal(tmp_path, precision, use_cpu):
    values = {precision: True, "use_cpu": use_cpu, "max_grad_norm": 0.5, "save_strategy": "steps", "save_steps": 6}
    made = trainer(tmp_path / "whole", **values)
    made.train()
    resolved = PLAN.resolve(made.model)
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}
    moved = [made.watch.moved(step) for step in range(1, STEPS + 1)]
    assert all(names <= resolved.names[stage] for names, stage in zip(moved, STAGE_OF_STEP, strict=True))
    # A gradient scaler may skip the first steps, until its scale fits.
    assert all(moved[4:]) if precision == "fp16" else all(moved)
    assert (made.accelerator.scaler is not None) == (precision == "fp16")

    again = trainer(tmp_path / "again", **values)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    for name, weight in made.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    assert losses(again) == losses(made)


@pytest.mark.parametrize(("precision", "use_cpu"), SETUPS)
def test_the_result_is_near_that_of_full_precision(tmp_path, precision, use_cpu):
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ends = []
    for values in ({}, {precision: True}):
        made = trainer(tmp_path, model=tiny_bert(layers=3, **plain), use_cpu=use_cpu, adam_epsilon=1e-3, **values)
        made.train()
        ends.append(made.model.state_dict())
    assert_near(ends[1], ends[0], rtol=0.05, floor=0.2)
