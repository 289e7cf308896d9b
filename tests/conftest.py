"""Nothing in the tests may reach out of this machine, log to a tracker or write outside of its temporary folder."""

import gc
import os

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no fault of the code: time limits are pytest's.
settings.register_profile("hf_freeze", deadline=None)
settings.load_profile("hf_freeze")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the launched tests of a module on one worker, so that each of its launches is made once."""
    for item in items:
        if item.get_closest_marker("distributed") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_not_collected():
    """Every `train()` collects garbage first; without what the imports left behind that takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
