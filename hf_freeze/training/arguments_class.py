"""Which arguments class belongs to a Trainer class, and what the arguments of its constructor are called."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainingArguments

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.training.arguments import FreezeArguments


@contextmanager
def naming_other_arguments(trainer: type, args: Any) -> Iterator[None]:
    """Say so where a constructor fails after it was given `FreezeArguments` of another class than its library's."""
    try:
        yield
    except FreezeError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        wanted = arguments_class(trainer)
        if not isinstance(args, FreezeArguments) or isinstance(args, wanted):
            raise
        raise UnsupportedSetupError(
            f"{trainer.__name__} was given {type(args).__name__} as args, and failed ({error}). Its own "
            f"arguments class is {wanted.__name__}: freezing({trainer.__name__}) returns it with the fields of a plan."
        ) from error


def arguments_class(trainer: type[Trainer]) -> type[TrainingArguments]:
    """Find the arguments class that belongs to a Trainer class, or to the nearest of its bases that has one.

    >>> from transformers import Seq2SeqTrainer
    >>> arguments_class(Seq2SeqTrainer).__name__
    'Seq2SeqTrainingArguments'
    """
    bases = [base for base in trainer.__mro__ if issubclass(base, Trainer) and base is not Trainer]
    found = (kind for base in bases for name in _names(base) for kind in _lookup(base, name))
    return next((kind for kind in found if kind is not TrainingArguments), TrainingArguments)


def _names(base: type) -> list[str]:
    """Return how the arguments class may be called: after the Trainer, or as the annotation of `args` says."""
    stem = base.__name__.removesuffix("Trainer")
    args = inspect.signature(base).parameters.get("args")
    annotated = re.findall(r"\w+", re.sub(r"\w+\.", "", str(args.annotation))) if args is not None else []
    return [f"{stem}TrainingArguments", f"{stem}Config", *annotated]


def _lookup(base: type, name: str) -> Iterator[type[TrainingArguments]]:
    """Look the name up in the module that defines `base` and in the packages around it, from the inside out."""
    parts = base.__module__.split(".")
    for depth in range(len(parts), 0, -1):
        found = getattr(sys.modules.get(".".join(parts[:depth])), name, None)
        if isinstance(found, type) and issubclass(found, TrainingArguments):
            yield found


def by_name(trainer: type, mixin: type, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a Trainer's constructor as the first class behind `mixin` that has `args` does."""
    for cls in trainer.__mro__[trainer.__mro__.index(mixin) + 1 :]:
        parameters = list(inspect.signature(cls).parameters.values()) if "__init__" in vars(cls) else []
        places = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        if "args" in places:
            return {**dict(zip(places, positional, strict=False)), **named}
    return dict(named)
