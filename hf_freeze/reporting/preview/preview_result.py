"""The result of a preview: stages, their groups, and a table of both."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_freeze.features.cost import in_bytes
from hf_freeze.plan.tables import as_table
from hf_freeze.reporting.preview.rates import RateSchedule


@dataclass(frozen=True, kw_only=True)
class GroupPreview:
    """One optimizer group in one stage; what was trained before and is frozen again keeps its optimizer state.

    `learning_rate` is the one that the scheduler starts from, 0 while the group is frozen.
    """

    name: str
    trains: bool
    parameters: int
    learning_rate: float
    weight_decay: float
    optimizer_bytes: int | None
    gradient_bytes: int


@dataclass(frozen=True, kw_only=True)
class StagePreview:
    """One stage: its groups that train or hold optimizer state, and what the model as a whole takes in it.

    `cost` is that of a forward and a backward pass, 1.0 being full fine-tuning. What could not be found out is None.
    """

    index: int
    starts: str
    step: int | None
    groups: tuple[GroupPreview, ...]
    activation_bytes: int | None
    ddp_bytes: int
    cost: float | None

    @property
    def parameters(self) -> int:
        """Parameters that train."""
        return sum(group.parameters for group in self.groups if group.trains)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients."""
        return sum(group.gradient_bytes for group in self.groups)

    @property
    def optimizer_bytes(self) -> int | None:
        """Bytes of optimizer state of all groups."""
        known = [group.optimizer_bytes for group in self.groups if group.optimizer_bytes is not None]
        return sum(known) if len(known) == len(self.groups) else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, the sums over the groups among them."""
        sums = {name: getattr(self, name) for name in ("parameters", "optimizer_bytes", "gradient_bytes")}
        return {**asdict(self), **sums}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What `preview` found. `str()` is a table of stages and groups; bytes are those of one process, unsharded.

    Attributes:
        model: The name of the model's class.
        parameters: How many parameters it has, tied ones counted once.
        weight_bytes: Bytes of its weights.
        optimizer: The name of the optimizer.
        batch: The batch that activations and cost are for, such as "16 rows of 128 tokens".
        stages: One `StagePreview` per stage, each with its groups.
        schedule: The learning rates over the run, which `plot_plan` draws; None where its length is not known.
        remarks: What could not be found out, and why.
    """

    model: str
    parameters: int
    weight_bytes: int
    optimizer: str
    batch: str
    stages: tuple[StagePreview, ...]
    schedule: RateSchedule | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        values = {name: getattr(self, name) for name in ("model", "parameters", "weight_bytes", "optimizer", "batch")}
        run = {"max_steps": self.schedule.max_steps if self.schedule else None}
        return {**values, **run, "stages": [stage.to_dict() for stage in self.stages], "remarks": list(self.remarks)}

    def __str__(self) -> str:
        cells = [row for stage in self.stages for row in _rows(stage)]
        lines = [
            f"{self.model}: {self.parameters:,} parameters, {in_bytes(self.weight_bytes)}; {self.optimizer}",
            as_table([_HEADER, *cells]),
            f"optimizer: its state. activations: kept between forward and backward, for {self.batch}.",
            "DDP sends: per optimizer step and process. cost: forward and backward, full fine-tuning being 1.",
            *self.remarks,
        ]
        return "\n".join(lines)


_HEADER = (
    *("stage", "starts", "group", "parameters", "lr", "decay"),
    *("optimizer", "gradients", "activations", "DDP sends", "cost"),
)


def _rows(stage: StagePreview) -> Iterator[tuple[str, ...]]:
    """Return the rows of one stage: one a group, and below several groups one for all of them."""
    starts = stage.starts if stage.step is None or not stage.index else f"{stage.starts} (step {stage.step})"
    activations = "?" if stage.activation_bytes is None else in_bytes(stage.activation_bytes)
    cost = "?" if stage.cost is None else f"{stage.cost:.2f}"
    whole = (activations, in_bytes(stage.ddp_bytes), cost)
    several = len(stage.groups) > 1
    first = (str(stage.index), starts)
    for group in stage.groups:
        yield (*first, *_group_cells(group), *(("", "", "") if several else whole))
        first = ("", "")
    if several:
        sums = (f"{stage.parameters:,}", "", "", _state(stage.optimizer_bytes), in_bytes(stage.gradient_bytes))
        yield ("", "", "all", *sums, *whole)


def _group_cells(group: GroupPreview) -> tuple[str, ...]:
    state = _state(group.optimizer_bytes)
    if not group.trains:
        return (f"{group.name} (frozen)", "0", "", "", state, in_bytes(0))
    rates = (f"{group.learning_rate:.3g}", f"{group.weight_decay:.3g}")
    return (group.name, f"{group.parameters:,}", *rates, state, in_bytes(group.gradient_bytes))


def _state(count: int | None) -> str:
    return "?" if count is None else in_bytes(count)
