"""What an interrupted run left in its checkpoint, for the one that goes on from there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME

from hf_freeze.errors import FreezeError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.training.backends import inner_optimizer
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.run_state import RunState
from hf_freeze.training.saved_state import require_known_stages
from hf_freeze.training.snapshot import load_snapshot

logger = MainProcessLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResumedRun:
    """What an interrupted run left in the checkpoint `folder`."""

    folder: str | Path
    saved: Mapping[str, Any]
    """What `PlannedTraining.state` returned of the run, beside plan and settings."""
    plan_difference: str | None
    """How its plan or its groups differ from those of the run that goes on."""

    def go_on(self, run: FreezeRun, bound: BoundPlan, state: TrainerState, optimizer: object) -> None:
        """Begin `run` where the interrupted one was; the stages of another plan begin anew.

        Raises `FreezeError` where the state that was loaded into `optimizer` is of one of another kind.
        """
        self._require_state_of(optimizer)
        if self.plan_difference:
            run.begin()
            return
        require_known_stages(self.saved, stages=len(bound.resolved.timed), folder=self.folder)
        before = RunState.from_dict(self.saved["run"])
        best = load_snapshot(self.folder, bound, before.stage) if run.has_best(before) else {}
        if shifted := run.shifted(before, state.global_step):
            logger.warning(shifted)
        run.begin(before, best, step=state.global_step)

    def _require_state_of(self, optimizer: object) -> None:
        # torch takes it over, options and all, and the first step ends in a KeyError.
        inner: Any = inner_optimizer(optimizer)
        # When it loads, torch adds the last to the defaults of every optimizer, and to the groups of its own alone.
        options = getattr(inner, "defaults", {}).keys() - {"differentiable"}
        if lacking := sorted({name for group in inner.param_groups for name in options - group.keys()}):
            raise FreezeError(
                f"{str(Path(self.folder) / OPTIMIZER_NAME)!r} holds the state of another optimizer than this run's "
                f"{type(inner).__name__}, whose option {lacking[0]!r} it does not have. Resume with the optimizer that "
                "the run was begun with; to begin a new one, delete that file and resume a FreezeTrainer with "
                "ignore_plan_change=True."
            )
