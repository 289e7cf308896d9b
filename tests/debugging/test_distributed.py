"""Two processes: each may call debug_sample, one prints, and the run goes on as if nobody had."""

import json
from pathlib import Path

import pytest

from hf_freeze import debug_sample
from tests.debugging.scripts import debug_run
from tests.forked import run_ranks
from tests.models import text_rows, tiny_bert

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, list[dict]]:
    folder = tmp_path_factory.mktemp("debug")
    output = run_ranks(Path(debug_run.__file__), folder)
    return output, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_every_process_calls_it_and_the_main_one_prints(run):
    output, _ = run
    assert output.count("sample           row ") == 1
    assert output.count(" checks: ") == 1


def test_every_process_sees_the_same_row_and_the_same_logits(run):
    _, ranks = run
    for key in ("before", "during"):
        assert ranks[0]["trainer"][key] == ranks[1]["trainer"][key]
    # a plain Trainer on two processes: its gradients grow with their number, and nothing else is wrong
    assert ranks[0]["trainer"]["before"]["bad"] == ["loss_scale"]


def test_one_process_may_call_it_alone(run):
    _, ranks = run
    assert ranks[0]["trainer"]["alone"]["index"] == ranks[0]["trainer"]["before"]["index"]


def test_replicas_are_equal_after_a_run_that_was_looked_at(run):
    _, ranks = run
    assert ranks[0]["trainer"]["weights"] == ranks[1]["trainer"]["weights"]


def test_wrapped_and_sharded_models_give_what_one_process_gives(run):
    _, ranks = run
    alone = debug_sample(tiny_bert(), dataset=text_rows(), index=1, quiet=True)
    for rank in ranks:
        for key in ("wrapped", "sharded"):
            assert rank[key]["bad"] == []
            assert rank[key]["logits"][0] == pytest.approx(alone.logits[0].tolist(), abs=1e-6)
        assert rank["sharded"]["trains"]
