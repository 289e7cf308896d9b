"""Which stage a step belongs to, once the length of the run is known."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

from hf_freeze.errors import PlanError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.stages import FRESH_STEPS, Stage

logger = MainProcessLogger(__name__)


class Timeline:
    """The stages of a plan laid over a run of `max_steps` optimizer steps.

    Stages start in their order. One whose time has come while a plateau before it still waits, waits with it. Raises
    `PlanError` for stages out of order or at one time; warns of stages after the end of the run, which never start.

    >>> timeline = Timeline([Stage(step=3, unfreeze="norms")], max_steps=10, steps_per_epoch=5)
    >>> timeline.stage_at(2, fired={}), timeline.stage_at(3, fired={})
    (0, 1)
    """

    def __init__(self, stages: Sequence[Stage], *, max_steps: int, steps_per_epoch: int | None) -> None:
        self._stages = tuple(stages)
        self._starts = [stage.start(max_steps=max_steps, steps_per_epoch=steps_per_epoch) for stage in stages]
        self._patience = [_longest_wait(stage, steps_per_epoch) for stage in stages]
        self._check_order()
        self._check_windows(max_steps)
        starts = zip(stages, self._starts, strict=True)
        self.late = [stage.when for stage, start in starts if (start or 0) >= max_steps]
        """The times of stages after the end of the run."""
        if self.late:
            late = ", ".join(self.late)
            logger.warning("The run ends after %d steps, before these stages start: %s.", max_steps, late)

    def begins(self, *, fired: Mapping[int, int]) -> list[int]:
        """Return after how many steps each stage begins, from stage 0 on, as far as that is known.

        `fired` says, by stage, after which step a plateau was found, or that layers had settled.
        """
        begins = [0]
        for index, start in enumerate(self._starts, start=1):
            if start is None:
                wait = self._patience[index - 1]
                known = [fired[index]] if index in fired else []
                start = min([*known, *([] if wait is None else [begins[-1] + wait])], default=None)
            if start is None:
                break
            begins.append(max(start, begins[-1]))
        return begins

    def shifted(self, begins: Sequence[int], *, stage: int, step: int, fired: Mapping[int, int]) -> str | None:
        """Say which stages begin at another time than in an interrupted run; None when none does.

        That run was in `stage` after `step` steps, and its stages began after `begins`.
        """
        times = self.begins(fired=fired)
        moved = [
            f"stage {index} ({self._stages[index - 1].when}) begins after step {now} instead of {before}"
            for index, (before, now) in enumerate(zip(begins, times, strict=False))
            if before != now
        ]
        if (now := self.stage_at(step, fired=fired)) < stage:
            when = self._stages[stage - 1].when
            then = f"after step {times[stage]}" if stage < len(times) else "later"
            moved.append(
                f"at step {step} it falls back from stage {stage} ({when}) to stage {now}, and enters stage {stage} "
                f"again {then}"
            )
        if not moved:
            return None
        return f"This run has another length, or epochs of another length, than the one it resumes: {'; '.join(moved)}."

    def stage_at(self, step: int, *, fired: Mapping[int, int]) -> int:
        """Return the stage of the optimizer step that comes after `step` steps."""
        return stage_of(self.begins(fired=fired), step)

    def awaited(self, step: int, *, fired: Mapping[int, int]) -> int | None:
        """Return the plateau stage that comes next, if that is what the plan waits for."""
        following = self.stage_at(step, fired=fired) + 1
        waits = following <= len(self._stages) and self._stages[following - 1].plateau is not None
        return following if waits else None

    def awaits_settling(self, step: int, *, fired: Mapping[int, int]) -> int | None:
        """Return the settling stage that comes next, if that is what the plan waits for."""
        following = self.stage_at(step, fired=fired) + 1
        waits = following <= len(self._stages) and self._stages[following - 1].settled is not None
        return following if waits else None

    def _check_windows(self, max_steps: int) -> None:
        for settled in filter(None, (stage.settled for stage in self._stages)):
            if settled.least_steps(max_steps) >= max_steps:
                raise PlanError(
                    f"{settled!r}: the run has {max_steps} steps, too few to measure when layers have settled: that "
                    f"takes at least {FRESH_STEPS} steps and then {settled.patience + 1} windows of "
                    f"{settled.window_steps(max_steps)}. Train for longer, or make the window smaller."
                )

    def _check_order(self) -> None:
        timed = [(stage, start) for stage, start in zip(self._stages, self._starts, strict=True) if start is not None]
        for (first, begins), (second, then) in pairwise(timed):
            if begins >= then:
                relation = "at the same step as" if begins == then else "after"
                raise PlanError(
                    f"The stage at {first.when} (step {begins}) starts {relation} the next one in the plan, at "
                    f"{second.when} (step {then}). List stages in the order of their times; merge two of one time."
                )


def stage_of(begins: Sequence[int], step: int) -> int:
    """Return the stage of the optimizer step that comes after `step` steps, where stages begin after `begins`."""
    return bisect_right(begins, step) - 1


def _longest_wait(stage: Stage, steps_per_epoch: int | None) -> int | None:
    """Return how many steps a plateau stage waits at most."""
    if stage.plateau is None or stage.plateau.max_epochs is None:
        return None
    if steps_per_epoch is None:
        raise PlanError(f"{stage.when}: max_epochs needs data with a length; this data has none. Leave max_epochs out.")
    return math.ceil(round(stage.plateau.max_epochs * steps_per_epoch, 6))
