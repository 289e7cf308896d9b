"""What every process sees alike is said by one of them."""

import logging

import pytest
import torch.distributed as dist

from hf_freeze import Stage
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.timeline import Timeline


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_a_message_of_all_processes_comes_from_the_main_one(monkeypatch, caplog, rank):
    monkeypatch.setattr(dist, "is_initialized", lambda: rank is not None)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    caplog.set_level(logging.INFO, "hf_freeze")
    logger = MainProcessLogger("hf_freeze.said")
    logger.info("Step %d", 3)
    logger.debug("nothing")
    Timeline([Stage(step=9, unfreeze="all")], max_steps=5, steps_per_epoch=5)
    heard = [] if rank else ["hf_freeze.said", "hf_freeze.plan.timeline"]
    assert [record.name for record in caplog.records] == heard
