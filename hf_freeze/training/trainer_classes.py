"""`freezing`: the Trainer of any library with a freeze plan, in one line."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import Trainer, TrainingArguments

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.training.arguments import FreezeArguments
from hf_freeze.training.arguments_class import arguments_class
from hf_freeze.training.trainer import FreezeTrainerMixin


def freezing(trainer: type[Trainer], arguments: type[TrainingArguments] | None = None) -> tuple[type[Any], type[Any]]:
    """Give a Trainer class and its arguments class a freeze plan.

    In one line: `FreezeSFTTrainer, FreezeSFTConfig = freezing(SFTTrainer)`.

    Args:
        trainer: A subclass of `transformers.Trainer`.
        arguments: Its arguments class. Without it, the one that its library names like the Trainer or in the annotation
            of `args` (`SFTConfig` for `SFTTrainer`), or else `TrainingArguments`.

    Returns:
        `class (FreezeTrainerMixin, trainer)`, and a dataclass of `FreezeArguments` and `arguments` for constructors,
        `HfArgumentParser` and YAML files. Either may be subclassed further; a class that has a plan already is
        returned as it is.

    Raises:
        UnsupportedSetupError: Where `trainer` is not a Trainer, or `arguments` not a dataclass of TrainingArguments.

    >>> from transformers import Seq2SeqTrainer
    >>> trainer, arguments = freezing(Seq2SeqTrainer)
    >>> trainer.__name__, arguments.__name__
    ('FreezeSeq2SeqTrainer', 'FreezeSeq2SeqTrainingArguments')
    """
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise UnsupportedSetupError(f"freezing({trainer!r}): give a subclass of transformers.Trainer.")
    arguments = arguments_class(trainer) if arguments is None else arguments
    if not (isinstance(arguments, type) and issubclass(arguments, TrainingArguments)):
        raise UnsupportedSetupError(
            f"freezing({trainer.__name__}, {arguments!r}): give a subclass of transformers.TrainingArguments."
        )
    made: tuple[Any, Any] = trainer, arguments
    return _with_plan(made[0]), _with_fields(made[1])


@cache
def _with_plan(trainer: Any) -> Any:
    if issubclass(trainer, FreezeTrainerMixin):
        return trainer
    names = {"__doc__": trainer.__doc__, "__module__": __name__}
    return type(trainer)(f"Freeze{trainer.__name__}", (FreezeTrainerMixin, trainer), names)


@cache
def _with_fields(arguments: Any) -> Any:
    if issubclass(arguments, FreezeArguments):
        return arguments
    names = {"__doc__": arguments.__doc__, "__module__": __name__, "__reduce_ex__": _reduce}
    return dataclass(type(f"Freeze{arguments.__name__}", (FreezeArguments, arguments), names))


def _reduce(self: Any, protocol: Any) -> Any:
    """Pickle an instance by the class that `freezing` was given: the one made of it has no name to be found by."""
    bases = type(self).__bases__
    if "__reduce_ex__" in vars(type(self)):
        return _restored, (bases[1], vars(self))
    return object.__reduce_ex__(self, protocol)  # of a subclass, which has one


def _restored(arguments: Any, values: dict[str, Any]) -> Any:
    made = _with_fields(arguments)
    instance = object.__new__(made)
    vars(instance).update(values)
    return instance
