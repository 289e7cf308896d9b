"""Rows of a matrix under optimizers that hold the whole of it, as a plain Trainer's does."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezeError, FreezePlan, Stage, param_groups, unfreeze
from tests.models import tiny_bert
from tests.reporting.test_preview_state import Held, wide_bert
from tests.training.runs import arguments, freeze_trainer, moved, weights
from tests.training.test_rows import NEW, ROWS, WORDS, moved_rows

PLAN = {"trainable": ["head", NEW, "embeddings[5:7]"]}
STAGES = [Stage(step=2, unfreeze="embeddings[-3:]"), Stage(step=4, freeze="embeddings[-1]")]
SAVING = {"max_steps": 6, "weight_decay": 0.1, "save_strategy": "steps", "save_steps": 3}


def plain(model, folder, *, plan=PLAN, callbacks=(), optimizers=(None, None), **values):
    args = arguments(folder, cls=TrainingArguments, **values)
    callbacks = [FreezeCallback(**plan), *callbacks]
    return Trainer(model, args, train_dataset=ROWS, callbacks=callbacks, optimizers=optimizers)


def run(model, folder, *, resume=None, **values):
    trainer = plain(model, folder, **values)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def whole_steps(monkeypatch):
    """Let optimizers step whole matrices, as they did before."""
    monkeypatch.setattr("hf_freeze.training.run.step_rows_alone", lambda *_: lambda: None)


@pytest.mark.filterwarnings("ignore")  # the packages' own
@pytest.mark.parametrize(
    ("optim", "package"),
    [
        ("adamw_torch", "torch"),
        ("adamw_torch_fused", "torch"),
        ("adafactor", "torch"),
        ("sgd", "torch"),
        ("adagrad", "torch"),
        ("adamw_torch_8bit", "torchao"),
        ("adamw_8bit", "bitsandbytes"),
    ],
)
def test_a_plain_trainer_has_moments_for_the_rows_that_train_and_moves_no_others(tmp_path, optim, package):
    pytest.importorskip(package)
    values = {"optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None, "weight_decay": 0.1}
    plan, held, expected = {"trainable": ["head", "embeddings[5:60]"]}, Held(), Held()
    model = wide_bert()
    before = weights(model)
    run(model, tmp_path, plan=plan, callbacks=[held], **values)
    assert set(moved_rows(before, model)[WORDS]) <= set(range(5, 60))
    twin = wide_bert()
    freeze_trainer(twin, tmp_path / "twin", rows=ROWS, callbacks=[expected], **plan, **values).train()
    assert held.state == expected.state
    assert moved(weights(twin), model) == set()


@pytest.mark.parametrize("plan", [PLAN, {"plan": FreezePlan(trainable="head", stages=STAGES)}])
def test_a_run_of_a_plain_trainer_resumes_bit_equal_with_a_place_for_each_tensor(tmp_path, plan):
    whole = run(tiny_bert(), tmp_path, plan=plan, **SAVING)
    folder = tmp_path / "run" / "checkpoint-3"
    saved = torch.load(folder / "optimizer.pt")
    assert not (folder / "beside_model.safetensors").exists()
    assert [len(group["params"]) for group in saved["param_groups"]] == [2, 1]
    resumed = run(tiny_bert(seed=1), tmp_path / "again", plan=plan, resume=str(folder), **SAVING)
    assert moved(weights(whole.model), resumed.model) == set()


def test_a_checkpoint_of_steps_over_the_whole_matrix_is_gone_on_with(tmp_path, monkeypatch):
    values = {"optim": "adamw_torch", **SAVING}  # the fused one rounds by where an element lies
    whole = run(tiny_bert(), tmp_path, **values)
    with monkeypatch.context() as before:
        whole_steps(before)
        run(tiny_bert(), tmp_path / "before", **values)
    resumed = run(tiny_bert(), tmp_path / "again", resume=str(tmp_path / "before" / "run" / "checkpoint-3"), **values)
    assert moved(weights(whole.model), resumed.model) == set()


def test_a_state_of_the_whole_matrix_that_does_not_tell_its_rows_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        whole_steps(before)
        run(tiny_bert(), tmp_path, optim="adafactor", **SAVING)
    folder = tmp_path / "run" / "checkpoint-3"
    model = tiny_bert()
    with pytest.raises(
        FreezeError, match=r"cannot be separated: the optimizer stepped the whole matrix.* delete optimizer"
    ):
        run(model, tmp_path / "again", optim="adafactor", resume=str(folder), **SAVING)


def test_a_state_that_was_cut_into_other_rows_is_refused(tmp_path):
    run(tiny_bert(), tmp_path, plan={"trainable": ["embeddings[61:63]", "embeddings[63]"]}, **SAVING)
    folder = str(tmp_path / "run" / "checkpoint-3")
    with pytest.raises(FreezeError, match=r"holds '.*\[61:63\]', but this run trains '.*\[61:64\]'"):
        run(tiny_bert(), tmp_path / "again", plan={"trainable": NEW}, resume=folder, **SAVING)


def test_a_state_that_is_asked_for_and_loaded_in_mid_run_changes_nothing(tmp_path):
    values = {"optim": "adamw_torch", **SAVING}
    whole = run(tiny_bert(), tmp_path, **values)

    class Reload(FreezeCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            super().on_step_end(args, state, control, optimizer=optimizer, **kwargs)
            optimizer.load_state_dict(optimizer.state_dict())

    trainer = plain(tiny_bert(), tmp_path / "again", **values)
    trainer.remove_callback(FreezeCallback)
    trainer.add_callback(Reload(**PLAN))
    trainer.train()
    assert moved(weights(whole.model), trainer.model) == set()


def test_a_second_run_goes_on_with_the_moments_of_the_first(tmp_path):
    def runs(trainer):
        for _ in range(2):
            trainer.train()
        return trainer.model

    both = runs(freeze_trainer(tiny_bert(), tmp_path, rows=ROWS, **PLAN))
    assert moved(weights(both), runs(plain(tiny_bert(), tmp_path / "plain"))) == set()


def test_without_the_callback_the_whole_matrix_trains_again(tmp_path):
    trainer = run(tiny_bert(), tmp_path)
    trainer.remove_callback(FreezeCallback)
    unfreeze(trainer.model)
    before = weights(trainer.model)
    trainer.train()
    assert {5, 6, 7, 8} <= set(moved_rows(before, trainer.model)[WORDS])


class Inside(torch.optim.Optimizer):
    """Steps through another optimizer, as SAM and Lookahead do."""

    def __init__(self, params) -> None:
        self.base = torch.optim.AdamW(params, lr=0.01, weight_decay=0.1)
        super().__init__(self.base.param_groups, {})
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        return self.base.step(closure)


def test_an_optimizer_inside_another_keeps_the_matrix_and_moves_the_rows_alone(tmp_path):
    model = tiny_bert()
    before = weights(model)
    optimizer = Inside(model.parameters())
    run(model, tmp_path, optimizers=(optimizer, None))
    assert moved_rows(before, model)[WORDS] == [5, 6, 61, 62, 63]
    assert optimizer.base.state[model.get_parameter(WORDS)]["exp_avg"].shape == (64, 16)


def with_groups(model, folder):
    """Rows have a rate of their own in a user's optimizer, and the plan trains the whole matrix."""
    plan = FreezePlan(trainable=["head", WORDS])
    args = arguments(folder, cls=TrainingArguments, **SAVING)
    optimizer = torch.optim.AdamW(param_groups(model, args, plan=plan, group_lrs={NEW: 0.05}))
    return Trainer(model, args, train_dataset=ROWS, callbacks=[FreezeCallback(plan)], optimizers=(optimizer, None))


def test_rows_may_have_a_rate_of_their_own_in_a_users_optimizer(tmp_path):
    whole = with_groups(tiny_bert(), tmp_path)
    whole.train()
    assert {f"lr/{NEW}", "lr/trainable"} <= whole.state.log_history[0].keys()
    resumed = with_groups(tiny_bert(seed=1), tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert moved(weights(whole.model), resumed.model) == set()
