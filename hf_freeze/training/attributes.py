"""Attributes set for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: object, **values: Any) -> Iterator[None]:
    """Set attributes of `owner`, and put them back as they were; those it had not itself are gone again."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    vars(owner).update(values)
    try:
        yield
    finally:
        for name in values:
            vars(owner).pop(name)
        vars(owner).update(before)
