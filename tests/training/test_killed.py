"""A run that is killed while it saves resumes bit-equal from its newest whole checkpoint."""

import sys
from pathlib import Path

import pytest

from tests.forked import run_ranks
from tests.launch import run

SCRIPT = Path(__file__).parent / "scripts" / "killed_run.py"
RANDOM = SCRIPT.with_name("randomly_killed_run.py")


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["all", "trained_only"])
def test_wherever_a_save_is_killed_the_newest_whole_checkpoint_resumes_or_is_named(tmp_path, saves) -> None:
    said = run([sys.executable, str(SCRIPT), str(tmp_path), saves], timeout=500)
    ends = [line.split()[-1] for line in said.splitlines() if line.startswith("killed at")]
    assert ends.count("refused") >= 4
    assert "resumed" in ends


def test_a_checkpoint_is_whole_only_when_every_process_has_saved(tmp_path) -> None:
    run_ranks(SCRIPT.with_name("slow_second_process.py"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("saves", ["all", "trained_only"])
@pytest.mark.parametrize("plan", ["stages", "rotation"])
def test_a_run_that_is_killed_again_and_again_ends_bit_equal(tmp_path, processes, saves, plan) -> None:
    kills = 8 // processes
    said = run([sys.executable, str(RANDOM), str(tmp_path), str(kills), str(processes), saves, plan], timeout=500)
    assert int(said.rpartition("killed ")[2].split()[0]) >= kills
