"""A stage that begins when what it freezes has settled, in real runs."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from hf_freeze import (
    FreezeCallback,
    FreezeError,
    FreezePlan,
    FreezeTrainer,
    PlanError,
    Plateau,
    Settled,
    Stage,
    recipes,
)
from hf_freeze.plan.stages import FRESH_STEPS, BottomUp
from hf_freeze.training.bound_plan import bind
from hf_freeze.training.settling import SettlingMonitor, SettlingWatch, warn_of_warmup
from tests.forked import run_ranks
from tests.models import tiny_bert, tiny_custom
from tests.quiet import quiet_arguments
from tests.training.staged import optimizer_bytes, trainer

SETTLED = Settled(threshold=0.8, window=2, patience=1)
PLAN = FreezePlan(
    trainable="all",
    stages=[
        Stage(settled=SETTLED, freeze=["embeddings", "layers[0]"]),
        Stage(settled=Settled(threshold=0.7, window=2, patience=1), freeze="layers[1]"),
    ],
)
FROZEN = {
    1: [name for name, _ in tiny_bert(layers=3).named_parameters() if "embeddings" in name or "layer.0." in name],
    2: [name for name, _ in tiny_bert(layers=3).named_parameters() if "layer.1." in name],
}
STEPS = 24
FALLING = {"max_steps": STEPS, "lr_scheduler_type": "linear"}
SCRIPTS = Path(__file__).parent / "scripts"


def still() -> torch.nn.Module:
    """The model without dropout, which draws other numbers on each process."""
    set_seed(0)
    return tiny_bert(layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def stages(made: Trainer) -> list[int]:
    return [entry["stage"] for entry in made.state.log_history if "loss" in entry]


def moved(made: Trainer, names, first: int, last: int) -> float:
    """How far these weights moved for their learning rate."""
    before, after = made.watch.weights[first], made.watch.weights[last]
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    rates = [next(value for name, value in entry.items() if name.startswith("lr/")) for entry in logged]
    return float(sum((after[name] - before[name]).pow(2).sum() for name in names)) ** 0.5 / sum(rates[first:last])


@pytest.mark.parametrize("how", ["trainer", "callback"])
def test_a_stage_begins_when_its_weights_move_less_for_their_rate_than_they_did_at_most(tmp_path, how, caplog) -> None:
    """By all of the weights, of which the package looks at a sample."""
    caplog.set_level(logging.INFO, logger="hf_freeze")
    extra = {"callbacks": [FreezeCallback(PLAN)]} if how == "callback" else {}
    cls = Trainer if how == "callback" else FreezeTrainer
    made = trainer(tmp_path, plan=PLAN, cls=cls, trainer=extra, **FALLING)
    made.train()

    for stage in (1, 2):
        begin = next(step for step, now in enumerate(stages(made)) if now >= stage)
        distances = [moved(made, FROZEN[stage], step, step + 2) for step in range(FRESH_STEPS, begin, 2)]
        shares = [distance / max(distances[: place + 1]) for place, distance in enumerate(distances)]
        assert begin % 2 == 0
        threshold = PLAN.stages[stage - 1].settled.threshold
        assert shares[-1] < threshold + 0.05
        assert min(shares[:-1]) > threshold - 0.05
        assert moved(made, FROZEN[stage], begin, STEPS) == 0
        (told,) = [text for text in caplog.messages if f"layers[{stage - 1}] settled: over the last 2 steps" in text]
        assert told.startswith(f"Step {begin}: ")
        assert float(re.search(r"moved (\S+) times", told)[1]) == pytest.approx(shares[-1], abs=0.08)


def test_layers_that_move_on_as_before_never_settle(tmp_path, caplog) -> None:
    plan = recipes.auto_freeze(threshold=0.5, window=2)
    made = trainer(tmp_path, plan=plan, max_steps=STEPS, lr_scheduler_type="constant", learning_rate=1e-6)
    made.train()
    assert set(stages(made)) == {0}
    assert "never began: settled at 0.5 (2 stages)." in caplog.text


@pytest.mark.parametrize("how", ["trainer", "callback"])
@pytest.mark.parametrize("step", [1, 15, 16, pytest.param(17, marks=pytest.mark.slow), 18])
def test_a_run_resumes_bit_equal_before_at_and_after_the_moment(tmp_path, how, step) -> None:
    cls = Trainer if how == "callback" else FreezeTrainer

    def made(folder):
        extra = {"callbacks": [FreezeCallback(PLAN)]} if how == "callback" else {}
        saving = {"save_strategy": "steps", "save_steps": 1}
        return trainer(folder, plan=PLAN, cls=cls, trainer=extra, **FALLING, **saving)

    whole = made(tmp_path / "whole")
    whole.train()
    assert [stages(whole)[place] for place in (15, 16, 17, 18)] == [0, 1, 1, 2]
    resumed = made(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert stages(resumed) == stages(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert optimizer_bytes(resumed) == optimizer_bytes(whole)


def test_layers_that_train_again_have_to_settle_again(tmp_path) -> None:
    plan = FreezePlan(
        trainable="all",
        stages=[
            Stage(settled=SETTLED, freeze="layers[0]"),
            Stage(step=18, unfreeze="layers[0]"),
            Stage(settled=Settled(threshold=0.99, window=2, patience=1), freeze="layers[0]"),
        ],
    )
    made = trainer(tmp_path, plan=plan, **{**FALLING, "max_steps": 40})
    made.train()
    assert stages(made)[17] == 1
    again = stages(made).index(3)
    assert stages(made)[18:again] == [2] * (again - 18)
    assert 18 + FRESH_STEPS + 2 * 2 <= again < 36  # a window to compare with, and another


def test_adapters_settle_and_such_a_run_resumes_bit_equal(tmp_path) -> None:
    peft = pytest.importorskip("peft")

    def made(folder, **values):
        set_seed(0)
        settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
        model = peft.get_peft_model(tiny_bert(layers=3), settings)
        plan = recipes.auto_freeze(threshold=0.9, window=2, patience=1)
        return trainer(folder, model=model, plan=plan, **{**FALLING, "max_steps": 40}, learning_rate=0.1, **values)

    whole = made(tmp_path, save_strategy="steps", save_steps=1)
    whole.train()
    begins = next(step for step, stage in enumerate(stages(whole)) if stage)
    resumed = made(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{begins}"))
    assert stages(resumed) == stages(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.distributed
def test_all_processes_go_by_what_the_main_one_sees_and_measure_what_one_does(tmp_path) -> None:
    run_ranks(SCRIPTS / "settled_run.py", tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["stages"] == second["stages"]
    assert len(set(first["stages"])) > 1
    assert first["weights"] == second["weights"]
    assert first["norms"] == second["norms"]
    assert first["refused"] == second["refused"] == []  # one process saves, which leaves its mark on the configuration

    alone = trainer(tmp_path / "alone", model=still(), plan=PLAN, log_grad_norms=True, **FALLING)
    alone.train()
    assert stages(alone) == first["stages"]
    for entry, norms in zip(alone.state.log_history, first["norms"], strict=True):
        assert norms == pytest.approx({name: entry[name] for name in norms}, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 0}, "threshold must be between 0 and 1"),
        ({"threshold": 1}, "threshold must be between 0 and 1"),
        ({"threshold": "half"}, "threshold must be between 0 and 1"),
        ({"window": 0}, "window a whole number"),
        ({"window": 1.5}, "window a whole number"),
        ({"window": -1}, "window a whole number"),
        ({"patience": 0}, "patience a whole number"),
        ({"patience": 1.0}, "patience a whole number"),
    ],
)
def test_settings_that_are_none_are_refused(given, message) -> None:
    with pytest.raises(PlanError, match=message):
        Settled(**given)


def test_a_stage_that_settles_must_freeze() -> None:
    with pytest.raises(PlanError, match="give freeze="):
        Stage(settled=Settled(), unfreeze="layers[0]")


def test_what_does_not_train_cannot_settle() -> None:
    stage = Stage(settled=Settled(), freeze="layers[0]", unfreeze="layers[-1]")
    with pytest.raises(PlanError, match="freezes nothing that trains before it"):
        FreezePlan(trainable="head", stages=[stage]).resolve(tiny_bert(layers=3))


def test_the_same_layers_do_not_wait_for_a_plateau_as_well() -> None:
    stages = [
        Stage(plateau=Plateau("eval_loss"), unfreeze="layers[0]"),
        Stage(settled=Settled(), freeze="layers[0]"),
    ]
    with pytest.raises(PlanError, match="'bert.encoder.layer.0.*plateau of eval_loss.*settle"):
        FreezePlan(trainable="head", stages=stages).resolve(tiny_bert(layers=3))


def test_a_run_too_short_to_measure_is_refused_before_the_first_step(tmp_path) -> None:
    made = trainer(tmp_path, plan=PLAN, max_steps=14)
    with pytest.raises(PlanError, match="the run has 14 steps, too few to measure.*10 steps and then 2 windows of 2"):
        made.train()
    assert made.state.global_step == 0


def test_a_run_whose_warmup_leaves_no_time_to_settle_says_so(tmp_path, caplog) -> None:
    made = trainer(tmp_path, plan=PLAN, max_steps=16, warmup_steps=14)
    made.train()
    assert "Nothing will settle: the learning rate rises for 14 of the 16 steps" in caplog.text


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda seen: seen.pop("farthest"), "farthest"),
        (lambda seen: seen.update(sample="###"), "sample"),
        (lambda seen: seen.update(below=-1), "below"),
        (lambda seen: seen.update(farthest=None), "farthest"),
        (lambda seen: seen.update(steps=0.5), "steps"),
        (lambda seen: seen.update(highest="high"), "highest"),
    ],
)
def test_a_damaged_measurement_in_a_checkpoint_is_refused(tmp_path, damage, what) -> None:
    made = trainer(tmp_path, plan=PLAN, **FALLING, save_strategy="steps", save_steps=13)
    made.train()
    path = tmp_path / "checkpoint-13" / "trainer_state.json"
    state = json.loads(path.read_text())
    damage(state["stateful_callbacks"]["FreezeCallback"]["attributes"]["saved"]["run"]["settling"]["1"])
    path.write_text(json.dumps(state))
    again = trainer(tmp_path, plan=PLAN, **FALLING)
    with pytest.raises(FreezeError, match="run.settling"):
        again.train(resume_from_checkpoint=str(path.parent))


def test_a_distance_that_is_not_finite_is_not_settled() -> None:
    watch = SettlingWatch().see(1.0, settled=SETTLED)
    assert watch.see(float("nan"), settled=SETTLED).below == 0
    assert watch.see(float("inf"), settled=SETTLED).farthest == 1.0
    assert SettlingWatch().see(0.0, settled=SETTLED).below == 0
    assert watch.see(0.5, settled=SETTLED).below == 1


def test_the_distance_of_a_sample_is_an_estimate_of_that_of_all_weights() -> None:
    """The large matrix moves a tenth as far, weight by weight, as the others."""
    bound = bind(PLAN, tiny_bert(layers=3, vocab_size=5000))
    monitor, watches = SettlingMonitor(bound, sgd(bound), max_steps=STEPS), in_training()
    monitor.observe(watches, 0, stage=0)
    monitor.before_optimizer_step(watches, stage=0)
    draw, squares = torch.Generator().manual_seed(0), 0.0
    for name in FROZEN[1]:
        weights = bound.parameters[name]
        by = torch.randn(weights.shape, generator=draw) * (0.1 if "word_embeddings" in name else 1.0)
        weights.data += by
        squares += float(by.square().sum())
    monitor.observe(watches, 2, stage=0)
    assert watches[1].last == pytest.approx(squares**0.5, rel=0.1)


def test_patience_is_so_many_windows_in_a_row() -> None:
    patient = Settled(threshold=0.5, window=2, patience=2)
    monitor = SettlingMonitor(
        bound := bind(FreezePlan(trainable="all", stages=[Stage(settled=patient, freeze="layers[0]")]), tiny_bert()),
        sgd(bound),
        max_steps=STEPS,
    )
    watch, settled = SettlingWatch(), []
    for distance in (1.0, 0.4, 0.6, 0.4, 0.4):
        watch = watch.see(distance, settled=patient)
        settled.append(monitor.has_settled({1: watch}, 1))
    assert settled == [False, False, False, False, True]


def test_auto_freeze_goes_from_the_bottom_up_and_keeps_the_top() -> None:
    resolved = recipes.auto_freeze().resolve(tiny_bert(layers=3))
    went = [before - after for before, after in zip(resolved.stages, resolved.stages[1:], strict=False)]
    assert [sorted(names) for names in went] == [sorted(FROZEN[1]), sorted(FROZEN[2])]
    assert recipes.recipe("auto-freeze:threshold=0.3,keep=0").stages == (
        BottomUp(settled=Settled(threshold=0.3), keep=0),
    )


@pytest.mark.parametrize(
    ("model", "keep", "message"),
    [(tiny_bert, 3, "keeps all 3 layers"), (tiny_custom, -1, "keep a whole number"), (None, 1, "repeated stack")],
)
def test_auto_freeze_is_refused_where_it_could_freeze_nothing(model, keep, message) -> None:
    made = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)) if model is None else model(layers=3)
    with pytest.raises(PlanError, match=message):
        recipes.auto_freeze(keep=keep).resolve(made)


def sgd(bound) -> torch.optim.Optimizer:
    return torch.optim.SGD(bound.parameters.values(), lr=1.0)


def in_training() -> dict[int, SettlingWatch]:
    return {stage: SettlingWatch(steps=FRESH_STEPS, highest=1.0) for stage in FROZEN}


@pytest.mark.parametrize("rate", [lambda step: 1e-3, lambda step: 1e-3 * min(step / 20, 1)], ids=["constant", "warmup"])
@pytest.mark.parametrize("window", [1, 2, 6])
def test_adams_long_first_steps_settle_nothing(rate, window) -> None:
    """Gradients that are noise from the first step to the last: nothing settles, and Adam's steps get shorter."""
    settled = Settled(threshold=0.6, window=window, patience=1)
    bound = bind(FreezePlan(trainable="all", stages=[Stage(settled=settled, freeze="layers[0]")]), tiny_bert())
    optimizer, watches = torch.optim.AdamW(bound.parameters.values(), lr=1e-3), {}
    monitor, draw = SettlingMonitor(bound, optimizer, max_steps=100), torch.Generator().manual_seed(0)
    for step in range(61):
        monitor.observe(watches, step, stage=0)
        assert not monitor.has_settled(watches, 1)
        optimizer.param_groups[0]["lr"] = rate(step)
        monitor.before_optimizer_step(watches, stage=0)
        for parameter in bound.parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    assert 0.6 < watches[1].last / watches[1].farthest < 1


