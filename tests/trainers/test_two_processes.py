"""Trainers of several libraries on two processes: the plan holds on each, and both end where one process does."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.forked import run_ranks
from tests.nearness import assert_near
from tests.trainers import two_processes
from tests.trainers.kinds import KINDS
from tests.trainers.runs import moved, plan_of

pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")
pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EACH = pytest.mark.parametrize("name", two_processes.RUNS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trainers")
    run_ranks(Path(two_processes.__file__), folder)
    return folder


@EACH
def test_two_processes_keep_the_plan_and_end_where_one_does(folder, tmp_path, name):
    kind = next(kind for kind in KINDS if kind.name == name)
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2))
    assert moved(first, second) == set()
    alone = two_processes.built(name, tmp_path)
    before = two_processes.all_weights(alone)
    changed = moved(before, first)
    beside = {name for name in before if name.startswith("loss.")}
    expected = plan_of(kind, staged=True).resolve(alone.model).ever_trainable
    assert beside <= changed <= expected | beside
    assert changed - beside - plan_of(kind, staged=False).resolve(alone.model).ever_trainable
    alone.train()
    assert moved(before, two_processes.all_weights(alone)) == changed
    assert_near(first, two_processes.all_weights(alone), floor=0.1)


def test_sparse_gradients_beside_the_model_are_averaged_and_stay_sparse(folder):
    halves, wholes = [0.5, 0.5], [1.0, 1.0]
    for rank in range(2):
        averaged = load_file(folder / f"sparse-{rank}.safetensors")
        assert averaged["both"].tolist() == [halves, halves, [0.0, 0.0], wholes]
        assert averaged["one"].tolist() == [[0.0, 0.0], [0.0, 0.0], halves, [0.0, 0.0]]
