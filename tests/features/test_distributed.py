"""On two processes each computes its share, both read all, and the result is that of a run without."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.features import distributed_script
from tests.forked import run_ranks
from tests.nearness import assert_near

SCRIPT = Path(distributed_script.__file__)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    folders = {processes: tmp_path_factory.mktemp(f"features{processes}") for processes in (1, 2)}
    run_ranks(SCRIPT, folders[2], 4)
    run_ranks(SCRIPT, folders[1], 8, processes=1)
    return folders


@pytest.mark.parametrize(("one", "other"), [((2, "plain"), (2, "cached")), ((1, "cached"), (2, "cached"))])
def test_the_same_comes_of_it(finished, one, other):
    expected, found = (load_file(finished[processes] / f"{name}.safetensors") for processes, name in (one, other))
    assert_near(found, expected, floor=0.1)
    logs = [json.loads((finished[processes] / f"{name}.json").read_text()) for processes, name in (one, other)]
    for first, second in zip(*logs, strict=True):
        for name in first.keys() & {"loss", "eval_loss", "eval_part0"}:
            assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_each_row_is_computed_once_half_of_them_by_each(finished):
    shares = [json.loads((finished[2] / f"written-{rank}.json").read_text()) for rank in (0, 1)]
    assert set(shares[0]).isdisjoint(shares[1])
    assert abs(len(shares[0]) - len(shares[1])) <= 8
    alone = json.loads((finished[1] / "written-0.json").read_text())
    assert sorted(shares[0] + shares[1]) == sorted(alone)  # under the same keys: another world size reuses them
