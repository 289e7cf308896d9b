"""Weights do not depend on whether, when and how often a run evaluates, predicts and saves."""

import random

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, default_data_collator

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, Plateau, Stage
from tests.models import text_rows, tiny_bert
from tests.training.staged import PLAN, losses, optimizer_bytes, trainer, weights_of

STEPS = 12  # 5 an epoch


def draws(prediction):
    """A metric that moves every generator."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    return {"drawn": random.random()}


class Asks(TrainerCallback):
    """Evaluates and predicts by itself, between steps."""

    def __init__(self):
        self.trainer = None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.trainer.evaluate()
            self.trainer.predict(text_rows(4))


def run(folder, kind="mixin", resume=None, seed=0, plan=PLAN, callbacks=(), **values):
    extra = {"compute_metrics": draws, "callbacks": list(callbacks)}
    cls = FreezeTrainer if kind == "mixin" else Trainer
    if kind == "callback":
        extra["callbacks"].append(FreezeCallback(plan))
    model = tiny_bert(layers=3, seed=seed)
    made = trainer(folder, model=model, plan=plan, cls=cls, trainer=extra, **values)
    for callback in callbacks:
        callback.trainer = made
    made.train(resume_from_checkpoint=resume)
    return made


def assert_same_weights(one, other):
    after = weights_of(other.model)
    assert [name for name, weight in weights_of(one.model).items() if not torch.equal(weight, after[name])] == []


EVALUATIONS = {
    "each epoch": {"eval_strategy": "epoch"},
    "each third step": {"eval_strategy": "steps", "eval_steps": 3},
    "at the start": {"eval_strategy": "epoch", "eval_on_start": True},
    "with saves": {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": False},
    "with workers": {"eval_strategy": "steps", "eval_steps": 4, "dataloader_num_workers": 2},
}


@pytest.mark.parametrize("kind", ["mixin", "callback"])
@pytest.mark.parametrize("values", EVALUATIONS.values(), ids=EVALUATIONS)
def test_evaluating_changes_no_weight(tmp_path, kind, values) -> None:
    workers = {name: value for name, value in values.items() if name == "dataloader_num_workers"}
    assert_same_weights(run(tmp_path / "never", kind, **workers), run(tmp_path / "some", kind, **values))


@pytest.mark.smoke
def test_evaluations_that_a_callback_asks_for_change_no_weight(tmp_path) -> None:
    assert_same_weights(run(tmp_path / "never"), run(tmp_path / "some", callbacks=[Asks()]))


def test_outside_of_training_random_numbers_move_on(tmp_path) -> None:
    made = run(tmp_path)
    before = torch.get_rng_state()
    made.evaluate()
    assert not torch.equal(before, torch.get_rng_state())


def masking(rows):
    """A collator that draws random numbers, as that of masked language modelling does."""
    batch = default_data_collator(rows)
    batch["input_ids"][torch.rand(batch["input_ids"].shape) < 0.3] = 7
    return batch


def test_a_collator_that_draws_random_numbers_resumes_bit_equal_at_the_end_of_an_epoch(tmp_path) -> None:
    values = {"trainer": {"data_collator": masking}, "eval_strategy": "epoch", "save_strategy": "epoch"}
    whole = trainer(tmp_path, **values)
    whole.train()
    for step in (5, 10):
        values = {"trainer": {"data_collator": masking}, "eval_strategy": "epoch"}
        resumed = trainer(tmp_path, model=tiny_bert(layers=3, seed=1), **values)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_same_weights(whole, resumed)


@pytest.mark.parametrize("kind", ["mixin", "callback"])
def test_an_evaluation_that_is_made_up_for_draws_what_the_missed_one_drew(tmp_path, kind) -> None:
    def drawn(prediction):
        return {"drawn": float(torch.rand(()))}

    def evaluations(folder, resume=None, seed=0, **values):
        freezing = [FreezeCallback(PLAN)] if kind == "callback" else []
        extra = {"trainer": {"compute_metrics": drawn, "callbacks": freezing}, "model": tiny_bert(layers=3, seed=seed)}
        cls = FreezeTrainer if kind == "mixin" else Trainer
        made = trainer(folder, cls=cls, eval_strategy="epoch", **extra, **values)
        torch.manual_seed(seed)
        made.train(resume_from_checkpoint=resume)
        return [(entry["step"], entry["eval_drawn"]) for entry in made.state.log_history if "eval_drawn" in entry]

    whole = evaluations(tmp_path, save_strategy="steps", save_steps=5)
    assert evaluations(tmp_path, str(tmp_path / "checkpoint-5"), seed=1) == whole


class StopAtLog(TrainerCallback):
    """Stops a run where random states have been noted, after a step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["mixin", "callback"])
def test_after_an_interrupted_run_evaluations_move_random_numbers_on_and_see_no_run(tmp_path, kind) -> None:
    stop, freezing = StopAtLog(), FreezeCallback(WAITS)
    cls, given = (FreezeTrainer, [stop]) if kind == "mixin" else (Trainer, [freezing, stop])
    made = trainer(tmp_path, plan=WAITS, cls=cls, trainer={"callbacks": given}, eval_strategy="epoch")
    with pytest.raises(KeyboardInterrupt):
        made.train()
    for look in (lambda: made.predict(text_rows(4)), made.evaluate):
        before = torch.get_rng_state()
        look()
        assert not torch.equal(before, torch.get_rng_state())
    freezing = next(one for one in made.callback_handler.callbacks if isinstance(one, FreezeCallback))
    assert freezing.stage is None
    assert freezing.state()["attributes"]["saved"]["run"]["watch"] is None


WAITS = FreezePlan(
    trainable="head",
    stages=[Stage(plateau=Plateau("eval_loss", patience=1, min_delta=1e9, restore_best=True), unfreeze="layers[-1]")],
)
RUNS = {
    "stages": ("mixin", PLAN, {}),
    "plateau": ("mixin", WAITS, {}),
    "cache": ("mixin", FreezePlan(trainable="head"), {"cache_frozen": True, "cache_frozen_always": True}),
    "callback": ("callback", PLAN, {}),
    "workers": ("mixin", PLAN, {"dataloader_num_workers": 2}),
    "callback, plateau": ("callback", WAITS, {}),
    "evaluating at the start": ("mixin", WAITS, {"eval_on_start": True}),
    "scheduler by metric": ("mixin", PLAN, {"lr_scheduler_type": "reduce_lr_on_plateau"}),
}

SLOW = {"workers": pytest.mark.slow}  # each epoch and evaluation starts processes


@pytest.mark.parametrize("strategy", ["epoch", pytest.param("steps", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in RUNS])
def test_resumed_from_any_checkpoint_a_run_that_evaluates_ends_bit_equal(tmp_path, name, strategy) -> None:
    kind, plan, values = RUNS[name]
    values = {**values, "eval_strategy": strategy, "eval_steps": 3, "save_strategy": "steps", "save_steps": 1}
    whole = run(tmp_path, kind, plan=plan, **values)
    for step in (3, 4, 5, 10):  # after an evaluation, between, and at the ends of epochs, which are saved before it
        folder = str(tmp_path / f"checkpoint-{step}")
        resumed = run(tmp_path, kind, resume=folder, seed=step, plan=plan, **{**values, "save_strategy": "no"})
        assert_same_weights(whole, resumed)
        assert optimizer_bytes(whole) == optimizer_bytes(resumed), step
        trained = [[entry for entry in losses(made) if "loss" in entry] for made in (whole, resumed)]
        assert trained[0] == trained[1], step
