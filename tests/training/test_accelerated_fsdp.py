"""A plan with stages under FreezeTrainer and FSDP2 through accelerate: on gloo processes, and on CUDA devices."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from tests.installed import GPU
from tests.launch import accelerate_launch
from tests.nearness import assert_near
from tests.training.scripts import accelerated_fsdp_run
from tests.training.scripts.sharded_run import PLAN, build

SCRIPT = Path(__file__).parent / "scripts" / "accelerated_fsdp_run.py"
WRAP = ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_transformer_layer_cls_to_wrap", "BertLayer"]
STAGE_OF_STEP = [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
KINDS = ("SHARDED_STATE_DICT", "FULL_STATE_DICT")
on_gloo = [pytest.param("cpu", kind, marks=pytest.mark.distributed, id=f"gloo-{kind}") for kind in KINDS]
on_devices = [pytest.param("gpu", kind, marks=GPU, id=f"cuda-{kind}") for kind in KINDS]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "kind"), [*on_gloo, *on_devices])
def test_three_transitions_end_where_one_process_does_and_resume_bit_equal(tmp_path, device, kind):
    processes = 2 if device == "cpu" else min(torch.cuda.device_count(), 2)
    flags = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_state_dict_type", kind, *WRAP]
    accelerate_launch(SCRIPT, tmp_path, device, flags=flags, processes=processes)
    seen, found = json.loads((tmp_path / "seen.json").read_text()), load_file(tmp_path / "whole.safetensors")
    trainer, _ = accelerated_fsdp_run.train(tmp_path / "alone", use_cpu=device == "cpu")
    alone = accelerated_fsdp_run.whole(trainer.model)
    set_seed(0)
    before = dict(build().named_parameters())

    assert (seen["fsdp_version"], seen["sharded"]) == (2, True)
    # Matrix products of bfloat16 round otherwise for other batch sizes on a GPU.
    near = {"rtol": 1e-5, "floor": 0.1} if device == "cpu" else {"rtol": 1e-2, "floor": 0.2}
    assert_near(found, alone, **near)
    assert seen["losses"] == pytest.approx(
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], rel=near["rtol"]
    )

    resolved = PLAN.resolve(build())
    frozen = before.keys() - resolved.ever_trainable
    assert all(torch.equal(found[name], before[name]) for name in frozen)
    assert {name for name in found if found[name].dtype is torch.bfloat16} == {
        name for name in frozen if not name.startswith("bert.pooler")
    }
    trained: set[str] = set()
    for step, stage in enumerate(STAGE_OF_STEP):
        trained |= resolved.names[stage]
        assert set() < set(seen["moved"][step]) <= resolved.names[stage]
        assert set(seen["with_state"][step]) == trained
    assert seen["resumed_differs"] == []


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", ["forgets", "rotates"])
def test_a_plan_that_releases_optimizer_state_resumes_bit_equal(tmp_path, plan, kind):
    flags = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_state_dict_type", kind, *WRAP]
    accelerate_launch(SCRIPT, tmp_path, "cpu", plan, flags=flags)
    seen = json.loads((tmp_path / "seen.json").read_text())
    resolved = accelerated_fsdp_run.PLANS[plan].resolve(build())
    by_step = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2] if plan == "forgets" else [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    held = [resolved.trains(step, 0) if plan == "forgets" else resolved.trains(0, step) for step in by_step]
    assert list(map(set, seen["with_state"])) == held
    assert seen["resumed_differs"] == []