@pytest.mark.parametrize("scheduler", ["constant_with_warmup", "cosine"])
def test_nothing_settles_while_a_warmup_raises_the_rate(tmp_path, scheduler, caplog) -> None:
    plan = recipes.auto_freeze(threshold=0.95, window=2, patience=1)
    values = {"max_steps": 40, "warmup_steps": 20, "lr_scheduler_type": scheduler}
    made = trainer(tmp_path, plan=plan, **values)
    made.train()
    assert "Nothing will settle" not in caplog.text
    assert set(stages(made)[:22]) == {0}
    assert stages(made)[-1] > 0


@pytest.mark.parametrize(("warmup", "scheduler"), [(18, "constant_with_warmup"), (17, "linear"), (18, "constant")])
def test_a_warmup_that_leaves_no_time_to_settle_is_told_before_the_first_step(warmup, scheduler, caplog) -> None:
    plan = recipes.auto_freeze(window=2, patience=2)
    args = quiet_arguments(cls=TrainingArguments, warmup_steps=warmup, lr_scheduler_type=scheduler)
    warn_of_warmup(args, plan.resolve(tiny_bert(layers=3)), max_steps=STEPS)
    assert ("rises for 18 of the 24 steps" in caplog.text) is (scheduler == "constant_with_warmup")
    assert len(caplog.messages) == (scheduler == "constant_with_warmup")


