"""A plan with stages under FreezeTrainer and DeepSpeed, ZeRO 0 to 3 on two gloo processes."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.forked import run_ranks
from tests.training.by_step import assert_close, by_step
from tests.training.scripts import deepspeed_trainer_run
from tests.training.scripts.deepspeed_run import PLAN, STAGE_OF_STEP, STEPS

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed does not run on Windows"),
]
SCRIPT = Path(deepspeed_trainer_run.__file__)
every_zero = pytest.mark.parametrize("zero", range(4))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deepspeed")
    run_ranks(SCRIPT, folder, timeout=400)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same run in this one process, without DeepSpeed."""
    return deepspeed_trainer_run.train(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def seen(finished) -> dict:
    return json.loads((finished / "seen.json").read_text())


def weights(folder: Path, zero: int) -> list[dict[str, torch.Tensor]]:
    return by_step(folder / f"zero{zero}" / "weights.safetensors")


@every_zero
def test_exactly_the_parameters_of_the_stage_move_in_each_step(finished, plain, zero):
    steps, names = weights(finished, zero), PLAN.resolve(plain[0].model).names
    for step, stage in enumerate(STAGE_OF_STEP, start=1):
        moved = {name for name in steps[step] if not torch.equal(steps[step - 1][name], steps[step][name])}
        assert moved == names[stage], f"step {step}"


@every_zero
def test_replicas_that_see_different_rows_are_equal_after_every_step(seen, zero):
    assert (seen[str(zero)]["processes"], seen[str(zero)]["kind"]) == (2, "DistributedType.DEEPSPEED")
    assert seen[str(zero)]["spread"] == [0.0] * (STEPS + 1)


@every_zero
def test_a_run_resumes_bit_equal_in_the_middle_of_a_stage(seen, zero):
    found = seen[str(zero)]
    assert found["resumed_steps"] == STEPS - deepspeed_trainer_run.SAVED
    assert found["resumed_differs"] == found["resumed_logs_differ"] == []


@every_zero
def test_the_rates_and_the_stage_are_logged_as_without_deepspeed(seen, plain, zero):
    ours = seen[str(zero)]["rates"]
    theirs = [entry for entry in plain[0].state.log_history if "loss" in entry]
    for one, other in zip(ours, theirs, strict=True):
        assert {name: one[name] for name in one if name.startswith(("lr/", "stage", "trainable"))} == {
            name: other[name] for name in other if name.startswith(("lr/", "stage", "trainable"))
        }
    assert [entry["stage"] for entry in ours] == STAGE_OF_STEP


def test_without_zero_the_run_goes_where_one_process_without_deepspeed_goes(finished, plain):
    assert_close(weights(finished, 0), plain[1])


def test_zero_1_to_3_go_the_same_way_which_is_the_plain_one_until_something_thaws(finished, plain):
    """After that AdamW has moments of its own gradients for what thaws: see `FreezeRun`."""
    first = weights(finished, 1)
    thaws = STAGE_OF_STEP.index(1)
    assert_close(first[: thaws + 1], plain[1][: thaws + 1])
    for zero in (2, 3):
        assert_close(weights(finished, zero), first)


def test_every_kind_of_optimizer_was_run(seen):
    assert [seen[str(zero)]["optimizer"] for zero in range(4)] == [
        "AdamW",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer_Stage3",
    ]
