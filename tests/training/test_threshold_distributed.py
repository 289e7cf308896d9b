"""The threshold under FreezeTrainer on two processes: what one process finds, on every rank, written once."""

import json
from pathlib import Path

import pytest

from hf_freeze import load_threshold
from tests.forked import run_ranks
from tests.training.scripts import threshold_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning"),
]
SCRIPT = Path(__file__).parent / "scripts" / "threshold_run.py"
MODES = ["whole", "batched"]
CHECKPOINTS = [f"checkpoint-{step}" for step in (2, 4, 6, 8)]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run_ranks(SCRIPT, folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same runs in this one process."""
    folder = tmp_path_factory.mktemp("one")
    return folder, {mode: threshold_run.run(folder / mode, batched=mode == "batched") for mode in MODES}


def ranks(two: Path, mode: str) -> list[dict]:
    return [json.loads((two / mode / f"rank{rank}.json").read_text()) for rank in range(2)]


def approximately(found):
    """Like pytest.approx, for values within lists and dicts, and texts."""
    if isinstance(found, dict):
        return {name: approximately(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(approximately, found))
    return pytest.approx(found, rel=1e-4, abs=1e-6) if isinstance(found, float) else found


@pytest.mark.parametrize("mode", MODES)
def test_both_ranks_see_the_figures_and_the_threshold_of_one_process(one, two, mode):
    alone = json.loads(json.dumps(one[1][mode]))
    first, second = ranks(two, mode)
    assert first == second
    # The Trainer's mean loss counts the rows that accelerate repeats to fill the last batch.
    assert first.pop("losses") == pytest.approx(alone.pop("losses"), rel=1e-2)
    assert first == approximately(alone)
    assert first["best"] == "checkpoint-2"
    assert [entry["eval_n_pos"] + entry["eval_n_neg"] for entry in first["during"]] == [threshold_run.EVAL_ROWS] * 4
    assert first["predicted"]["test_n_pos"] + first["predicted"]["test_n_neg"] == threshold_run.TEST_ROWS


@pytest.mark.parametrize("mode", MODES)
def test_the_best_checkpoint_brings_its_threshold_back_on_every_rank(two, mode):
    for seen in ranks(two, mode):
        thresholds = [entry["eval_threshold"] for entry in seen["during"]]
        assert seen["result"]["threshold"] == thresholds[0] != thresholds[-1]
        assert seen["result_afterwards"] == seen["result"]
        assert seen["evaluated"]["eval_threshold"] == seen["predicted"]["test_threshold"] == thresholds[0]


@pytest.mark.parametrize("mode", MODES)
def test_every_threshold_file_is_written_by_one_process_and_once(one, two, mode):
    written = (two / mode / "written").read_text().splitlines()
    assert written == [f"0 {name}" for name in [*CHECKPOINTS, "final"]]
    for path in [*(f"run/{name}" for name in CHECKPOINTS), "final"]:
        found, alone = (load_threshold(folder / mode / path) for folder in (two, one[0]))
        assert found.to_dict() == approximately(alone.to_dict())
        config = json.loads((two / mode / path / "config.json").read_text())
        assert config["decision_threshold"] == found.threshold
