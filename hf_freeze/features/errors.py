"""Why a cache of frozen features is not used."""

from hf_freeze.errors import UnsupportedSetupError


class CacheRefused(UnsupportedSetupError):  # noqa: N818  # caught and logged, mostly
    """Features of the frozen part cannot be kept; the reason, as the end of a sentence. Training goes on without."""
