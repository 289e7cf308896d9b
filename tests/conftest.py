"""Nothing in the tests may reach out of this machine, log to a tracker or write outside of its temporary folder."""

import gc
import os

import pytest
import torch.distributed as dist
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no fault of the code: time limits are pytest's.
settings.register_profile("hf_freeze", deadline=None)
settings.load_profile("hf_freeze")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a module that share a fixture on one worker, so that it is made once; launched ones as well."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        if item.get_closest_marker("distributed") or shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def shares_a_fixture(item: pytest.Item) -> bool:
    """Whether a fixture of the test's own module is made for more than this test."""
    module, *_ = item.nodeid.partition("::")
    known = getattr(item, "_fixtureinfo", None)  # doctests of older pytest have none
    definitions = [one for ones in known.name2fixturedefs.values() for one in ones] if known else []
    return any(one.baseid == module and one.scope != "function" for one in definitions)


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_not_collected():
    """Every `train()` collects garbage first; without what the imports left behind that takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
