"""Say once, on the main process, what every process sees alike."""

import logging
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    _Base = logging.LoggerAdapter[logging.Logger]
else:
    _Base = logging.LoggerAdapter


def is_main_process() -> bool:
    """Tell whether this is the only process, or rank 0 of several."""
    return not (dist.is_available() and dist.is_initialized() and dist.get_rank())


class MainProcessLogger(_Base):
    """Logs under this name on the main process, and nothing on others."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name), {})

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Tell whether a message of this level would be logged here."""
        return is_main_process() and super().isEnabledFor(level)
