"""Five stages on two processes: DistributedDataParallel through accelerate, and raw FSDP2."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forked import run_ranks
from tests.installed import since
from tests.nearness import assert_near
from tests.training.scripts import sharded_run, staged_run

pytestmark = pytest.mark.distributed
SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(scope="session")
def ddp(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "printed").write_text(run_ranks(SCRIPTS / "staged_run.py", folder))
    return folder


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The same run in this one process."""
    return staged_run.run("plain", tmp_path_factory.mktemp("alone"))


@pytest.fixture
def seen(ddp, request) -> dict:
    return json.loads((ddp / "seen.json").read_text())[request.param]


every_setup = pytest.mark.parametrize("seen", staged_run.SETUPS, indirect=True)


def test_what_happens_on_all_processes_is_logged_once(ddp) -> None:
    printed = (ddp / "printed").read_text()
    for said in ("Freeze plan:", "stage 1 of 4 (step 2) begins", "stage 4 of 4"):
        assert printed.count(said) == len(staged_run.SETUPS), said


@every_setup
def test_replicas_are_bit_equal_after_every_step(seen) -> None:
    assert seen["spread"] == 0.0


@pytest.mark.parametrize("setup", staged_run.SETUPS)
def test_two_processes_end_where_one_does(ddp, alone, setup) -> None:
    found = load_file(ddp / f"{setup}.safetensors")
    assert_near(found, alone.model.state_dict(), floor=0.1)


@every_setup
def test_only_trainable_gradients_travel_through_a_communication_hook_that_survives(seen, alone) -> None:
    resolved = staged_run.PLAN.resolve(alone.model)
    sizes = [4 * sum(resolved.sizes[name] for name in names) for names in resolved.stages]
    stage_of_step = [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert seen["bytes"] == [sizes[stage] for stage in stage_of_step]


@every_setup
def test_one_wrapper_lives_and_evaluates_predicts_and_unwraps(seen, alone) -> None:
    assert seen["wrappers"] == 1
    assert seen["unwraps"]
    assert seen["eval_loss"] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-5)
    assert torch.tensor(seen["predictions"]).shape == (9, 2)


@every_setup
def test_the_logged_losses_are_those_of_one_process(seen, alone) -> None:
    expected = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert seen["losses"] == pytest.approx(expected, rel=1e-5)


@since("5.8.1", "a resumed run takes the batch size of the checkpoint, not that of its arguments")
def test_a_run_on_two_processes_resumes_on_one(ddp, alone, tmp_path) -> None:
    made = staged_run.run("resumed", tmp_path, resume_from=ddp / "plain" / "checkpoint-6")
    assert_near(made.model.state_dict(), alone.model.state_dict(), floor=0.1)


def test_all_processes_go_by_the_metric_of_the_main_one(tmp_path) -> None:
    run_ranks(SCRIPTS / "plateau_run.py", tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["stages"] == second["stages"] == [0] * 6 + [1] * 6
    assert set(first["spread"]) == set(second["spread"]) == {0.0}


def test_three_transitions_under_fsdp2_end_where_one_process_does(tmp_path) -> None:
    run_ranks(SCRIPTS / "sharded_run.py", tmp_path / "sharded.safetensors")
    found = load_file(tmp_path / "sharded.safetensors")
    model = sharded_run.build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sharded_run.cast_inputs(model)
    sharded_run.train(model, 0, 1, str(tmp_path / "arguments"))

    never = sharded_run.PLAN.resolve(model).model_map.parts.keys() - sharded_run.PLAN.resolve(model).ever_trainable
    assert_near(found, {name: parameter.detach() for name, parameter in model.named_parameters()}, floor=0.1)
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], before[name]) == (name in never), name
        assert parameter.dtype is (
            torch.bfloat16
            if name.startswith(("bert.emb", "bert.encoder.layer.0", "bert.encoder.layer.1"))
            else torch.float32
        )


@pytest.mark.parametrize("saves", ["all", "trained_only"])
def test_a_run_that_evaluates_resumes_bit_equal_on_two_processes(tmp_path, saves) -> None:
    run_ranks(SCRIPTS / "resumed_run.py", tmp_path, saves)
    assert json.loads((tmp_path / "different.json").read_text()) == {"3": [], "5": [], "10": []}
