"""A staged run resumed from any step ends bit-equal to the one that was never interrupted."""

import re
import shutil

import pytest
import torch
from transformers import set_seed

from hf_freeze import FreezePlan, PlanError, Plateau, Stage, UnsupportedSetupError
from tests.installed import since
from tests.models import tiny_bert
from tests.training.staged import PLAN, STEPS, losses, optimizer_bytes, trainer, weights_of

PLATEAUS = FreezePlan(
    trainable="head",
    stages=[
        Stage(plateau=Plateau("eval_loss", patience=1, min_delta=1e9, restore_best=True), unfreeze="layers[-1]"),
        Stage(plateau=Plateau("eval_loss", max_epochs=0.8), unfreeze="layers[-2]", freeze="head"),
        Stage(fraction=0.9, unfreeze=["embeddings", "head"]),
    ],
)
WATCHED = {"eval_strategy": "steps", "eval_steps": 2}
RUNS = {
    "timed": (PLAN, {}),
    "accumulated": (PLAN, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    "plateaus": (PLATEAUS, WATCHED),
}


@pytest.mark.parametrize(
    "run", ["timed", *(pytest.param(run, marks=pytest.mark.slow) for run in ("plateaus", "accumulated"))]
)
def test_resuming_after_every_step_is_bit_equal(tmp_path, run) -> None:
    plan, values = RUNS[run]
    values = {**values, "save_strategy": "steps", "save_steps": 1, "logging_steps": 2, "unfreeze_warmup": 2}
    whole = trainer(tmp_path / "whole", plan=plan, **values)
    whole.train()
    assert len({entry["stage"] for entry in losses(whole) if "stage" in entry}) == len(plan.stages) + 1

    for step in range(1, STEPS):
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "part" / f"checkpoint-{step}")
        set_seed(step)
        resumed = trainer(tmp_path / "part", model=tiny_bert(layers=3, seed=step), plan=plan, **values)
        resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{step}"))

        for name, weight in weights_of(whole.model).items():
            assert torch.equal(weight, resumed.model.get_parameter(name)), f"step {step}: {name}"
        assert optimizer_bytes(whole) == optimizer_bytes(resumed), f"step {step}"
        assert whole.lr_scheduler.state_dict() == resumed.lr_scheduler.state_dict()
        assert losses(whole) == losses(resumed), f"step {step}"
        shutil.rmtree(tmp_path / "part")


def test_another_plan_is_refused_with_the_difference(tmp_path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path, **saving).train()
    other = FreezePlan(trainable="head", stages=[*PLAN.stages[:3], Stage(fraction=0.8, freeze="layers")])
    made = trainer(tmp_path, plan=other, **saving)
    before = weights_of(made.model)

    with pytest.raises(PlanError, match=r'(?s)-\s+"fraction": 0.75,\n\+\s+"fraction": 0.8'):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert all(torch.equal(weight, made.model.get_parameter(name)) for name, weight in before.items())


def test_another_spelling_of_the_plan_resumes(tmp_path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path, **saving)
    whole.train()
    stages = [Stage(step=2, unfreeze="bert.encoder.layer.2"), *PLAN.stages[1:]]
    made = trainer(tmp_path, plan=FreezePlan(freeze="backbone", stages=stages), **saving)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert all(torch.equal(w, made.model.get_parameter(name)) for name, w in weights_of(whole.model).items())


def test_ignoring_a_change_of_plan_takes_over_weights_step_and_schedule(tmp_path, caplog) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "linear"}
    whole = trainer(tmp_path, **saving)
    whole.train()
    other = FreezePlan(trainable="head", stages=[Stage(step=9, unfreeze="all")])
    made = trainer(tmp_path, plan=other, ignore_plan_change=True, **saving)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))

    assert "the optimizer starts anew" in caplog.text
    assert made.watch.moved(1) == other.resolve(made.model).names[0]
    assert made.watch.moved(2) == other.resolve(made.model).names[1]
    assert all(torch.equal(weight, made.watch.weights[0][name]) for name, weight in whole.watch.weights[8].items())
    rates = {entry["step"]: entry["learning_rate"] for entry in losses(made) if "loss" in entry}
    assert [rates[step] for step in (9, 10, 11, 12)] == pytest.approx([1e-2 * k / 12 for k in (4, 3, 2, 1)])


def test_a_change_of_plan_cannot_be_ignored_under_deepspeed(tmp_path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path, **saving).train()
    made = trainer(tmp_path, plan=FreezePlan(trainable="head"), ignore_plan_change=True, **saving)
    made.args.deepspeed_plugin = object()
    with pytest.raises(UnsupportedSetupError, match=r"(?s)DeepSpeed loads the old one.*checkpoint-8.*The difference"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


@pytest.mark.parametrize(
    ("stage", "values", "said"),
    [
        (Stage(fraction=0.5, unfreeze="all"), {"max_steps": 24}, "after step 12 instead of 6.*falls back from stage 1"),
        pytest.param(
            Stage(epoch=1, unfreeze="all"),
            {"per_device_train_batch_size": 2},
            "after step 10 instead of 5.*falls back",
            marks=since("5.8.1", "a resumed run takes the batch size of the checkpoint, not that of its arguments"),
        ),
    ],
    ids=["more steps", "smaller batches"],
)
def test_stages_that_begin_at_another_step_than_before_are_named(tmp_path, caplog, stage, values, said) -> None:
    plan = FreezePlan(trainable="head", stages=[stage])
    saving = {"save_strategy": "steps", "save_steps": 8}
    trainer(tmp_path, plan=plan, **saving).train()
    trainer(tmp_path, plan=plan, **{**saving, **values}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert re.search(said, caplog.text)
