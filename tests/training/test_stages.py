"""What trains changes during one `train()` call."""

import pytest
import torch
from transformers import Trainer

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, PlanError, Stage
from tests.models import tiny_bert
from tests.training.staged import PLAN, STEPS, trainer

# optimizer step (1 is the first) -> stage; five steps make an epoch
STAGE_OF_STEP = [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_exactly_the_parameters_of_the_stage_move_in_each_step(tmp_path, accumulation) -> None:
    made = trainer(tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4 // accumulation)
    names = PLAN.resolve(made.model).names
    made.train()

    for step, stage in enumerate(STAGE_OF_STEP, start=1):
        assert made.watch.moved(step) == names[stage], f"step {step}"


def test_a_callback_on_a_plain_trainer_moves_the_same_parameters(tmp_path) -> None:
    model = tiny_bert(layers=3)
    names = PLAN.resolve(model).names
    made = trainer(tmp_path, model=model, cls=Trainer, trainer={"callbacks": [FreezeCallback(PLAN)]})
    made.train()

    for step, stage in enumerate(STAGE_OF_STEP, start=1):
        assert made.watch.moved(step) == names[stage], f"step {step}"


def test_the_stage_and_its_parameters_are_logged(tmp_path) -> None:
    made = trainer(tmp_path)
    resolved = PLAN.resolve(made.model)
    made.train()

    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert [entry["stage"] for entry in logs] == STAGE_OF_STEP
    sizes = [sum(resolved.sizes[name] for name in names) for names in resolved.stages]
    assert [entry["trainable_params"] for entry in logs] == [sizes[stage] for stage in STAGE_OF_STEP]


def test_groups_never_change_and_frozen_parameters_have_neither_gradient_nor_state(tmp_path) -> None:
    plan = FreezePlan(trainable="head", stages=[Stage(step=6, unfreeze="layers[-1]")])
    made = trainer(tmp_path, plan=plan, max_steps=5)
    made.create_optimizer()
    before = [(group["name"], [id(p) for p in group["params"]]) for group in made.optimizer.param_groups]
    made.train()

    after = [(group["name"], [id(p) for p in group["params"]]) for group in made.optimizer.param_groups]
    assert before == after
    thawing = [p for n, p in made.model.named_parameters() if n.startswith("bert.encoder.layer.2.")]
    assert thawing
    assert all(p.grad is None and p not in made.optimizer.state for p in thawing)


def test_a_frozen_part_is_in_eval_mode_exactly_while_it_is_frozen(tmp_path) -> None:
    modes = []

    class Watch(torch.nn.Module):
        pass

    plan = FreezePlan(
        trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(step=4, freeze="layers[-1]")]
    )
    made = trainer(tmp_path, plan=plan, max_steps=6)
    layer = made.model.bert.encoder.layer[2]
    layer.register_forward_pre_hook(lambda module, args: modes.append(module.attention.self.dropout.training))
    made.train()

    assert modes == [False, False, True, True, False, False]


def test_two_train_calls_start_the_plan_again(tmp_path) -> None:
    made = trainer(tmp_path)
    names = PLAN.resolve(made.model).names
    made.train()
    made.train()

    for step, stage in enumerate(STAGE_OF_STEP, start=1):
        assert made.watch.moved(step) == names[stage], f"step {step}"


def test_a_stage_that_changes_nothing_is_refused(tmp_path) -> None:
    with pytest.raises(PlanError, match="changes nothing"):
        trainer(tmp_path / "out", plan=FreezePlan(trainable="head", stages=[Stage(step=1, unfreeze="head")]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(step=5, unfreeze="norms"), Stage(epoch=1, unfreeze="all")], "at the same step as"),
        ([Stage(step=6, unfreeze="norms"), Stage(epoch=1, unfreeze="all")], "starts after the next one"),
    ],
)
def test_stages_out_of_order_or_at_one_time_are_refused_before_the_first_step(tmp_path, stages, message) -> None:
    made = trainer(tmp_path, plan=FreezePlan(trainable="head", stages=stages))
    with pytest.raises(PlanError, match=message):
        made.train()
    assert made.state.global_step == 0


def test_a_stage_past_the_end_of_the_run_is_warned_of_and_never_starts(tmp_path, caplog) -> None:
    made = trainer(tmp_path, plan=FreezePlan(trainable="head", stages=[Stage(epoch=9, unfreeze="all")]))
    made.train()

    assert "ends after 12 steps, before these stages start: epoch 9" in caplog.text
    assert made.watch.moved(STEPS) == {"classifier.weight", "classifier.bias"}


def test_gradual_unfreezing_thaws_from_the_top_down(tmp_path) -> None:
    made = trainer(tmp_path, plan=None, freeze_recipe="gradual:every_epochs=0.4", cls=FreezeTrainer)
    made.train()

    top = {f"bert.encoder.layer.{index}" for index in range(3)}
    seen = [
        sorted({layer for layer in top if any(n.startswith(layer) for n in made.watch.moved(step))})
        for step in (1, 3, 5, 7)
    ]
    assert [len(layers) for layers in seen] == [0, 1, 2, 3]
    assert seen[1] == ["bert.encoder.layer.2"]
    assert "bert.pooler.dense.weight" in made.watch.moved(3)
    assert "bert.embeddings.word_embeddings.weight" not in made.watch.moved(8)
    assert "bert.embeddings.word_embeddings.weight" in made.watch.moved(9)


def test_stages_after_the_end_of_a_run_are_told_once(tmp_path, caplog) -> None:
    trainer(tmp_path, plan=FreezePlan(trainable="head", stages=[Stage(step=99, unfreeze="all")])).train()
    assert [record.getMessage() for record in caplog.records if "step 99" in record.getMessage()] == [
        "The run ends after 12 steps, before these stages start: step 99."
    ]