def test_what_has_a_rate_of_0_and_waits_to_settle_is_refused_before_the_first_step(tmp_path) -> None:
    values = {**FALLING, "warmup_steps": 2, "group_lrs": {"layers[1]": 0.0}}
    made = trainer(tmp_path, plan=PLAN, **values)
    with pytest.raises(PlanError, match=r"waits for layers\[1\] to settle, whose learning rate is 0"):
        made.train()
    assert made.state.global_step == 0

    easily = Settled(threshold=0.98, window=2, patience=1)
    plan = FreezePlan(freeze="layers[1]", stages=[BottomUp(settled=easily)])
    made = trainer(tmp_path, plan=plan, **{**values, "group_lrs": {"layers[2]": 0.0}})
    made.train()
    assert stages(made)[-1] == 1


@pytest.mark.parametrize(("pulls", "settles"), [(lambda step: 1.0, False), (lambda step: 0.5**step, True)])
def test_weights_that_move_less_as_the_rate_falls_alone_have_not_settled(pulls, settles) -> None:
    """The schedule halves the rate at every step; what counts is how hard the gradient pulls."""
    bound = bind(PLAN, tiny_bert(layers=3))
    optimizer, watches = sgd(bound), in_training()
    monitor = SettlingMonitor(bound, optimizer, max_steps=STEPS)
    for step in range(10):
        monitor.observe(watches, step, stage=0)
        optimizer.param_groups[0]["lr"] = 0.5**step
        monitor.before_optimizer_step(watches, stage=0)
        with torch.no_grad():
            for parameter in bound.parameters.values():
                parameter.fill_(0.0 if step == 0 else float(parameter.flatten()[0]) + 0.5**step * pulls(step))
    assert monitor.has_settled(watches, 1) is settles


