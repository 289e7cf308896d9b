"""Runs under a rotation: a few layers at a time, with optimizer state of those alone."""

import logging

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_freeze import (
    FreezeCallback,
    FreezePlan,
    FreezeViolation,
    PlanError,
    UnsupportedSetupError,
    param_groups,
    preview,
    recipes,
)
from hf_freeze.training.digests import digests
from hf_freeze.training.run import FreezeRun, FreezeSettings
from hf_freeze.training.trained_file import TRAINED_NAME
from tests.models import text_batch, text_rows, tiny_llama
from tests.nearness import assert_near
from tests.reporting.test_preview_state import Held
from tests.training.runs import AtStep, arguments, freeze_trainer, weights
from tests.training.staged import Snapshots

PLAN = recipes.rotate(layers=2, every=3, seed=1)
STEPS = 14  # a cycle of three periods, and part of another


def model(**values):
    return tiny_llama(layers=5, **values)


def run(folder, *, plan=PLAN, watch=None, max_steps=STEPS, resume=None, seed=0, **values):
    torch.manual_seed(0)
    callbacks = [] if watch is None else [watch]
    trainer = freeze_trainer(
        model(seed=seed), folder, freeze_plan=plan, max_steps=max_steps, callbacks=callbacks, **values
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_step(trainer) -> list[frozenset[str]]:
    resolved = trainer.resolved_plan
    return [resolved.trains(0, step // 3) for step in range(STEPS)]


def test_each_step_moves_the_layers_of_its_period_and_the_optimizer_holds_their_state_alone(tmp_path):
    moves, held = Snapshots(), Held()
    trainer = run(tmp_path, watch=moves)
    assert [moves.moved(step) for step in range(1, STEPS + 1)] == by_step(trainer)
    run(tmp_path, watch=held)
    named = dict(trainer.model.named_parameters())
    values = [2 * sum(4 * named[name].numel() for name in names) for names in by_step(trainer)]
    steps = [4 * len(names) for names in by_step(trainer)]
    assert held.state == [value + step for value, step in zip(values, steps, strict=True)]
    assert held.gradients == [value // 2 for value in values]
    assert preview(model(), arguments(tmp_path), plan=recipes.rotate(layers=2, every=1)).stages[
        0
    ].optimizer_bytes == max(held.state)


@pytest.mark.parametrize("step", [4, 5, 6, 7, 13])
def test_it_resumes_bit_for_bit_in_mid_period_and_between_periods(tmp_path, step):
    values = {"save_strategy": "steps", "save_steps": 1, "weight_decay": 0.1, "unfreeze_warmup": 2}
    whole = run(tmp_path, **values)
    folder = tmp_path / "run" / f"checkpoint-{step}"
    assert len(torch.load(folder / "optimizer.pt")["state"]) == len(by_step(whole)[step - 1])
    resumed = run(tmp_path / "again", resume=str(folder), seed=1, **values)
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())


def test_the_log_has_the_rates_of_what_trains_and_its_ramp_at_each_unfreezing(tmp_path):
    plan = recipes.rotate(layers=1, every=3, order="ascending")
    trainer = run(tmp_path, plan=plan, unfreeze_warmup=2, lr_scheduler_type="constant", max_steps=8)
    logs = [entry for entry in trainer.state.log_history if "lr/trainable" in entry]
    rates = [{name: rate for name, rate in entry.items() if name.startswith("lr/layers")} for entry in logs]
    assert rates[:3] == [{"lr/layers.0": 0.01}] * 3
    assert rates[3:6] == [{"lr/layers.1": 0.005}, {"lr/layers.1": 0.01}, {"lr/layers.1": 0.01}]
    assert logs[0]["trainable_params"] == trainer.resolved_plan.size_of(trainer.resolved_plan.trains(0))


def test_layers_that_go_on_into_the_next_cycle_keep_their_state(tmp_path):
    trainer = run(tmp_path, plan=recipes.rotate(layers=5, every=3))
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert {int(state["step"]) for state in inner.state.values()} == {STEPS}


def test_the_log_says_what_begins(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="hf_freeze")
    run(tmp_path, plan=recipes.rotate(layers=2, every=3, seed=1), max_steps=10)
    assert (
        "Step 3: period 1 of the rotation begins. Trains from here on, with fresh optimizer state: layers[3:5]."
        in caplog.text
    )
    assert (
        "Step 9: period 3 of the rotation begins. Trains from here on, with fresh optimizer state: layers[1]; goes on: layers[0]."
        in caplog.text
    )


def test_a_ramp_is_refused_where_groups_hold_layers_of_several_periods(tmp_path):
    args = arguments(tmp_path, cls=TrainingArguments, max_steps=STEPS)
    trainer = Trainer(model(), args, train_dataset=text_rows(), callbacks=[FreezeCallback(PLAN, unfreeze_warmup=2)])
    with pytest.raises(PlanError, match="group 0 of the optimizer mixes parameters of several stages or periods"):
        trainer.train()


def test_periods_as_long_as_the_run_are_refused(tmp_path):
    with pytest.raises(PlanError, match="a period has 14 steps, but the run has only 14"):
        run(tmp_path, plan=recipes.rotate(every=STEPS))


def test_an_optimizer_that_keeps_all_state_is_refused(tmp_path):
    with pytest.raises(UnsupportedSetupError, match="builds the state of all weights before its first step"):
        run(tmp_path, optim="adagrad")


def test_rates_by_layer_hold_under_a_rotation(tmp_path):
    plan = FreezePlan(trainable="head", stages=PLAN.stages)
    trainer = run(tmp_path, plan=plan, layer_lr_decay=0.5, lr_scheduler_type="constant")
    seen = {n: r for entry in trainer.state.log_history for n, r in entry.items() if n.startswith("lr/layers")}
    assert seen == {f"lr/layers.{layer}": pytest.approx(0.01 * 0.5 ** (5 - layer)) for layer in range(5)}


@pytest.mark.parametrize("step", [2, 3, 4, 8])
def test_what_trained_up_to_then_is_saved_and_the_resumed_run_ends_bit_for_bit(tmp_path, step):
    values = {"save_strategy": "steps", "save_steps": 1, "save_trained_only": True}
    model().save_pretrained(tmp_path / "base")

    def train(folder, **more):
        loaded = type(model()).from_pretrained(tmp_path / "base")
        trainer = freeze_trainer(loaded, folder, freeze_plan=PLAN, max_steps=STEPS, **values)
        trainer.train(**more)
        return trainer

    whole = train(tmp_path)
    stored = load_file(tmp_path / "run" / f"checkpoint-{step}" / TRAINED_NAME)
    assert stored.keys() == frozenset().union(*by_step(whole)[:step])
    again = train(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(again.model).items())
    last = load_file(tmp_path / "again" / "run" / f"checkpoint-{STEPS}" / TRAINED_NAME)
    assert last.keys() == whole.resolved_plan.ever_trainable


def test_train_can_be_called_again_and_begins_with_the_first_period(tmp_path):
    trainer = run(tmp_path)
    watch = Held()
    trainer.add_callback(watch)
    trainer.train()
    first = Held()
    run(tmp_path, watch=first)
    assert watch.state == first.state


@pytest.mark.filterwarnings("ignore:.*memory")
def test_a_run_starts_over_after_it_ran_out_of_memory(tmp_path):
    failed = []

    class OutOfMemory(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5 and not failed:
                failed.append(state.global_step)
                raise RuntimeError("CUDA out of memory.")

    trainer = run(tmp_path, watch=OutOfMemory(), auto_find_batch_size=True)
    assert (failed, trainer.state.global_step) == ([5], STEPS)


@pytest.mark.parametrize("accelerated", [False, True])
def test_in_a_loop_of_ones_own_gradients_and_state_are_of_what_trains_alone(accelerated):
    torch.manual_seed(0)
    made = model()
    resolved = PLAN.resolve(made)
    optimizer = torch.optim.AdamW(param_groups(made, lr=0.01, plan=PLAN))
    prepared, stepped = Accelerator(cpu=True).prepare(made, optimizer) if accelerated else (made, optimizer)
    planned = FreezeRun(resolved, prepared, stepped, settings=FreezeSettings(), max_steps=STEPS, steps_per_epoch=None)
    planned.begin()
    for step in range(STEPS):
        planned.step_begins(step)
        trains = resolved.trains(0, step // 3)
        with_gradient = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
        assert with_gradient <= trains  # those of the step before, which are zeros, are gone where they froze
        prepared(**text_batch()).loss.backward()
        planned.before_optimizer_step()
        stepped.step()
        planned.after_optimizer_step()
        optimizer.zero_grad(set_to_none=False)
        named = dict(made.named_parameters())
        assert {name for name, parameter in named.items() if parameter.grad is not None} == trains
        assert {name for name, parameter in named.items() if parameter in optimizer.state} == trains
    planned.conclude()


@pytest.mark.parametrize("layer", [0, 4])
def test_a_change_of_a_layer_while_it_is_frozen_is_proved_at_the_end_of_the_period(tmp_path, layer):
    def change(model, optimizer):
        with torch.no_grad():
            model.model.layers[layer].mlp.up_proj.weight[0, 0].add_(1e-3)

    frozen_at = {0: 4, 4: 1}[layer]  # layer 4 trains in the next period
    with pytest.raises(FreezeViolation, match=rf"layers.{layer}.mlp.up_proj.weight' changed although frozen"):
        run(tmp_path, watch=AtStep(change, step=frozen_at))


def test_where_a_period_begins_a_weight_that_stays_frozen_is_read_once(tmp_path, monkeypatch):
    read: list[str] = []

    def noting(tensors, **given):
        read.extend(tensors)
        return digests(tensors, **given)

    monkeypatch.setattr("hf_freeze.training.proof.digests", noting)
    run(tmp_path, watch=AtStep(lambda model, optimizer: read.clear(), step=3), max_steps=4)
    # Where the period begins, and at the end of the run.
    assert read.count("model.embed_tokens.weight") == 2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_it_ends_the_same_on_stored_features_with_recomputation_and_in_parts_of_a_batch(tmp_path):
    def ends(name, **values):
        return weights(run(tmp_path / name, adam_epsilon=1e-3, **values).model)

    expected = ends("plain")
    stored = ends("stored", cache_frozen=True, cache_frozen_always=True)
    recomputed = ends("recomputed", gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    for found in (stored, recomputed):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert_near(ends("parts", per_device_train_batch_size=2, gradient_accumulation_steps=2), expected, floor=0.1)


@pytest.mark.parametrize("always", [["head", "embeddings[-3:]"], ["embeddings", "norms"], None], ids=str)
def test_whatever_trains_throughout_it_resumes_bit_for_bit(tmp_path, always):
    values = {"plan": recipes.rotate(layers=2, every=3, seed=1, always=always), "weight_decay": 0.1}
    whole = weights(run(tmp_path, save_strategy="steps", save_steps=5, **values).model)
    resumed = run(tmp_path / "again", resume=str(tmp_path / "run" / "checkpoint-5"), seed=1, **values)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(resumed.model).items())


def test_the_layers_of_a_lora_take_turns_with_their_adapters_and_resume_bit_for_bit(tmp_path):
    def train(folder, **more):
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
        torch.manual_seed(0)
        made = get_peft_model(model(), lora)
        trainer = freeze_trainer(made, folder, freeze_plan=PLAN, max_steps=9, save_strategy="steps", save_steps=4)
        trainer.train(**more)
        return trainer

    whole = train(tmp_path)
    first = whole.resolved_plan.trains(0, 0)
    assert {"lora_A", "base_layer"} <= {part for name in first for part in name.split(".")}
    resumed = train(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    expected = weights(whole.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed.model).items())


@pytest.mark.parametrize("changed", [{"every": 4}, {"seed": 2}, {"layers": 1}, {"order": "ascending"}])
def test_a_checkpoint_of_another_rotation_is_that_of_another_plan(tmp_path, changed):
    run(tmp_path, save_strategy="steps", save_steps=4, max_steps=4)
    other = recipes.rotate(**{"layers": 2, "every": 3, "seed": 1, **changed})
    with pytest.raises(PlanError, match="another plan"):
        run(tmp_path / "again", plan=other, resume=str(tmp_path / "run" / "checkpoint-4"))
