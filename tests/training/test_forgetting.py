"""`forget=True`: the optimizer's state of what freezes is let go, in memory and in checkpoints."""

import logging

import pytest
import torch

from hf_freeze import FreezePlan, PlanError, Stage, UnsupportedSetupError, preview
from hf_freeze.training.forgetting import refuse_forgetting
from tests.models import tiny_bert
from tests.reporting.test_preview_state import Held, wide_bert
from tests.training.runs import arguments, freeze_trainer, weights

STAGES = [
    Stage(step=2, unfreeze="layers[1]", freeze="layers[0]", forget=True),
    Stage(step=4, unfreeze="layers[0]", freeze="layers[1]", forget=True),
]
PLAN = FreezePlan(trainable=["head", "layers[0]"], stages=STAGES)
BY_STEP = [0, 0, 1, 1, 2, 2]
OPTIMIZERS = {
    "adamw_torch": None,
    "adamw_torch_fused": None,
    "adafactor": None,
    "sgd": None,
    "rmsprop": None,
    "adamw_8bit": "bitsandbytes",
    "adamw_torch_8bit": "torchao",
}


def run(model, folder, *, plan=PLAN, watch=None, max_steps=6, resume=None, **values):
    torch.manual_seed(0)
    callbacks = [] if watch is None else [watch]
    trainer = freeze_trainer(model, folder, freeze_plan=plan, max_steps=max_steps, callbacks=callbacks, **values)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def states(trainer) -> dict:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return {names[id(parameter)]: state for parameter, state in inner.state.items()}


@pytest.mark.filterwarnings("ignore")  # the packages' own
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_the_optimizer_holds_what_trains_and_no_more_as_preview_says(tmp_path, optim):
    if OPTIMIZERS[optim]:
        package = pytest.importorskip(OPTIMIZERS[optim])
    if optim == "adamw_8bit":
        # It keeps by id what the Trainer said of embeddings that are gone, and other weights may have these ids now.
        package.optim.GlobalOptimManager.get_instance().initialize()
    values = {"optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None}
    watch = Held()
    trainer = run(wide_bert(), tmp_path, watch=watch, **values)
    assert states(trainer).keys() == trainer.resolved_plan.stages[2]
    static = Held()
    run(wide_bert(), tmp_path, plan=FreezePlan(trainable=["head", "layers[0]"]), watch=static, **values)
    assert watch.state == static.state
    if optim not in ("adamw_8bit", "adamw_torch_8bit"):  # what their states share is counted once
        seen = preview(wide_bert(), arguments(tmp_path, **values), plan=PLAN)
        assert [seen.stages[stage].optimizer_bytes for stage in BY_STEP] == watch.state


def test_what_is_unfrozen_again_starts_fresh_and_the_log_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="hf_freeze")
    trainer = run(tiny_bert(), tmp_path)
    steps = {name: int(state["step"]) for name, state in states(trainer).items()}
    assert {steps[name] for name in steps if "layer.0" in name} == {2}
    assert {steps[name] for name in steps if "classifier" in name} == {6}
    assert "Forgot the optimizer's state of layers[0]." in caplog.text
    assert "Trains again, with fresh optimizer state: layers[0]." in caplog.text


def test_without_forget_the_state_is_kept(tmp_path):
    kept = [Stage(step=2, unfreeze="layers[1]", freeze="layers[0]")]
    trainer = run(tiny_bert(), tmp_path, plan=FreezePlan(trainable="layers[0]", stages=kept), max_steps=4)
    assert any("layer.0" in name for name in states(trainer))


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_a_checkpoint_holds_the_state_of_its_stage_and_resumes_bit_for_bit(tmp_path, step):
    values = {"save_strategy": "steps", "save_steps": 1, "weight_decay": 0.1}
    whole = run(tiny_bert(), tmp_path, **values)
    folder = tmp_path / "run" / f"checkpoint-{step}"
    saved = torch.load(folder / "optimizer.pt")
    assert len(saved["state"]) == len(whole.resolved_plan.stages[BY_STEP[step - 1]])
    resumed = run(tiny_bert(seed=1), tmp_path / "again", resume=str(folder))
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())


def test_a_checkpoint_of_the_plan_without_forget_is_that_of_another_plan(tmp_path):
    run(tiny_bert(), tmp_path, save_strategy="steps", save_steps=3, max_steps=3)
    kept = [Stage(step=stage.step, unfreeze=stage.unfreeze, freeze=stage.freeze) for stage in STAGES]
    other = FreezePlan(trainable=PLAN.trainable, stages=kept)
    with pytest.raises(PlanError, match="another plan"):
        run(tiny_bert(), tmp_path / "again", plan=other, resume=str(tmp_path / "run" / "checkpoint-3"))


@pytest.mark.filterwarnings("ignore")  # the packages' own
@pytest.mark.parametrize(
    ("optim", "package", "why"),
    [
        ("adagrad", "torch", "before its first step"),
        ("paged_adamw_8bit", "bitsandbytes", "pages its state"),
        ("schedule_free_adamw", "schedulefree", "counts its steps per group"),
    ],
)
def test_optimizers_that_cannot_let_go_are_refused_before_the_first_step(tmp_path, optim, package, why):
    pytest.importorskip(package)
    with pytest.raises(UnsupportedSetupError, match=why):
        run(tiny_bert(), tmp_path, optim=optim)


def test_deepspeed_is_refused_with_the_reason():
    with pytest.raises(UnsupportedSetupError, match="DeepSpeed keeps the state of all weights in flat buffers"):
        refuse_forgetting(PLAN.resolve(tiny_bert()), "DeepSpeed")


@pytest.mark.parametrize("values", [{"unfreeze": "head", "forget": True}, {"freeze": "head", "forget": "yes"}])
def test_forget_without_freeze_is_refused(values):
    with pytest.raises(PlanError, match="forget must be True or False"):
        Stage(step=1, **values)


def test_forget_of_what_does_not_train_is_refused():
    stage = Stage(step=1, unfreeze="layers[0]", freeze="layers[1]", forget=True)
    with pytest.raises(PlanError, match="freezes nothing that trains before it"):
        FreezePlan(trainable="head", stages=[stage]).resolve(tiny_bert())


def test_forget_is_written_and_read():
    assert FreezePlan.from_dict(PLAN.to_dict()) == PLAN


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "rmsprop"])
@pytest.mark.parametrize(
    "stages", [STAGES, STAGES[:1], [STAGES[0], Stage(step=4, unfreeze="layers[0]")]], ids=["back", "away", "both"]
)
def test_a_second_run_begins_with_the_state_of_its_first_stage(tmp_path, stages, optim):
    plan = FreezePlan(trainable=PLAN.trainable, stages=stages)
    trainer = run(wide_bert(), tmp_path, plan=plan, optim=optim)
    watch = Held()
    trainer.add_callback(watch)
    trainer.train()
    static = Held()
    run(wide_bert(), tmp_path, plan=FreezePlan(trainable=PLAN.trainable), watch=static, optim=optim)
    assert watch.state[:2] == static.state[:2]
