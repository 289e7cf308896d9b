"""Have layers settled? Watches how far weights move relative to their learning rate, as a share of the most so far."""

import base64
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from hf_freeze.errors import PlanError, UnsupportedSetupError
from hf_freeze.plan.freeze_plan import ResolvedPlan
from hf_freeze.plan.stages import FRESH_STEPS, Settled
from hf_freeze.plan.tables import describe_parts
from hf_freeze.training.bound_plan import BoundPlan
from hf_freeze.training.schedule import names_by_group

logger = logging.getLogger(__name__)

_SAMPLED = 1024
"""How many weights of a stage are sampled; the distance that they move is an estimate of that of all."""


@dataclass(frozen=True, kw_only=True)
class SettlingWatch:
    """What was seen of the weights that a stage freezes.

    Attributes:
        sample: Some of them, float32, as the window began; None where the window does not count.
        seen: After how many steps that was.
        steps: How many steps they have trained, since they were last unfrozen.
        rate: The sum of their learning rates since the window began.
        highest: The highest learning rate that they have had.
        farthest: The longest distance in any window, over the sum of the learning rates in it.
        last: The distance in the last one, in the same way.
        below: How many windows in a row were below the threshold.
    """

    sample: torch.Tensor | None = None
    seen: int = -1
    steps: int = 0
    rate: float = 0.0
    highest: float = 0.0
    farthest: float = 0.0
    last: float = 0.0
    below: int = 0

    def step(self, rate: float) -> "SettlingWatch":
        """Return the watch after a step at this learning rate; a window in which warmup raises it does not count."""
        rises = self.steps > 0 and rate > self.highest
        sample, highest = None if rises else self.sample, max(self.highest, rate)
        return replace(self, sample=sample, steps=self.steps + 1, rate=self.rate + rate, highest=highest)

    def see(self, distance: float, *, settled: Settled) -> "SettlingWatch":
        """Return the watch after one more window. A distance that is not finite says nothing."""
        if not math.isfinite(distance):
            return replace(self, below=0)
        farthest = max(self.farthest, distance)
        is_below = distance <= settled.threshold * farthest and farthest > 0
        return replace(self, farthest=farthest, last=distance, below=self.below + 1 if is_below else 0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values: the sample as the base64 of its bytes."""
        sample = None if self.sample is None else base64.b64encode(self.sample.numpy().tobytes()).decode()
        return {**asdict(replace(self, sample=None)), "sample": sample}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SettlingWatch":
        """Read what `to_dict` returned."""
        text = values["sample"]
        sample = None if text is None else torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)
        return cls(**{**values, "sample": sample})


class SettlingMonitor:
    """Watches, for each stage that waits for layers to settle, the weights that it will freeze."""

    def __init__(self, bound: BoundPlan, optimizer: torch.optim.Optimizer, *, max_steps: int) -> None:
        self._bound = bound
        self._optimizer = optimizer
        self._max_steps = max_steps
        timed, stages = bound.resolved.timed, bound.resolved.stages
        self._settled = {index: stage.settled for index, stage in enumerate(timed, start=1) if stage.settled}
        self._names = {index: sorted(stages[index - 1] - stages[index]) for index in self._settled}
        self._trains = {index: [names.issuperset(of) for names in stages] for index, of in self._names.items()}
        members = names_by_group(optimizer, bound) if self._settled else []
        self._groups = {
            index: [place for place, held in enumerate(members) if not held.isdisjoint(names)]
            for index, names in self._names.items()
        }
        self._refuse_rates_of_0()

    @property
    def is_needed(self) -> bool:
        """Whether any stage waits for layers to settle."""
        return bool(self._settled)

    def before_optimizer_step(self, watches: dict[int, SettlingWatch], *, stage: int) -> None:
        """Add up the learning rates of what later stages freeze, for the step that the optimizer is about to make."""
        for index in filter(stage.__lt__, self._settled):
            if self._trains[index][stage]:
                rates = [float(self._optimizer.param_groups[place]["lr"]) for place in self._groups[index]]
                watches[index] = watches.get(index, SettlingWatch()).step(sum(rates) / max(len(rates), 1))
            else:  # what was seen before they were frozen is over
                watches.pop(index, None)

    def observe(self, watches: dict[int, SettlingWatch], step: int, *, stage: int) -> None:
        """Bring the watches of later stages up to date before the optimizer step that comes after `step` steps."""
        due = [index for index, settled in self._settled.items() if index > stage and not step % self._window(settled)]
        due = [index for index in due if index in watches and watches[index].seen != step]
        if not due:
            return
        samples = [self._sample(index) if watches[index].steps >= FRESH_STEPS else None for index in due]
        distances = [_distance(watches[index], sample) for index, sample in zip(due, samples, strict=True)]
        broadcast_object_list(distances)  # every process goes by what the main process saw
        for index, sample, distance in zip(due, samples, distances, strict=True):
            watch = watches[index]
            watch = watch if distance is None else watch.see(distance, settled=self._settled[index])
            watches[index] = replace(watch, sample=sample, seen=step, rate=0.0)

    def has_settled(self, watches: Mapping[int, SettlingWatch], stage: int) -> bool:
        """Tell whether what this stage freezes has settled."""
        return stage in watches and watches[stage].below >= self._settled[stage].patience

    def reason(self, watches: Mapping[int, SettlingWatch], stage: int) -> str:
        """Say why this stage begins."""
        settled, watch = self._settled[stage], watches[stage]
        return (
            f"{describe_parts(self._names[stage], self._bound.resolved.model_map)} settled: over the last "
            f"{self._window(settled)} steps they moved {watch.last / watch.farthest:.2f} times as far for their "
            f"learning rate as over those in which they moved farthest (threshold {settled.threshold:g})"
        )

    def _window(self, settled: Settled) -> int:
        return settled.window_steps(self._max_steps)

    def _refuse_rates_of_0(self) -> None:
        for index, places in self._groups.items():
            groups = [self._optimizer.param_groups[place] for place in places]
            # At the first step of a warmup the rate is 0 as well, and the scheduler knows what it rises to.
            if groups and not any(group["lr"] or group.get("initial_lr") for group in groups):
                parts = describe_parts(self._names[index], self._bound.resolved.model_map)
                raise PlanError(
                    f"The plan waits for {parts} to settle, whose learning rate is 0: they never move, so there is "
                    "nothing to measure. Freeze them from the start, or give them a rate."
                )

    def _sample(self, index: int) -> torch.Tensor:
        """Return some weights of each tensor, always the same, scaled so that distances estimate those of all."""
        parameters = self._bound.parameters
        names = self._names[index]
        draw = torch.Generator().manual_seed(0)
        samples = []
        for name in names:
            flat = parameters[name].detach().reshape(-1)
            count = min(max(_SAMPLED // len(names), 1), len(flat))
            places = torch.randint(len(flat), (count,), generator=draw).to(flat.device)
            samples.append(flat[places].float().cpu() * (len(flat) / count) ** 0.5)
        return torch.cat(samples)


def warn_of_warmup(args: TrainingArguments, resolved: ResolvedPlan, *, max_steps: int) -> None:
    """Warn where nothing can settle, as the learning rate rises for so long that no windows are left to count."""
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    warmup = 0 if name in ("constant", "reduce_lr_on_plateau") else args.get_warmup_steps(max_steps)
    for settled in filter(None, (stage.settled for stage in resolved.timed)):
        if warmup + (settled.patience + 1) * settled.window_steps(max_steps) >= max_steps:
            logger.warning(
                "Nothing will settle: the learning rate rises for %d of the %d steps, and windows count only after "
                "that: %d of %d steps. Make the warmup or the window shorter.",
                *(warmup, max_steps, settled.patience + 1, settled.window_steps(max_steps)),
            )
            return


def refuse_settling(resolved: ResolvedPlan, what: str) -> None:
    """Raise `UnsupportedSetupError` for a plan that waits for layers to settle, where no process has them whole."""
    if any(stage.settled for stage in resolved.timed):
        raise UnsupportedSetupError(
            f"{what} keeps weights in shards or in copies, and Stage(settled=...) compares whole weights. Give the "
            "stage an epoch or a step."
        )


def _distance(watch: SettlingWatch, now: torch.Tensor | None) -> float | None:
    """Return how far the weights moved relative to their learning rate; None where the window does not count."""
    before = watch.sample
    if before is None or now is None or len(before) != len(now) or not watch.rate:
        return None
    return float(torch.linalg.vector_norm(now - before)) / watch.rate
