"""What a DistributedDataParallel wrapper needs at a transition, seen in a group of one process."""

import pytest
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from hf_freeze import FreezePlan, Stage, UnsupportedSetupError
from hf_freeze.training.backends import find_wrappers, rebuild_ddp_reducers
from hf_freeze.training.freezing import set_trainable
from tests.models import text_batch, tiny_bert

PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=2, unfreeze="layers"), Stage(step=4, unfreeze="pooler", freeze="layers[0]")]
)


pytestmark = pytest.mark.usefixtures("one_process")


def test_a_hook_that_keeps_something_for_every_bucket_begins_anew_with_the_new_buckets():
    """PowerSGD adds the error of a bucket to the next gradient of the bucket with the same number."""
    model = tiny_bert()
    wrapper = DistributedDataParallel(model, find_unused_parameters=True)
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
    wrapper.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    sizes = []
    for names in PLAN.resolve(model).names:
        set_trainable(model, names)
        rebuild_ddp_reducers(find_wrappers(model))
        assert not state.error_dict
        for _ in range(4):
            wrapper(**text_batch()).loss.backward()
        sizes.append([error.numel() for error in state.error_dict.values()])
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names
    assert all(sizes)
    assert sizes[0] != sizes[1] != sizes[2]


def test_a_wrapper_in_a_group_of_its_own_is_refused():
    model = tiny_bert()
    wrapper = DistributedDataParallel(model, process_group=dist.new_group([0]))
    with pytest.raises(UnsupportedSetupError, match="process group of its own"):
        rebuild_ddp_reducers([wrapper])
