"""Resuming what another kind of Trainer saved: the same plan in a callback and in a FreezeTrainer."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, set_seed

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, PlanError, Plateau, Stage
from tests.models import text_rows, tiny_bert
from tests.training.staged import PLAN, STEPS, arguments, trainer, weights_of

SAVING = {"save_strategy": "steps", "save_steps": 3}


def with_callback(folder, plan=PLAN, **values):
    return trainer(folder, plan=plan, cls=Trainer, trainer={"callbacks": [FreezeCallback(plan)]}, **values)


def test_a_callback_refuses_the_checkpoint_of_a_freeze_trainer_with_the_difference(tmp_path) -> None:
    trainer(tmp_path, **SAVING).train()
    for resume in (True, str(tmp_path / "checkpoint-3")):
        with pytest.raises(PlanError, match=r"(?s)another plan than this run's.*\n-.*tensors"):
            with_callback(tmp_path, **SAVING).train(resume_from_checkpoint=resume)


def test_a_freeze_trainer_refuses_the_checkpoint_of_a_callback_with_the_difference(tmp_path) -> None:
    with_callback(tmp_path, **SAVING).train()
    with pytest.raises(PlanError, match=r"(?s)another plan than this run's.*\n\+.*tensors"):
        trainer(tmp_path, **SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("given", [str, Path])
def test_a_callback_resumes_from_a_folder_that_is_not_in_output_dir(tmp_path, given) -> None:
    waits = FreezePlan(
        trainable="head",
        stages=[Stage(plateau=Plateau("eval_loss", min_delta=9, restore_best=True), unfreeze="layers[-1]")],
    )
    values = {**SAVING, "eval_strategy": "steps", "eval_steps": 3}
    whole = with_callback(tmp_path / "one", waits, **values)
    whole.train()
    shutil.move(tmp_path / "one" / "checkpoint-3", tmp_path / "elsewhere")
    resumed = with_callback(tmp_path / "two", waits, **values)
    resumed.train(resume_from_checkpoint=given(tmp_path / "elsewhere"))
    after = weights_of(resumed.model)
    assert all(torch.equal(weight, after[name]) for name, weight in weights_of(whole.model).items())


class OutOfMemoryOnce(TrainerCallback):
    """Runs out of memory in one step of the first batch size."""

    def __init__(self):
        self.raised = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and not self.raised:
            self.raised = True
            raise RuntimeError("CUDA out of memory.")


def test_a_batch_size_that_does_not_fit_leaves_a_run_that_begins_anew_with_the_next(tmp_path) -> None:
    plan = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]")])
    made = trainer(tmp_path, plan=plan, trainer={"callbacks": [OutOfMemoryOnce()]}, auto_find_batch_size=True)
    made.train()
    assert made.state.global_step == STEPS
    assert made.state.train_batch_size < 4
    assert [entry["stage"] for entry in made.state.log_history if "stage" in entry][-1] > 0


def test_each_trial_of_a_search_has_its_own_plan(tmp_path) -> None:
    pytest.importorskip("optuna")
    set_seed(0)
    made = FreezeTrainer(
        args=arguments(tmp_path, max_steps=3, eval_strategy="epoch", trainable=["head"]),
        model_init=lambda: tiny_bert(layers=3),
        train_dataset=text_rows(20),
        eval_dataset=text_rows(8, seed=1),
    )
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append({name for name, p in model.named_parameters() if p.requires_grad})

    made.add_callback(Look())
    plans = iter([["head"], ["head", "layers[-1]"]])

    def space(trial):
        made.args.trainable = next(plans)
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)}

    made.hyperparameter_search(space, n_trials=2, backend="optuna", direction="minimize")
    assert len({frozenset(names) for names in seen}) == 2
