"""A run that is killed while it stores features is run again on what is left, and ends where an undisturbed one does."""

import sys
from pathlib import Path

import pytest

from tests.features import killed_script
from tests.launch import run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wherever_storing_is_killed_the_next_run_ends_bit_equal_and_tidies_up(tmp_path) -> None:
    said = run([sys.executable, str(Path(killed_script.__file__)), str(tmp_path)], timeout=550)
    kills = [line.split()[-1] for line in said.splitlines() if line.startswith("killed at")]
    assert sum(kill.startswith("event") for kill in kills) >= 15
    assert sum(kill.startswith("half") for kill in kills) == 2  # parts
