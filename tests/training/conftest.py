"""Set-up of the tests that train."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported_modules_are_not_collected():
    """Every `train()` collects garbage first; without what the imports left behind that takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
