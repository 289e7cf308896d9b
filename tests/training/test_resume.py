"""A run resumed from any checkpoint ends bit-equal to one that was never interrupted."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification, TrainerCallback

from hf_freeze import FreezeError, FreezePlan, FreezeTrainer, PlanError
from tests.installed import since
from tests.models import text_rows, tiny_bert
from tests.training.runs import freeze_trainer, moved, training_logs, weights

STEPS = 6
# (accumulation, rows). Three steps an epoch both: of 4 rows each; of 3, 3 and 2 micro-batches, the last one half full.
SHAPES = {"accumulation 1": (1, 12), "accumulation 3": (3, 30)}


def trainer_for(folder, shape="accumulation 1", model=None, **overrides):
    """Dropout is on, and every second save falls inside a logging window."""
    accumulation, rows = SHAPES[shape]
    settings = {
        "trainable": ["head", "layers[-1]"],
        "layer_lr_decay": 0.5,
        "weight_decay": 0.1,
        "max_steps": STEPS,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "gradient_accumulation_steps": accumulation,
        "rows": text_rows(rows),
        **overrides,
    }
    return freeze_trainer(tiny_bert() if model is None else model, folder, **settings)


@pytest.fixture(scope="module", params=SHAPES)
def whole(request, tmp_path_factory):
    """A run that nobody interrupted."""
    trainer = trainer_for(tmp_path_factory.mktemp("whole"), request.param)
    trainer.train()
    return request.param, trainer


def checkpoint(trainer, step=None) -> Path:
    return Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.max_steps if step is None else step}"


def assert_same_state(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_state(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_end(one: FreezeTrainer, other: FreezeTrainer) -> None:
    assert moved(weights(one.model), other.model) == set()
    for name in ("optimizer.pt", "scheduler.pt"):
        assert_same_state(*(torch.load(checkpoint(trainer) / name) for trainer in (one, other)))
    assert training_logs(one) == training_logs(other)


@pytest.mark.smoke
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_resumed_from_any_checkpoint_the_run_ends_bit_equal(tmp_path, whole, step):
    shape, uninterrupted = whole
    resumed = trainer_for(tmp_path, shape, model=tiny_bert(seed=7))
    if step == STEPS:  # nothing is left to be done, so that no checkpoint is written
        shutil.copytree(checkpoint(uninterrupted), checkpoint(resumed, STEPS))
    resumed.train(resume_from_checkpoint=str(checkpoint(uninterrupted, step)))
    assert_same_end(uninterrupted, resumed)


@since("5.20", "the Trainer divides the loss of a resumed run by all steps")
def test_the_reported_mean_loss_of_a_resumed_run_is_that_of_its_own_steps(tmp_path, whole):
    shape, uninterrupted = whole
    every = trainer_for(tmp_path / "a", shape, logging_steps=1, save_strategy="no")
    every.train()
    losses = [entry["loss"] for entry in training_logs(every)]
    resumed = trainer_for(tmp_path / "b", shape)
    output = resumed.train(resume_from_checkpoint=str(checkpoint(uninterrupted, 3)))
    assert output.training_loss == pytest.approx(sum(losses[3:]) / 3, rel=1e-6)


def test_interrupted_by_hand_and_resumed_from_the_last_checkpoint(tmp_path, whole):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    shape, uninterrupted = whole
    with pytest.raises(KeyboardInterrupt):
        trainer_for(tmp_path, shape, callbacks=[Interrupt()]).train()
    resumed = trainer_for(tmp_path, shape, model=tiny_bert(seed=7))
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(uninterrupted, resumed)


def test_from_pretrained_of_a_checkpoint_and_resume_freezes_again(tmp_path):
    first = trainer_for(tmp_path, save_steps=3)
    first.train()
    shutil.rmtree(checkpoint(first))
    model = BertForSequenceClassification.from_pretrained(checkpoint(first, 3))
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = weights(model)
    resumed = trainer_for(tmp_path, model=model, save_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert moved(before, model) == {name for name in before if name.startswith(("classifier", "bert.encoder.layer.1."))}
    assert moved(weights(first.model), model) == set()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint after the first step."""
    trainer = trainer_for(tmp_path_factory.mktemp("saved"), max_steps=1)
    trainer.train()
    return str(checkpoint(trainer))


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        ({"trainable": ["head", "layers[-2]"]}, r"-.*layers\[-1\].*\+.*layers\[-2\]"),
        ({"trainable": ["head", "layers[-1]", "embeddings"]}, r"\+.*embeddings"),
        ({"layer_lr_decay": 1.0}, r"-.*head.*\+.*trainable"),
        ({"group_lrs": {"classifier.bias": 0.1}}, r"\+.*classifier\.bias"),
    ],
    ids=["same size", "more", "decay", "groups"],
)
def test_another_plan_or_other_groups_are_refused_with_the_difference(tmp_path, saved, overrides, difference):
    trainer = trainer_for(tmp_path, **overrides)
    before = weights(trainer.model)
    with pytest.raises(PlanError, match=f"(?s){saved}.*another plan.*difference:.*{difference}"):
        trainer.train(resume_from_checkpoint=saved)
    assert moved(before, trainer.model) == set()
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "plan",
    [
        FreezePlan(freeze=["embeddings", "layers[0]", "bert.pooler"]),
        FreezePlan(trainable=["layers[1]", "classifier"]),
        FreezePlan(freeze=["all", "!head", "!bert.encoder.layer.1"]),
    ],
    ids=str,
)
def test_another_spelling_of_the_same_plan_resumes(tmp_path, whole, plan):
    shape, uninterrupted = whole
    resumed = trainer_for(tmp_path, shape, trainable=None, freeze_plan=plan)
    resumed.train(resume_from_checkpoint=str(checkpoint(uninterrupted, 3)))
    assert_same_end(uninterrupted, resumed)


