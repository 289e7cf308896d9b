"""Values that more than one sub-command takes, checked before anything is loaded."""

from hf_freeze.errors import FreezeError

LARGEST_COUNT = 10**12
"""More than any run needs of anything, and far below what overflows the libraries."""

_LARGEST_SEED = 2**32 - 1  # that numpy takes


def check_seed(flag: str, seed: int) -> None:
    """Raise `FreezeError` for a seed that some generator of random numbers does not take."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise FreezeError(f"{flag} {seed!r}: give numbers from 0 to {_LARGEST_SEED}.")
