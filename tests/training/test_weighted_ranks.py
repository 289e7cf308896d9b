"""The weighted loss on two processes is that of one: every model, accumulation 1, 2 and 4.

python -m pytest tests/training/test_weighted_ranks.py
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.forked import run_ranks
from tests.training.runs import weights
from tests.training.scripts import weighted_run
from tests.training.weighted_runs import WEIGHTS, relative_gap

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weighted")
    run_ranks(Path(weighted_run.__file__), folder)
    return folder


@pytest.mark.parametrize("build", WEIGHTS, ids=lambda build: build.__name__)
def test_two_processes_end_with_the_weights_logs_and_evaluations_of_one(tmp_path, folder, build):
    trainer, expected = weighted_run.trained(build, tmp_path, 1, 1)
    for accumulation in weighted_run.ACCUMULATIONS:
        key = f"{build.__name__}-{accumulation}"
        assert relative_gap(load_file(folder / f"{key}.safetensors"), weights(trainer.model)) <= 1e-6
        for rank in range(2):
            found = json.loads((folder / f"rank{rank}.json").read_text())[key]
            assert found["logs"] == [pytest.approx(entry, rel=1e-5) for entry in expected["logs"]]
            assert found["eval"] == pytest.approx(expected["eval"], rel=1e-5)
