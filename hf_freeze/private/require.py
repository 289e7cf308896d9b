"""Check the listed private names against the installed versions."""

import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.private import of_accelerate, of_peft, of_torch, of_transformers
from hf_freeze.private.name import PrivateName

LISTED: tuple[PrivateName, ...] = (*of_transformers.NAMES, *of_torch.NAMES, *of_accelerate.NAMES, *of_peft.NAMES)


def require_private(names: Iterable[PrivateName] = LISTED) -> None:
    """Raise `UnsupportedSetupError` for the first name that the installed version does not have or never uses."""
    used: dict[str, frozenset[str]] = {}
    for listed in names:
        if listed.use == "guarded":
            continue
        try:
            problem = _problem(listed, pkgutil.resolve_name(listed.owner), used)
        except (ImportError, AttributeError) as error:
            problem = f"has no {listed.owner.replace(':', '.')} ({error})"
        if problem:
            package = listed.owner.partition(".")[0].partition(":")[0]
            version = pkgutil.resolve_name(package).__version__
            raise UnsupportedSetupError(
                f"{package} {version} {problem}, which hf_freeze needs so that {listed.purpose}. "
                f"Install a version of {package} that pyproject.toml allows and that was tested, or a newer hf_freeze."
            )


def _problem(listed: PrivateName, owner: Any, used: dict[str, frozenset[str]]) -> str | None:
    where = listed.owner.replace(":", ".")
    if listed.use == "module":
        pkgutil.resolve_name(f"{listed.owner}.{listed.name}")
    elif listed.use in ("attribute", "override") and not hasattr(owner, listed.name):
        return f"has no {where}.{listed.name}"
    if listed.use in ("override", "set"):
        if listed.owner not in used:
            used[listed.owner] = frozenset(names_used(owner))
        if listed.name not in used[listed.owner]:
            return f"never uses {where}.{listed.name}"
    return None


def names_used(owner: type) -> Iterator[str]:
    """Return every name that the methods of a class and of its bases look up."""
    for cls in owner.__mro__:
        for value in vars(cls).values():
            function = inspect.unwrap(getattr(value, "__func__", None) or getattr(value, "fget", None) or value)
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType):
                yield from _names_in(code)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant  # for getattr and __dict__