def test_a_window_in_which_the_rate_was_0_says_nothing() -> None:
    bound = bind(PLAN, tiny_bert(layers=3))
    optimizer, watches = sgd(bound), in_training()
    monitor = SettlingMonitor(bound, optimizer, max_steps=STEPS)
    for step, rate in enumerate((1.0, 1.0, 0.0, 0.0, 0.0)):
        monitor.observe(watches, step, stage=0)
        optimizer.param_groups[0]["lr"] = rate
        monitor.before_optimizer_step(watches, stage=0)
        with torch.no_grad():
            bound.parameters[FROZEN[1][0]].add_(rate)
    assert watches[1].farthest > 0
    assert not monitor.has_settled(watches, 1)


def test_asking_twice_for_one_step_measures_once(tmp_path) -> None:
    bound = bind(PLAN, tiny_bert(layers=3))
    monitor, watches = SettlingMonitor(bound, sgd(bound), max_steps=STEPS), in_training()
    for step in (0, 2):
        for _ in range(2):
            monitor.observe(watches, step, stage=0)
        monitor.before_optimizer_step(watches, stage=0)
        torch.nn.init.normal_(bound.model.bert.embeddings.word_embeddings.weight)
    once = dict(watches)
    monitor.observe(watches, 2, stage=0)
    assert watches[1] is once[1]
    assert watches[1].below == 0
