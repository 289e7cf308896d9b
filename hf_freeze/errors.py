"""Every error that hf_freeze raises on purpose, and how it quotes those of others.

A message says what was given, what was found, and what to do. All derive from `ValueError`, so that code which
already guards a Trainer set-up against bad values needs no new `except`.
"""


class FreezeError(ValueError):
    """Base of every error that hf_freeze raises."""


class SelectionError(FreezeError):
    """A selection cannot be read, or picks nothing in this model."""


class PlanError(FreezeError):
    """A plan, its groups or its arguments contradict themselves or the model."""


class UnsupportedSetupError(FreezeError):
    """The training set-up cannot honour the plan: wrapper, optimizer, precision or quantisation."""


class FreezeViolation(FreezeError):  # noqa: N818 - a fixed public name; it reports a finding, not a mistaken call
    """A frozen parameter or buffer changed, a trainable one did not, or replicas differ."""


class SampleCheckError(FreezeError):
    """`debug_sample(..., raise_on_failure=True)` found a check that failed. `report` is what it would have returned."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


def in_one_line(error: BaseException, *, most: int = 200) -> str:
    """Return an error that another library raised, with at most so many characters of its message.

    >>> in_one_line(KeyError("labels"))
    "KeyError: 'labels'"
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}".rstrip(": ")
