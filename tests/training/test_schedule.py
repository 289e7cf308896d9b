"""The learning rate of every group in every step, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer

from hf_freeze import FreezeCallback, FreezePlan, PlanError, Stage, param_groups, recipes
from hf_freeze.plan.recipes import fine_tune
from hf_freeze.training.schedule import rate_factor, warmup_steps
from tests.training.runs import training_logs
from tests.training.staged import STEPS, losses, trainer

RATE = 1e-2
PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=3, unfreeze="layers[-1]"), Stage(step=8, unfreeze="all", freeze="layers[-1]")]
)
FROZEN = 0  # what the rate of a frozen group is taken for; nothing is logged of it

# Step (0 is the first) -> factor of the group that trains in these stages, with a warmup of 2 steps.
GATES = {
    "trainable from the start": [1.0] * 12,
    "trainable in stage 1": [0, 0, 0, 0.5, 1, 1, 1, 1, 0, 0, 0, 0],
    "trainable from stage 2": [0] * 8 + [0.5, 1, 1, 1],
}


def linear(step: int) -> float:
    return min(step / 2, 1) if step < 2 else (STEPS - step) / (STEPS - 2)


def cosine(step: int) -> float:
    return step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))


def constant(step: int) -> float:
    return min(step / 2, 1)


def polynomial(step: int) -> float:
    end = 1e-7 / RATE
    return step / 2 if step < 2 else (1 - end) * (1 - (step - 2) / (STEPS - 2)) ** 1.0 + end


def stable_decay(step: int) -> float:
    if step < 2:
        return step / 2
    return 1.0 if step < 8 else max(0.0, 0.5 * (1 + math.cos(math.pi * (step - 8) / 4)))


SCHEDULES = {
    "linear": (linear, {}),
    "cosine": (cosine, {}),
    "constant_with_warmup": (constant, {}),
    "polynomial": (polynomial, {}),
    "warmup_stable_decay": (stable_decay, {"num_decay_steps": 4}),
}


def rates(made: Trainer) -> dict[str, list[float]]:
    entries = [entry for entry in made.state.log_history if "loss" in entry]
    names = dict.fromkeys(name for entry in entries for name in entry if name.startswith("lr/"))
    return {name.removeprefix("lr/"): [entry.get(name, FROZEN) for entry in entries] for name in names}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_group_follows_the_schedule_times_its_gate(tmp_path, name) -> None:
    schedule, options = SCHEDULES[name]
    made = trainer(
        tmp_path,
        plan=PLAN,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
        warmup_steps=2,
        unfreeze_warmup=2,
        learning_rate=RATE,
    )
    made.train()

    found = rates(made)
    assert found.keys() == GATES.keys()
    for group, trace in found.items():
        gate = GATES[group]
        expected = [RATE * schedule(step) * gate[step] for step in range(STEPS)]
        assert trace == pytest.approx(expected, rel=1e-6, abs=1e-12), group


def test_what_is_frozen_has_no_rate_in_the_log_and_what_trains_at_a_rate_of_0_has(tmp_path) -> None:
    values = {"lr_scheduler_type": "linear", "warmup_steps": 2, "unfreeze_warmup": 2, "learning_rate": RATE}
    made = trainer(tmp_path, plan=PLAN, **values)
    made.train()
    entries = [entry for entry in made.state.log_history if "loss" in entry]
    logged = [sorted(name for name in entry if name.startswith("lr/")) for entry in entries]
    gated = [sorted(f"lr/{group}" for group, gate in GATES.items() if gate[step]) for step in range(STEPS)]
    assert logged == gated
    assert entries[0]["lr/trainable from the start"] == 0  # the first step of the warmup


@pytest.mark.parametrize("same", [True, False])
def test_a_group_and_its_part_without_decay_are_logged_once_if_their_rates_are_equal(tmp_path, same) -> None:
    made = trainer(tmp_path, plan=None, trainable=["head"], lr_scheduler_type="constant", learning_rate=RATE)
    made.create_optimizer()
    if not same:
        (part,) = [group for group in made.optimizer.param_groups if group["name"].endswith(".no_decay")]
        part["lr"] = RATE / 2
    made.train()
    expected = {"trainable": [RATE] * STEPS} | ({} if same else {"trainable.no_decay": [RATE / 2] * STEPS})
    assert rates(made) == expected


def test_a_rate_is_logged_once_however_many_stages_unfroze_what_has_it(tmp_path) -> None:
    made = trainer(
        tmp_path, plan=recipes.gradual(every_epochs=0.5), unfreeze_warmup=0, group_lrs={"norms": 1e-4}, weight_decay=0.1
    )
    made.train()
    logged = [[name for name in entry if name.startswith("lr/")] for entry in training_logs(made)]
    assert logged[0] == ["lr/trainable"]
    assert logged[-1] == ["lr/trainable", "lr/norms"]


def test_reduce_on_plateau_lowers_every_group_and_the_gate_stays_on_top(tmp_path) -> None:
    made = trainer(
        tmp_path,
        plan=PLAN,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"mode": "min", "patience": 0, "factor": 0.5, "threshold": 1e9, "threshold_mode": "abs"},
        eval_strategy="steps",
        eval_steps=4,
        metric_for_best_model="eval_loss",
        unfreeze_warmup=2,
        learning_rate=RATE,
    )
    made.train()

    # No loss is 1e9 better: the first evaluation (step 4) sets the best, the second (step 8) halves the rate.
    schedule = [1.0] * 8 + [0.5] * 4
    for group, trace in rates(made).items():
        gate = GATES[group]
        assert trace == pytest.approx([RATE * s * g for s, g in zip(schedule, gate, strict=True)]), group


def test_layerwise_decay_and_stages_multiply(tmp_path) -> None:
    made = trainer(tmp_path, plan=PLAN, layer_lr_decay=0.5, lr_scheduler_type="constant", learning_rate=RATE)
    made.train()

    found = rates(made)
    assert found["head"] == [RATE] * 12
    assert found["layers.2"] == [0] * 3 + [RATE / 2] * 5 + [0] * 4
    assert found["layers.0"] == [0] * 8 + [RATE / 8] * 4
    assert found["embeddings"] == [0] * 8 + [RATE / 16] * 4


def test_the_scheduler_never_sees_the_gate(tmp_path) -> None:
    made = trainer(tmp_path, plan=PLAN, lr_scheduler_type="constant", learning_rate=RATE, max_steps=2)
    made.train()
    assert {group["lr"] for group in made.optimizer.param_groups} == {RATE}


def test_a_fraction_of_the_run_is_a_warmup_too(tmp_path) -> None:
    made = trainer(tmp_path, plan=PLAN, unfreeze_warmup=1 / 3, lr_scheduler_type="constant", learning_rate=RATE)
    made.train()
    assert rates(made)["trainable in stage 1"][3:8] == pytest.approx([RATE * k / 4 for k in (1, 2, 3, 4, 4)])


def test_a_warmup_over_groups_that_mix_stages_is_refused(tmp_path) -> None:
    callback = FreezeCallback(PLAN, unfreeze_warmup=2)
    made = trainer(tmp_path, cls=Trainer, trainer={"callbacks": [callback]})
    with pytest.raises(PlanError, match="mixes parameters of several stages"):
        made.train()


@pytest.mark.parametrize("warmup", [-1, 1.5, float("inf"), float("nan")])
def test_a_warmup_that_is_no_number_of_steps_is_refused(warmup) -> None:
    with pytest.raises(PlanError, match="unfreeze_warmup"):
        warmup_steps(warmup, 10)


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 8), st.data())
def test_the_factor_is_zero_while_frozen_and_one_after_the_ramp(trains, warmup, data) -> None:
    begins = [0, *sorted(data.draw(st.lists(st.integers(1, 60), min_size=len(trains) - 1, max_size=len(trains) - 1)))]
    for step in range(80):
        stage = max(index for index, begin in enumerate(begins) if begin <= step)
        factor = rate_factor(trains, begins, step, warmup, [1.0] * len(trains))
        assert (factor > 0) == trains[stage]
        assert 0 <= factor <= 1
        if trains[stage] and step >= begins[stage] + warmup:
            assert factor == 1


def test_a_ramp_goes_on_through_a_stage_in_which_the_group_still_trains() -> None:
    factors = [rate_factor([False, True, True], [0, 2, 4], step, warmup=4, factors=[1.0] * 3) for step in range(8)]
    assert factors == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_losses_are_those_of_the_plain_trainer_when_all_trains(tmp_path) -> None:
    """The gate, the groups and the hooks change nothing where nothing is frozen."""
    ours = trainer(tmp_path / "ours", plan=FreezePlan(trainable="all"))
    ours.train()
    plain = trainer(tmp_path / "plain", cls=Trainer)
    plain.train()
    assert [entry["loss"] for entry in losses(ours) if "loss" in entry] == [
        entry["loss"] for entry in losses(plain) if "loss" in entry
    ]


def test_fine_tune_halves_the_rates_and_spreads_them_when_everything_trains(tmp_path) -> None:
    made = trainer(
        tmp_path,
        plan=fine_tune(freeze_epochs=0.25, spread=16),
        lr_scheduler_type="constant",
        learning_rate=RATE,
        max_steps=4,
    )
    made.train()
    found = rates(made)
    assert found["head"] == pytest.approx([RATE] * 2 + [RATE / 2] * 2)
    assert found["layers.2"] == pytest.approx([0] * 2 + [RATE / 4] * 2)
    assert found["embeddings"] == pytest.approx([0] * 2 + [RATE / 32] * 2)
    assert {group["lr"] for group in made.optimizer.param_groups if group["name"] == "head"} == {RATE}


@pytest.mark.parametrize("knows_them", [True, False])
def test_an_optimizer_without_the_rates_of_the_plan_is_told_in_the_log(tmp_path, caplog, knows_them) -> None:
    made = trainer(tmp_path, cls=Trainer, max_steps=1, trainer={"callbacks": [FreezeCallback("lp-ft")]})
    if knows_them:
        made.optimizer = torch.optim.SGD(param_groups(made.model, made.args, plan="lp-ft"))
    made.train()
    told = [record.getMessage() for record in caplog.records if "everything trains at one rate" in record.getMessage()]
    assert len(told) == (not knows_them)
