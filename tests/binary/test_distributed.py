"""Two processes report what one does, each of them, and write once."""

import json
from pathlib import Path

import pytest

from hf_freeze import load_label_thresholds, load_threshold
from tests.forked import run_ranks

SCRIPT = Path(__file__).with_name("distributed_script.py")


def launch(folder, mode, *, processes):
    folder.mkdir()
    run_ranks(SCRIPT, folder, mode, processes=processes)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "mode", ["whole", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("batched", "labels"))]
)
def test_two_processes_tune_the_threshold_of_one_on_every_rank_and_write_it_once(tmp_path, mode):
    """101 rows in batches of 8 on 2 processes: the last round is padded, and the padding must not count."""
    (alone,) = launch(tmp_path / "one", mode, processes=1)
    ranks = launch(tmp_path / "two", mode, processes=2)
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert ranks[0] == ranks[1]
    counted = ("eval_n_rows",) if mode == "labels" else ("eval_n_pos", "eval_n_neg")
    assert sum(ranks[0]["figures"][name] for name in counted) == 101
    assert ranks[0]["figures"] == pytest.approx(alone["figures"], rel=1e-5)
    assert ranks[0]["margins"] == pytest.approx(alone["margins"], rel=1e-5)
    assert (tmp_path / "two" / "writers").read_text() == "0\n"
    if mode == "labels":
        assert load_label_thresholds(tmp_path / "two" / "saved").margins == ranks[0]["margins"]
    else:
        assert load_threshold(tmp_path / "two" / "saved").threshold == ranks[0]["margins"][""]


@pytest.mark.distributed
def test_two_processes_weight_the_rows_that_one_does(tmp_path):
    (alone,) = launch(tmp_path / "one", "weighted", processes=1)
    ranks = launch(tmp_path / "two", "weighted", processes=2)
    assert ranks[0] == ranks[1]
    assert ranks[0]["figures"] == pytest.approx(alone["figures"], rel=1e-5)
    assert ranks[0]["margins"] == pytest.approx(alone["margins"], rel=1e-5)
    saved = load_threshold(tmp_path / "two" / "saved")
    weights = sum(0.5 + index % 7 for index in range(101))
    assert sum(saved.weighted_counts) == pytest.approx(weights)
