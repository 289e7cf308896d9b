"""What an installed version cannot do, for tests to skip with the reason."""

from importlib.metadata import version

import pytest


def since(lowest: str, reason: str, package: str = "transformers") -> pytest.MarkDecorator:
    """Skip a test below a version of a package."""
    return pytest.mark.skipif(_parts(version(package)) < _parts(lowest), reason=f"{package} below {lowest}: {reason}")


def _parts(text: str) -> list[int]:
    return [int(part) for part in text.split("+")[0].split(".")[:3] if part.isdecimal()]
