"""The processes that share one extraction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from hf_freeze.errors import in_one_line
from hf_freeze.features.errors import CacheRefused


@dataclass(frozen=True)
class Ranks:
    """Who this process is: the `index`-th of `count`, and the `local`-th of `local_count` on its machine."""

    index: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1

    @classmethod
    def now(cls) -> "Ranks":
        """Return the place of this process, as accelerate has it."""
        state = PartialState()
        per_machine = [index for index, local in enumerate(_gather(state.local_process_index)) if local == 0]
        first = max((index for index in per_machine if index <= state.process_index), default=0)
        following = min((index for index in per_machine if index > first), default=state.num_processes)
        return cls(state.process_index, state.num_processes, state.process_index - first, following - first)

    def together(self, act: Callable[[], Any]) -> Any:
        """Call `act` on every process. Where it fails on any of them, for any reason, all raise `CacheRefused`."""
        result, refusal = None, None
        try:
            result = act()
        except Exception as error:  # nothing that is looked for here may end a run that needs none of it
            refusal = reason(error)
        refusals = [text for text in self.gather(refusal) if text is not None]
        if refusals:
            raise CacheRefused(refusals[0])
        return result

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order."""
        return [value] if self.count == 1 else _gather(value)

    def of_main(self, value: Any) -> Any:
        """Return the value of the main process."""
        return self.gather(value)[0]

    def of_leader(self, value: Any) -> Any:
        """Return the value of the first process of this machine."""
        return self.gather(value)[self.index - self.local]


def reason(error: Exception) -> str:
    """Say why features are not kept, as the end of a sentence."""
    if isinstance(error, CacheRefused):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error):
        torch.cuda.empty_cache()
        return "memory ran out while trying it out"
    return f"trying it out failed ({in_one_line(error)})"


def _gather(value: Any) -> list[Any]:
    if PartialState().num_processes == 1:
        return [value]
    gathered: list[Any] = gather_object([value])
    return gathered
