"""The learning rate of every group at every step of a run, before it is run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.plan.rotation import Rotation
from hf_freeze.plan.stages import Stage
from hf_freeze.plan.timeline import Timeline
from hf_freeze.training.groups import GroupSpec
from hf_freeze.training.schedule import rate_factor, warmup_steps


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """Scheduler, gate and warmup of a run of `max_steps`, as training applies them.

    `begins` says after how many steps each stage begins, as far as that is known: a plateau without `max_epochs`, and
    what comes behind it, is not. A scheduler that reacts to metrics counts as constant.
    """

    max_steps: int
    steps_per_epoch: int | None
    begins: tuple[int, ...]
    warmup: int
    base_rates: Mapping[str, float]
    trains: Mapping[str, tuple[bool, ...]]
    factors: Sequence[float]
    scheduler: Callable[[int], float] = field(repr=False)
    rotation: Rotation | None = field(default=None, repr=False)
    first_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of each group, one of its parameters; all of them are of one layer of a rotation, or of none."""

    def rates(self, step: int) -> dict[str, float]:
        """Return the learning rate of each group in the optimizer step that comes after `step` steps; 0 is frozen."""
        scheduled = self.scheduler(step)
        return {
            name: rate
            * scheduled
            * rate_factor(self.trains[name], self.begins, step, self.warmup, self.factors)
            * self._turn(name, step)
            for name, rate in self.base_rates.items()
        }

    def is_frozen(self, name: str, step: int) -> bool:
        """Tell whether a group is frozen in this optimizer step; one that is not may have a rate of 0 all the same."""
        stage = sum(begin <= step for begin in self.begins) - 1
        return not self.trains[name][stage] or not self._turn(name, step)

    def _turn(self, name: str, step: int) -> float:
        if self.rotation is None:
            return 1.0
        return self.rotation.factor(self.rotation.places({self.first_names[name]}), step, self.warmup)


def rate_schedule(
    args: TrainingArguments, resolved: ResolvedPlan, specs: Sequence[GroupSpec], *, rows: int | None
) -> RateSchedule | None:
    """Lay the plan over a run on `rows` of training data; None where the length of the run is not known.

    Raises `PlanError` where the length is known in steps and the plan counts epochs.
    """
    per_epoch = None if rows is None else steps_per_epoch(args, rows)
    if args.max_steps > 0:
        max_steps = args.max_steps
    elif per_epoch is not None:
        max_steps = math.ceil(args.num_train_epochs * per_epoch)
    else:
        return None
    if per_epoch is None and (counted := [stage.when for stage in resolved.timed if _counts_epochs(stage)]):
        raise PlanError(
            f"The stage at {counted[0]} counts epochs, but it is unknown how many steps an epoch has. Give rows=, the "
            "number of rows of training data, or use step=."
        )
    if resolved.rotation is not None:
        resolved.rotation.check_length(max_steps)
    timeline = Timeline(resolved.timed, max_steps=max_steps, steps_per_epoch=per_epoch)
    return RateSchedule(
        max_steps=max_steps,
        steps_per_epoch=per_epoch,
        begins=tuple(timeline.begins(fired={})),
        warmup=warmup_steps(getattr(args, "unfreeze_warmup", 0.0), max_steps),
        base_rates={spec.name: spec.options["lr"] for spec in specs},
        trains={spec.name: tuple(spec.parameters[0] in names for names in resolved.stages) for spec in specs},
        factors=resolved.lr_factors,
        scheduler=_scheduler(args, max_steps),
        rotation=resolved.rotation,
        first_names={spec.name: spec.parameters[0] for spec in specs},
    )


def _counts_epochs(stage: Stage) -> bool:
    return stage.epoch is not None or (stage.plateau is not None and stage.plateau.max_epochs is not None)


def steps_per_epoch(args: TrainingArguments, rows: int) -> int:
    """Count optimizer steps per epoch as the Trainer does."""
    whole = math.floor if args.dataloader_drop_last else math.ceil
    batches: int = whole(rows / (args.train_batch_size * args.world_size))
    return max(math.ceil(batches / args.gradient_accumulation_steps), 1)


def _scheduler(args: TrainingArguments, max_steps: int) -> Callable[[int], float]:
    """Return the factor of the Trainer's scheduler on every group's rate, by step."""
    scheduler = trainers_scheduler(args, max_steps)
    return scheduler.lr_lambdas[0] if isinstance(scheduler, LambdaLR) else lambda step: 1.0


def trainers_scheduler(args: TrainingArguments, max_steps: int) -> Any:
    """Build the scheduler that the Trainer builds, over an optimizer of its own. Raises what transformers raises."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([torch.zeros(())], lr=args.learning_rate),
        num_warmup_steps=args.get_warmup_steps(max_steps),
        num_training_steps=max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type] # text is read by the arguments
    )
