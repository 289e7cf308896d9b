"""A launched script that fails or hangs fails its test, with what it printed."""

import pytest

from tests.forked import run_ranks

SCRIPT = """
import os, sys, time
print("rank", os.environ.get("RANK"), "of", os.environ.get("WORLD_SIZE"), *sys.argv[1:], flush=True)
if sys.argv[1] == "hangs":
    time.sleep(600)
sys.exit(3 if sys.argv[1] == "fails" and os.environ["RANK"] == "1" else 0)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_every_rank_runs_the_script_with_its_arguments(script):
    assert sorted(run_ranks(script, "works").splitlines()) == ["rank 0 of 2 works", "rank 1 of 2 works"]
    assert run_ranks(script, "works", processes=1) == "rank None of None works\n"


def test_a_rank_that_fails_is_shown_with_what_was_printed(script):
    with pytest.raises(AssertionError, match=r"(?s)\[0, 3\].*rank 1 of 2"):
        run_ranks(script, "fails")


def test_a_script_that_hangs_is_ended_and_what_it_printed_is_shown(script):
    for seconds in (3, 60):  # the first are enough unless the machine is busy
        with pytest.raises(AssertionError, match=r"\[-9, -9\]") as ended:
            run_ranks(script, "hangs", timeout=seconds)
        if "rank" in str(ended.value):
            return
    pytest.fail(f"What the ranks printed is not shown: {ended.value}")
