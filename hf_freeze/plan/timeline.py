"""Which stage a step belongs to, once the length of the run is known."""

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise

from hf_freeze.errors import PlanError
from hf_freeze.plan.stages import Stage

logger = logging.getLogger(__name__)


class Timeline:
    """The stages of a plan laid over a run of `max_steps` optimizer steps.

    Stages start in their order. One whose time has come while a plateau before it still waits, waits with it. Raises
    `PlanError` for stages out of order or at one time; warns of a stage after the end of the run, which never starts.
    """

    def __init__(self, stages: Sequence[Stage], *, max_steps: int, steps_per_epoch: int | None) -> None:
        self._starts = [stage.start(max_steps=max_steps, steps_per_epoch=steps_per_epoch) for stage in stages]
        self._check_order(stages)
        for stage, start in zip(stages, self._starts, strict=True):
            if start is not None and start >= max_steps:
                logger.warning(
                    "The stage at %s would start after step %d, but the run has %d: it never does.",
                    stage.when,
                    start,
                    max_steps,
                )

    def stage_at(self, step: int, fired: Mapping[int, int]) -> int:
        """Return the stage (0 is the start) of the step after `step` steps; `fired` says when plateau stages began."""
        for index, start in enumerate(self._starts, start=1):
            begins = fired.get(index) if start is None else start
            if begins is None or step < begins:
                return index - 1
        return len(self._starts)

    def _check_order(self, stages: Sequence[Stage]) -> None:
        timed = [(stage, start) for stage, start in zip(stages, self._starts, strict=True) if start is not None]
        for (first, begins), (second, then) in pairwise(timed):
            if begins >= then:
                relation = "at the same step as" if begins == then else "after"
                raise PlanError(
                    f"The stage at {first.when} (step {begins}) starts {relation} the next one in the plan, at "
                    f"{second.when} (step {then}). List stages in the order of their times; join two at one time."
                )
