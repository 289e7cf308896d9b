import pytest

from hf_freeze.reporting.comparison import compare as module
from tests.reporting.compared import run


@pytest.fixture
def trained(monkeypatch):
    """The runs that would have been trained; none is."""
    seen = []
    monkeypatch.setattr(module, "train", lambda name, *_, seed, **__: seen.append(name) or run(name, seed=seed))
    return seen
