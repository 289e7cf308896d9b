"""What an interrupted run left in its checkpoint, for the one that goes on from there."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState

from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.run_state import RunState
from hf_freeze.training.saved_state import require_known_stages
from hf_freeze.training.snapshot import load_snapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResumedRun:
    """What an interrupted run left in the checkpoint `folder`."""

    folder: str | Path
    saved: Mapping[str, Any]
    """What `PlannedTraining.state` returned of the run, beside plan and settings."""
    plan_difference: str | None
    """How its plan or its groups differ from those of the run that goes on."""

    def go_on(self, run: FreezeRun, bound: BoundPlan, state: TrainerState) -> None:
        """Begin `run` where the interrupted one was; the stages of another plan begin anew."""
        if self.plan_difference:
            run.begin()
            return
        require_known_stages(self.saved, stages=len(bound.resolved.timed), folder=self.folder)
        before = RunState.from_dict(self.saved["run"])
        best = load_snapshot(self.folder, bound, before.stage) if run.has_best(before) else {}
        if (shifted := run.shifted(before, state.global_step)) and state.is_world_process_zero:
            logger.warning(shifted)
        run.begin(before, best, step=state.global_step)
