"""Stages on the raw DeepSpeed engine, and what is refused where they cannot be carried out.

The refusals are tested with a stand-in for the engine's optimizer.
"""

import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainingArguments

from hf_freeze import FreezePlan, FreezeViolation, PlanError, Plateau, Stage, UnsupportedSetupError, param_groups
from hf_freeze.training.backends import group_members, uses_master_weights
from hf_freeze.training.run import FreezeRun, FreezeSettings
from tests.forked import run_ranks
from tests.launch import torchrun
from tests.models import text_batch, tiny_bert
from tests.training.by_step import assert_close, by_step
from tests.training.scripts import deepspeed_run
from tests.training.scripts.deepspeed_run import CASES, PLAN, STAGE_OF_STEP, STEPS

SCRIPT = Path(deepspeed_run.__file__)
EXACT = [case for case in CASES if not case.startswith("bf16")]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed does not run on Windows")


def launched(test):
    return pytest.mark.slow(pytest.mark.distributed(needs_deepspeed(test)))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folders of one run of all cases each, by the number of processes."""
    folders = {processes: tmp_path_factory.mktemp(f"deepspeed{processes}") for processes in (1, 2)}
    torchrun(SCRIPT, folders[1], processes=1)
    run_ranks(SCRIPT, folders[2])
    return folders


@pytest.fixture
def weights(finished):
    """Read the weights of a case on two processes: a list over steps, 0 is before the first."""
    return lambda case, processes=2: by_step(finished[processes] / f"{case}.safetensors")


@pytest.fixture
def seen(finished) -> dict:
    return json.loads((finished[2] / "seen.json").read_text())


def plain(case: str, folder: Path) -> list[dict[str, torch.Tensor]]:
    """The same loop in this process, without an engine."""
    steps = []
    deepspeed_run.train(
        case.partition("-")[0],
        folder,
        see=lambda model: steps.append({name: p.detach().clone() for name, p in model.named_parameters()}),
    )
    return steps


@launched
@pytest.mark.parametrize("case", CASES)
def test_exactly_the_parameters_of_the_stage_move_in_each_step(weights, case) -> None:
    """Weight decay, which `DecoupledSGD` applies at any rate, does not touch what is frozen either."""
    steps = weights(case)
    names = PLAN.resolve(deepspeed_run.text_model()).names
    for step, stage in enumerate(STAGE_OF_STEP, start=1):
        before, after = steps[step - 1], steps[step]
        assert {name for name in after if not torch.equal(before[name], after[name])} == names[stage], f"step {step}"


@launched
@pytest.mark.parametrize("case", CASES)
def test_all_processes_have_the_same_weights_after_every_step(seen, case) -> None:
    assert seen[case]["spread"] == [0.0] * (STEPS + 1)


@launched
@pytest.mark.parametrize("case", EXACT)
def test_two_processes_go_where_one_does(weights, case) -> None:
    assert_close(weights(case), weights(case, processes=1))


@launched
@pytest.mark.parametrize("case", ["adamw-zero0", *(case for case in EXACT if case.startswith("decoupled"))])
def test_a_run_goes_where_plain_pytorch_does(weights, case, tmp_path) -> None:
    assert_close(weights(case), plain(case, tmp_path))


@launched
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_under_zero_what_thaws_starts_with_moments_of_its_own_gradients(weights, zero, tmp_path) -> None:
    """So AdamW leaves plain PyTorch, where moments start at zero, at the first step of what thaws, and not before."""
    found, expected = weights(f"adamw-zero{zero}"), plain("adamw", tmp_path)
    thaws = STAGE_OF_STEP.index(1)
    assert_close(found[: thaws + 1], expected[: thaws + 1])
    with pytest.raises(AssertionError, match=f"step {thaws + 1}, bert.encoder.layer.2"):
        assert_close(found, expected)
    assert_close(found, weights("adamw-zero1"))


@launched
@pytest.mark.parametrize("case", CASES)
def test_layers_are_in_train_mode_exactly_while_they_train(seen, case) -> None:
    layers = {0: [], 1: [2], 2: [1, 2], 3: [1]}
    assert seen[case]["in_train_mode"][1:] == [layers[stage] for stage in STAGE_OF_STEP]


@launched
@pytest.mark.parametrize("zero", range(4))
def test_the_statistics_of_batchnorm_stand_still_exactly_while_it_is_frozen(seen, zero) -> None:
    means = seen["normed"][f"decoupled-zero{zero}"]
    assert [after != before for before, after in pairwise(means)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


@launched
def test_every_kind_of_engine_optimizer_was_run(seen) -> None:
    assert {case: seen[case]["optimizer"] for case in CASES if "decoupled" not in case} == {
        "adamw-zero0": "AdamW",
        "adamw-zero1": "DeepSpeedZeroOptimizer",
        "adamw-zero2": "DeepSpeedZeroOptimizer",
        "adamw-zero3": "DeepSpeedZeroOptimizer_Stage3",
        "bf16-zero0": "FP16_UnfusedOptimizer",
        "bf16-zero1": "BF16_Optimizer",
        "bf16-zero2": "DeepSpeedZeroOptimizer",
        "bf16-zero3": "DeepSpeedZeroOptimizer_Stage3",
    }


# --- refusals, with a stand-in ----------------------------------------------------------------------------------------


class ZeroOptimizer:
    """Steps copies of the weights, as the engine's optimizers do, or nothing when `skips` is set."""

    __module__ = "deepspeed.runtime.stand_in"

    def __init__(self, groups: list[dict], *, skips: bool = False) -> None:
        self.bit16_groups = [group["params"] for group in groups]
        copies = [{**group, "params": [p.detach().clone() for p in group["params"]]} for group in groups]
        self.optimizer = torch.optim.AdamW(copies)
        self.skips = skips

    @property
    def param_groups(self) -> list[dict]:
        return self.optimizer.param_groups

    def step(self) -> None:
        if self.skips:
            return
        for originals, group in zip(self.bit16_groups, self.param_groups, strict=True):
            for original, copy in zip(originals, group["params"], strict=True):
                copy.grad = torch.zeros_like(copy) if original.grad is None else original.grad
                original.grad = None
        self.optimizer.step()
        with torch.no_grad():
            for originals, group in zip(self.bit16_groups, self.param_groups, strict=True):
                for original, copy in zip(originals, group["params"], strict=True):
                    original.copy_(copy)


