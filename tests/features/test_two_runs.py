"""Two runs that train at once on one folder of features."""

import sys
from pathlib import Path

import pytest

from tests.features import two_runs_script
from tests.launch import run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_runs_on_one_folder_at_once_end_where_runs_without_features_do(tmp_path) -> None:
    said = run([sys.executable, str(Path(two_runs_script.__file__)), str(tmp_path)], timeout=550)
    assert said.count("both ended well") == 10
