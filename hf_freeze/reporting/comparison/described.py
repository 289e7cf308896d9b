"""Describe an object by its settings and the code of its classes, as JSON-able values equal in every process.

For code from an installed package, its name and version are enough. Custom code goes in as bytecode, with the defaults,
the enclosed values, and the plain globals and functions that it names.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hf_freeze.training.digests import digests

_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version"}
"""Names of attributes that say where something was loaded from, which does not change what it does."""

_DEEPEST = 4
_PLAIN = (str, int, float, complex, bool, bytes, type(None), torch.dtype, torch.device, Enum, Path)
_OF_EVERY_MODULE = {*vars(nn.Module()), "config"}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return module.attribute -> its value, for all modules, beside the configuration and the code of the classes."""
    found: dict[str, Any] = {"config": describe(getattr(model, "config", None)), "modules": repr(model)}
    for path, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
        found |= {f"{path}.{name}": describe(value) for name, value in own.items() if name not in _VOLATILE}
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        found |= {f"{path}.{index}th hook": describe(hook) for index, hook in enumerate(hooks)}
        kind = type(module)
        found.setdefault(f"class {kind.__qualname__}", describe(kind))
    return found


def describe(thing: Any, depth: int = 0) -> Any:
    """Describe settings, functions, classes, and objects by their attributes, a few levels deep."""
    if isinstance(thing, _PLAIN):
        return thing if isinstance(thing, str | int | float | None) and not isinstance(thing, Enum) else str(thing)
    if isinstance(thing, torch.Tensor):
        return [str(thing.dtype), list(thing.shape), digests({"": thing})[""]]
    if isinstance(thing, np.ndarray):
        return [str(thing.dtype), list(thing.shape), hashlib.sha256(repr(thing.tolist()).encode()).hexdigest()]
    if isinstance(thing, PretrainedConfig):
        return describe({name: value for name, value in thing.to_dict().items() if name not in _VOLATILE}, depth)
    if isinstance(thing, PreTrainedTokenizerBase):
        return [_name(type(thing)), len(thing), thing.padding_side, thing.truncation_side, thing.pad_token_id]
    if depth > _DEEPEST:
        return _name(type(thing))
    if isinstance(thing, Mapping):
        return _sorted([describe(key, depth + 1), describe(value, depth + 1)] for key, value in thing.items())
    if isinstance(thing, set | frozenset):
        return _sorted(describe(value, depth + 1) for value in thing)
    if isinstance(thing, list | tuple):
        return [describe(value, depth + 1) for value in thing]
    if isinstance(thing, nn.Module):
        return _name(type(thing))  # among the modules, where it is one of the model's
    if isinstance(thing, partial):
        return [describe(part, depth + 1) for part in (thing.func, thing.args, thing.keywords)]
    if isinstance(thing, MethodType):
        return [_name(type(thing.__self__)), describe(thing.__func__, depth + 1)]
    if isinstance(thing, FunctionType):
        return _function(thing, depth)
    if isinstance(thing, type):
        return _class(thing, depth)
    return _object(thing, depth)


def _object(thing: Any, depth: int) -> Any:
    if callable(thing) and hasattr(thing, "__name__"):
        return _name(thing)  # one that is built in
    names = [entry.name for entry in fields(thing)] if is_dataclass(thing) else list(getattr(thing, "__dict__", {}))
    values = {name: describe(getattr(thing, name, None), depth + 1) for name in names if name not in _VOLATILE}
    return [describe(type(thing), depth + 1), values]


def _class(cls: type, depth: int) -> list[Any]:
    """Return the name of a class, and the code and the plain values of those of its ancestors that are no package's."""
    own = [kind for kind in cls.__mro__ if not _package(kind.__module__)]
    return [
        _name(cls),
        [
            [kind.__qualname__, {name: _member(value, depth) for name, value in vars(kind).items() if _tells(value)}]
            for kind in own
        ],
    ]


def _tells(member: Any) -> bool:
    return isinstance(member, FunctionType | classmethod | staticmethod | property | int | float)


def _member(member: Any, depth: int) -> Any:
    if isinstance(member, property):
        return describe(member.fget, depth + 1)
    return describe(getattr(member, "__func__", member), depth + 1)


def _function(function: FunctionType, depth: int) -> Any:
    if _package(function.__module__) or depth > _DEEPEST:
        return _name(function)
    enclosed = [_settled(lambda cell=cell: cell.cell_contents, depth) for cell in function.__closure__ or ()]
    named = {
        name: _settled(lambda name=name: function.__globals__[name], depth)
        for name in sorted(_names(function.__code__))
        if name in function.__globals__
    }
    given = [describe(function.__defaults__, depth + 1), describe(function.__kwdefaults__, depth + 1)]
    return [function.__qualname__, _code(function.__code__), given, enclosed, named]


def _settled(read: Any, depth: int) -> Any:
    """Describe what a function refers to, if that is a setting or more code; of an object, the name of its class."""
    try:
        value = read()
    except ValueError:  # a cell that is still empty
        return None
    settled = isinstance(value, (*_PLAIN, list, tuple, dict, set, frozenset, FunctionType, partial))
    return describe(value, depth + 1) if settled else _name(value if isinstance(value, type) else type(value))


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _code(code: CodeType) -> list[Any]:
    constants = [_code(value) if isinstance(value, CodeType) else describe(value) for value in code.co_consts]
    return [hashlib.sha256(code.co_code).hexdigest(), constants, list(code.co_names)]


def _name(thing: Any) -> str:
    module = str(getattr(thing, "__module__", ""))
    return f"{_package(module)}.{getattr(thing, '__qualname__', thing)}"


@cache
def _package(module: str) -> str:
    """Return the installed package that a module belongs to, with its version; empty for a custom module."""
    top = module.partition(".")[0]
    file = str(getattr(sys.modules.get(top), "__file__", None) or "")
    if top in sys.stdlib_module_names and top != "__main__":
        return top
    if not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return ""
    try:
        return f"{top} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        return top


def _sorted(values: Any) -> list[Any]:
    return sorted(values, key=lambda value: json.dumps(value, sort_keys=True))