def groups_of(model, plan=PLAN) -> list[dict]:
    args = TrainingArguments("never-written", learning_rate=1e-2, weight_decay=0.1, use_cpu=True, report_to=[])
    return param_groups(model, args, plan=plan)


def run_of(model, optimizer, plan=PLAN, **settings) -> FreezeRun:
    settings = FreezeSettings(**settings)
    return FreezeRun(plan.resolve(model), model, optimizer, settings=settings, max_steps=STEPS, steps_per_epoch=1)


def go(run: FreezeRun, model, optimizer, *, steps: int = STEPS) -> None:
    run.begin()
    for step in range(steps):
        run.step_begins(step)
        model.train()
        model(**text_batch()).loss.backward()
        run.before_optimizer_step()
        optimizer.step()
        run.after_optimizer_step()
    run.conclude()


def test_the_stand_in_trains_by_the_plan() -> None:
    model = tiny_bert(layers=3)
    optimizer = ZeroOptimizer(groups_of(model))
    go(run_of(model, optimizer), model, optimizer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [
        group["weight_decay"] for group in groups_of(tiny_bert(layers=3))
    ]


def test_groups_that_mix_stages_are_refused_where_only_their_rate_freezes() -> None:
    model = tiny_bert(layers=3)
    optimizer = ZeroOptimizer([{"params": list(model.parameters()), "name": "all"}])
    with pytest.raises(PlanError, match=r"DeepSpeed needs groups.*'all'.*param_groups"):
        run_of(model, optimizer)


def test_what_was_frozen_when_the_engine_was_built_is_named_before_the_first_step() -> None:
    model = tiny_bert(layers=3)
    optimizer = ZeroOptimizer([group for group in groups_of(model) if "from stage" not in group["name"]])
    with pytest.raises(FreezeViolation, match=r"'bert\.encoder\.layer\.1.*optimizer does not hold.*engine is built"):
        run_of(model, optimizer).begin()


def test_the_optimizer_that_went_into_the_engine_is_refused() -> None:
    model = tiny_bert(layers=3)
    optimizer = ZeroOptimizer(groups_of(model))
    with pytest.raises(FreezeViolation, match=r"optimizer does not hold.*the optimizer is engine\.optimizer"):
        run_of(model, optimizer.optimizer).begin()


def test_an_optimizer_that_does_not_tell_whose_copies_it_steps_is_refused() -> None:
    model = tiny_bert(layers=3)
    optimizer = ZeroOptimizer(groups_of(model))
    optimizer.bit16_groups = optimizer.bit16_groups[1:]
    with pytest.raises(UnsupportedSetupError, match=r"ZeroOptimizer has \d+ groups, but keeps parameters of \d+"):
        run_of(model, optimizer)


def test_rewinding_weights_is_refused() -> None:
    waits = Stage(plateau=Plateau("eval_loss", restore_best=True), unfreeze="layers[-1]")
    plan = FreezePlan(trainable="head", stages=[waits])
    model = tiny_bert()
    optimizer = ZeroOptimizer(groups_of(model, plan))
    with pytest.raises(UnsupportedSetupError, match=r"restore_best=True.*copies whole weights"):
        run_of(model, optimizer, plan)


@pytest.mark.parametrize(("steps", "raises"), [(7, False), (8, True)])
def test_an_engine_that_never_steps_is_found_out_once_no_step_may_be_skipped(steps, raises, caplog) -> None:
    plan = FreezePlan(trainable="head")
    model = tiny_bert()
    optimizer = ZeroOptimizer(groups_of(model, plan), skips=True)
    run = run_of(model, optimizer, plan)
    if not raises:
        return go(run, model, optimizer, steps=steps)
    with pytest.raises(FreezeViolation, match=r"'classifier\.weight'.* did not change"):
        go(run, model, optimizer, steps=steps)


def test_the_optimizer_is_known_inside_the_wrapper_of_accelerate_and_others_are_not_taken_for_it() -> None:
    model = tiny_bert()
    prepared = Accelerator(cpu=True).prepare_optimizer(torch.optim.AdamW(model.parameters()))
    assert not uses_master_weights(prepared)
    prepared.optimizer = ZeroOptimizer(groups_of(model, FreezePlan(trainable="head")))
    assert uses_master_weights(prepared)
    assert [list(map(id, members)) for members in group_members(prepared)] == [
        list(map(id, group["params"])) for group in groups_of(model, FreezePlan(trainable="head"))
    ]
