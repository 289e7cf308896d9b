"""A rotation on two processes: DistributedDataParallel through the Trainer, and raw FSDP2 in a loop of one's own."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.forked import run_ranks
from tests.nearness import assert_near
from tests.training.scripts import rotation_run

pytestmark = pytest.mark.distributed
RESOLVED = rotation_run.PLAN.resolve(rotation_run.build())
BY_STEP = [RESOLVED.trains(0, step // 3) for step in range(rotation_run.STEPS)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rotation")
    run_ranks(rotation_run.__file__, folder)
    return folder


@pytest.fixture(scope="session")
def seen(folder) -> dict:
    return json.loads((folder / "seen.json").read_text())


def test_two_processes_end_where_one_does(folder, tmp_path):
    alone = rotation_run.run(tmp_path)
    assert_near(load_file(folder / "ddp.safetensors"), alone.model.state_dict(), floor=0.1)


def test_replicas_stay_bit_equal_and_send_the_gradients_of_what_trains_alone(seen):
    assert seen["spread"] == 0.0
    assert seen["bytes"] == [4 * RESOLVED.size_of(names) for names in BY_STEP]


def test_a_run_resumed_in_mid_period_ends_bit_equal_on_both_processes(seen):
    assert seen["resumed"] == []


def test_under_fsdp2_it_ends_where_one_process_does_with_the_state_of_what_trains_alone(folder, seen, tmp_path):
    model = rotation_run.build()
    held = rotation_run.loop(model, 0, 1, tmp_path)
    assert seen["held"] == held == [sorted(names) for names in BY_STEP]
    assert_near(load_file(folder / "fsdp.safetensors"), dict(model.named_parameters()), floor=0.1)
