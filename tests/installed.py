"""What an installed version or this machine cannot do, for tests to skip with the reason."""

from importlib.metadata import version

import pytest
import torch

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
USE_CPU = [pytest.param(True, id="cpu"), pytest.param(False, id="cuda", marks=GPU)]
"""For `use_cpu` of the training arguments."""


def since(lowest: str, reason: str, package: str = "transformers") -> pytest.MarkDecorator:
    """Skip a test below a version of a package."""
    return pytest.mark.skipif(_parts(version(package)) < _parts(lowest), reason=f"{package} below {lowest}: {reason}")


def _parts(text: str) -> list[int]:
    return [int(part) for part in text.split("+")[0].split(".")[:3] if part.isdecimal()]
