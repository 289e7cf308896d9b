"""Plans without stages on two processes: what one process does, on each of them."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.launch import accelerate_launch
from tests.models import text_rows
from tests.nearness import assert_near
from tests.training.runs import training_logs, weights
from tests.training.scripts import static_run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    output = accelerate_launch(Path(static_run.__file__), folder)
    (folder / "output").write_text(output)
    return folder


@pytest.fixture(scope="session")
def ranks(folder) -> list[dict]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(("build", "accumulation"), static_run.CUTS, ids=lambda cut: getattr(cut, "__name__", str(cut)))
def test_two_processes_take_the_steps_of_one(tmp_path, folder, ranks, build, accumulation):
    alone = static_run.scaled(build, tmp_path, 1)
    key = f"{build.__name__}-{accumulation}"
    for rank in ranks:
        found = rank["scaling"][key]
        assert found["spread"] == 0.0
        for name in ("grad_norm", "loss"):
            assert found[name] == pytest.approx([entry[name] for entry in training_logs(alone)], rel=1e-5)
    expected = weights(alone.model)
    found = load_file(folder / "scaling" / f"{key}.safetensors")
    assert_near(expected, found)


def test_only_what_the_plan_leaves_trainable_moves_and_replicas_stay_equal(ranks):
    for rank in ranks:
        moved = rank["static"]["moved"]
        assert len(moved) == 18
        assert all(name.startswith(("classifier", "bert.encoder.layer.1.")) for name in moved)
        assert rank["static"]["spread"] == 0.0


def test_a_resumed_run_ends_bit_equal_on_every_rank(ranks):
    for rank in ranks:
        assert rank["static"]["resumed_differs"] == []
        assert rank["static"]["resumed_logs"] == rank["static"]["logs"]
        assert len(rank["static"]["logs"]) == 2


def test_evaluate_and_predict_give_every_rank_the_same(ranks):
    first, second = (rank["static"] for rank in ranks)
    assert first["eval_loss"] == second["eval_loss"] > 0
    assert first["predictions"] == second["predictions"] == len(text_rows(7))


@pytest.mark.parametrize("where", ["trained", "frozen", "at save", "callback", "statistics"])
def test_a_weight_that_one_rank_edits_is_named_on_every_rank(ranks, where):
    names = {"frozen": static_run.FROZEN, "statistics": "running_mean"}
    for rank in ranks:
        message = rank["faults"][where]
        assert names.get(where, static_run.TRAINED) in message
        assert "differ between the processes" in message or "changed although frozen" in message


def test_a_healthy_run_of_a_plain_trainer_fires_nothing(ranks):
    assert [rank["faults"]["none"] for rank in ranks] == ["none", "none"]


def test_a_plain_trainer_warns_once_that_gradients_grow_with_the_number_of_processes(folder):
    """Two plain runs in the script, one of them healthy."""
    output = (folder / "output").read_text()
    assert output.count("ignores num_items_in_batch: under this Trainer its gradients grow") == 2