def test_the_state_of_an_optimizer_that_was_replaced_is_refused_with_a_way_on(tmp_path, saved):
    folder = shutil.copytree(saved, tmp_path / "saved")
    other = torch.optim.SGD(tiny_bert().parameters(), lr=0.1)
    torch.save(other.state_dict(), folder / "optimizer.pt")
    with pytest.raises(FreezeError, match="is not of this run's optimizer .* delete optimizer.pt there and set ignore"):
        trainer_for(tmp_path / "refused").train(resume_from_checkpoint=str(folder))
    (folder / "optimizer.pt").unlink()
    made = trainer_for(tmp_path / "goes_on", ignore_plan_change=True)
    made.train(resume_from_checkpoint=str(folder))
    assert made.state.global_step == STEPS


def test_a_checkpoint_of_a_plain_trainer_is_refused(tmp_path, saved):
    plain = tmp_path / "checkpoint-1"
    shutil.copytree(saved, plain)
    state = json.loads((plain / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["FreezeCallback"]
    (plain / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(PlanError, match="written without a freeze plan.*from_pretrained"):
        trainer_for(tmp_path).train(resume_from_checkpoint=str(plain))


@pytest.mark.smoke
def test_callback_states_may_be_restored_from_the_checkpoint(tmp_path, whole):
    """The Trainer then builds every callback of a saved class anew, FreezeTrainer's own among them."""
    shape, uninterrupted = whole
    resumed = trainer_for(tmp_path, shape, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=str(checkpoint(uninterrupted, 3)))
    assert_same_end(uninterrupted, resumed)


def test_a_missing_checkpoint_is_what_the_trainer_says_it_is(tmp_path):
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        trainer_for(tmp_path).train(resume_from_checkpoint=True)


def test_the_mean_loss_of_a_model_in_half_precision_goes_on_to_the_last_bit(tmp_path):
    """The Trainer adds up in full precision what a model in bfloat16 returns."""

    def run(folder, resume=None):
        trainer = trainer_for(folder, model=tiny_bert().to(torch.bfloat16), logging_steps=3, optim="sgd")
        trainer.train(resume_from_checkpoint=resume)
        return [entry["loss"] for entry in training_logs(trainer)]

    losses = run(tmp_path / "whole")
    for step in (1, 2, 4, 5):
        assert run(tmp_path / "part", str(tmp_path / "whole" / "run" / f"checkpoint-{step}")) == losses, step


def test_a_second_run_does_not_take_the_loss_window_of_the_resumed_one(tmp_path, whole):
    shape, uninterrupted = whole
    trainer = trainer_for(tmp_path, shape)
    trainer.train(resume_from_checkpoint=str(checkpoint(uninterrupted, 3)))
    fresh = trainer_for(tmp_path / "fresh", shape, model=tiny_bert())
    fresh.model.load_state_dict(trainer.model.state_dict())
    torch.manual_seed(0)
    trainer.train()
    torch.manual_seed(0)
    fresh.train()
    assert len(training_logs(trainer)) == len(training_logs(fresh)) == STEPS // 2


@pytest.mark.smoke
def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    trainer = trainer_for(
        tmp_path,
        save_strategy="steps",
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=text_rows(4),
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        learning_rate=0.5,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    reloaded = BertForSequenceClassification.from_pretrained(best)
    assert moved(weights(reloaded), trainer.model) == set()
