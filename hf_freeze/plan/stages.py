"""What a plan is made of: stages, each with the time at which it starts. Knows no model.

A plan is a function of time, not a chain of events: every stage has a time at which it starts, and asking twice for
the stage at one step gives the same answer. That is what makes resuming exact.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import yaml

from hf_freeze.errors import PlanError
from hf_freeze.selection.language import Selection, parse


@dataclass(frozen=True)
class Plateau:
    """The moment when a metric has stopped improving, counted in evaluations since the stage before began.

    Args:
        metric: The name of a metric that evaluation logs, with its prefix `eval_` or without.
        patience: How many evaluations in a row without an improvement end the wait.
        min_delta: An improvement is a change by more than this.
        max_epochs: The wait ends after this many epochs at the latest.
        greater_is_better: The direction. None infers it as the Trainer does: a metric whose name ends in "loss" falls.
        restore_best: Put the weights back to the best ones of the stage that ends, before the next begins.

    Raises:
        PlanError: For a value of another type or out of range.
    """

    metric: str
    _: KW_ONLY
    patience: int = 1
    min_delta: float = 0.0
    max_epochs: float | None = None
    greater_is_better: bool | None = None
    restore_best: bool = False

    def __post_init__(self) -> None:
        if not self.metric or not isinstance(self.metric, str):
            raise PlanError(
                f"Plateau(metric={self.metric!r}): name a metric that evaluation logs, such as 'eval_loss'."
            )
        flags = isinstance(self.greater_is_better, bool | None) and isinstance(self.restore_best, bool)
        deadline = self.max_epochs is None or (is_number(self.max_epochs) and self.max_epochs > 0)
        if not (_is_count(self.patience) and is_number(self.min_delta) and self.min_delta >= 0 and deadline and flags):
            raise PlanError(
                f"{self!r}: patience must be a whole number of at least 1, min_delta a number of at least 0, "
                "max_epochs one above 0, greater_is_better True, False or None, restore_best True or False."
            )

    @property
    def rises(self) -> bool:
        """Whether a larger value is an improvement."""
        return not self.metric.endswith("loss") if self.greater_is_better is None else self.greater_is_better


FRESH_STEPS = 10
"""The number of first steps that do not count: Adam's are longer until momentum averages gradients."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The moment when what a stage freezes hardly moves any more.

    For each window of steps, the distance that these weights have moved is divided by the sum of their learning rates:
    under a decaying schedule all weights move less, and that is no settling. They have settled when the quotient falls
    to `threshold` of its highest in any window so far. Windows do not count while the rate rises, as in a warmup, nor
    in the first ten steps of training. Layer by layer from below is the way of AutoFreeze (Liu et al., 2021, arXiv
    2102.01386). That ranks layers by the change of their gradient norm and always freezes some; this waits, and freezes
    nothing where all layers go on as before.

    Args:
        threshold: The share of the highest quotient, between 0 and 1. A smaller one freezes later.
        window: How long a window is: a number of steps (1 or more), or a fraction of the run (below 1).
        patience: How many windows in a row must be below the threshold.

    Raises:
        PlanError: For a value of another type or out of range.
    """

    threshold: float = 0.75
    window: float = 0.05
    patience: int = 2

    def __post_init__(self) -> None:
        threshold = is_number(self.threshold) and 0 < self.threshold < 1
        window = is_number(self.window) and (0 < self.window < 1 or self.window == int(self.window) >= 1)
        if not (threshold and window and _is_count(self.patience)):
            raise PlanError(
                f"{self!r}: threshold must be between 0 and 1, window a whole number of steps or a fraction of the "
                "run below 1, patience a whole number of at least 1."
            )

    def window_steps(self, max_steps: int) -> int:
        """Return how many optimizer steps a window has in a run of `max_steps`."""
        return int(self.window) if self.window >= 1 else max(round(self.window * max_steps), 1)

    def least_steps(self, max_steps: int) -> int:
        """Return after how many steps of such a run something can have settled at the earliest."""
        window = self.window_steps(max_steps)
        return (math.ceil(FRESH_STEPS / window) + self.patience + 1) * window


_TIMES = ("epoch", "step", "fraction", "plateau", "settled")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """From its time on, `unfreeze` trains and `freeze` no longer does; what both pick is frozen.

    Args:
        epoch: It starts after this many epochs; 0.5 is half of one. Give exactly one of the five times.
        step: It starts after this many optimizer steps: step=500 makes the 501st its first.
        fraction: It starts after this part of the run, between 0 and 1.
        plateau: It starts when a metric has stopped improving.
        settled: It starts when what it freezes has settled.
        unfreeze: What trains from then on.
        freeze: What is frozen from then on.
        lr_factor: What every learning rate is multiplied with from then on; None keeps the factor of the stage before,
            which is 1 at the start.
        forget: Forget the optimizer's state of what the stage freezes. What is unfrozen again then starts fresh.

    Raises:
        PlanError: Without a time or with several, with neither `unfreeze` nor `freeze`, or for a time or a factor out
            of range.
        SelectionError: For a selection that cannot be read.

    >>> Stage(fraction=0.5, unfreeze="layers[-2:]").start(max_steps=100, steps_per_epoch=None)
    50
    """

    epoch: float | None = None
    step: int | None = None
    fraction: float | None = None
    plateau: Plateau | None = None
    settled: Settled | None = None
    unfreeze: Selection | None = None
    freeze: Selection | None = None
    lr_factor: float | None = None
    forget: bool = False

    def __post_init__(self) -> None:
        given = [name for name in _TIMES if getattr(self, name) is not None]
        if len(given) != 1:
            raise PlanError(
                f"A stage needs exactly one of {', '.join(_TIMES[:-1])} and {_TIMES[-1]}; this one has "
                f"{' and '.join(given) or 'none'}: {self!r}."
            )
        if self.unfreeze is None and self.freeze is None:
            raise PlanError(
                f"A stage must say what to unfreeze, what to freeze, or both; this one says neither: {self!r}."
            )
        if self.settled is not None and self.freeze is None:
            raise PlanError(f"A stage with settled= starts when what it freezes has settled; give freeze=: {self!r}.")
        if not isinstance(self.forget, bool) or (self.forget and self.freeze is None):
            raise PlanError(
                f"{self!r}: forget must be True or False. It forgets the optimizer's state of what the stage freezes, "
                "so forget=True needs freeze=."
            )
        if not self._has_a_valid_time():
            raise PlanError(
                f"{self!r}: a fraction must be between 0 and 1; an epoch or a step must not be negative, and a step "
                "must be a whole number."
            )
        if self.lr_factor is not None and not is_factor(self.lr_factor):
            raise PlanError(f"{self!r}: lr_factor must be a finite number above 0. For a rate of 0, freeze it.")
        for selection in (self.unfreeze, self.freeze):
            if selection is not None:
                parse(selection)

    def _has_a_valid_time(self) -> bool:
        if self.step is not None:
            return _is_count(self.step) or (self.step == 0 and type(self.step) is int)
        time = self.fraction if self.fraction is not None else self.epoch
        if time is None:
            return isinstance(self.settled if self.plateau is None else self.plateau, Plateau | Settled)
        return is_number(time) and time >= 0 and (self.fraction is None or 0 < time < 1)

    @property
    def time(self) -> dict[str, Any]:
        """The one time that is set, as JSON-able values."""
        name = next(name for name in _TIMES if getattr(self, name) is not None)
        condition = self.plateau or self.settled
        return {name: asdict(condition) if condition else getattr(self, name)}

    @property
    def when(self) -> str:
        """The stage's time as text: `epoch 1`, `step 500`, `fraction 0.3`, `plateau of eval_loss`, `settled at 0.5`."""
        if self.plateau is not None:
            return f"plateau of {self.plateau.metric}"
        if self.settled is not None:
            return f"settled at {self.settled.threshold:g}"
        ((name, value),) = self.time.items()
        return f"{name} {value:g}"

    def start(self, *, max_steps: int, steps_per_epoch: int | None) -> int | None:
        """Return the number of optimizer steps before it; None for a plateau or settling, not known ahead."""
        if self.step is not None:
            return self.step
        if self.fraction is not None:
            return _whole_steps(self.fraction * max_steps)
        if self.epoch is not None:
            if steps_per_epoch is None:
                raise PlanError(
                    f"Stage at {self.when}: the data has no length, so it is unknown how long an epoch is. Use step=."
                )
            return _whole_steps(self.epoch * steps_per_epoch)
        return None


@dataclass(frozen=True, kw_only=True)
class TopDown:
    """Gradual unfreezing (ULMFiT; Howard and Ruder, 2018): from the top layer down, one stage every `every_epochs`.

    It stands among the stages of a plan and becomes as many of them as the model has layers: the first unfreezes the
    top layers and what follows the layers (pooler, final norm), the last whatever is left.

    Args:
        every_epochs: Epochs from one stage to the next.
        layers_per_stage: How many layers each stage unfreezes.
    """

    every_epochs: float = 1.0
    layers_per_stage: int = 1

    def __post_init__(self) -> None:
        if not (is_number(self.every_epochs) and self.every_epochs > 0 and _is_count(self.layers_per_stage)):
            raise PlanError(f"{self!r}: every_epochs must be above 0, layers_per_stage a whole number of at least 1.")


@dataclass(frozen=True, kw_only=True)
class BottomUp:
    """Freeze from the bottom up as layers settle (AutoFreeze; Liu et al., 2021).

    It stands among the stages of a plan and becomes as many of them as the model has layers, less `keep`: the first
    freezes the embeddings and the lowest layer. Several begin at once where several layers have settled.

    Args:
        settled: When a layer has settled.
        keep: How many layers at the top always train.
    """

    settled: Settled = field(default_factory=Settled)
    keep: int = 1

    def __post_init__(self) -> None:
        if not (isinstance(self.settled, Settled) and (_is_count(self.keep) or self.keep == 0)):
            raise PlanError(f"{self!r}: settled must be a Settled, keep a whole number of at least 0.")


_ORDERS = ("random", "ascending", "descending")


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Train a few layers at a time, others after every few steps, and keep optimizer state only for those that train.

    It is a plan's only stage: what the plan trains from the start trains throughout, beside the layers whose turn it
    is. Every layer comes once in a cycle; in random order, each cycle has an order of its own. (LISA, Pan et al., 2024;
    BAdam, Luo et al., 2024, whose blocks are layers in ascending, descending or random order.)

    Args:
        layers: How many layers train at a time.
        every: After how many optimizer steps it is the turn of others.
        seed: What the random order follows, with the number of the cycle.
        order: "random", "ascending" (from the bottom up) or "descending".
    """

    layers: int = 2
    every: int = 20
    seed: int = 0
    order: str = "random"

    def __post_init__(self) -> None:
        seed = _is_count(self.seed) or (self.seed == 0 and type(self.seed) is int)
        if not (_is_count(self.layers) and _is_count(self.every) and seed and self.order in _ORDERS):
            raise PlanError(
                f"{self!r}: layers and every must be whole numbers of at least 1, seed one of at least 0, and order "
                f"one of {', '.join(_ORDERS)}."
            )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a value is a finite number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_factor(value: object) -> TypeGuard[int | float]:
    """Tell whether a value can multiply a learning rate: a finite number above 0."""
    return is_number(value) and value > 0


def _whole_steps(steps: float) -> int:
    return math.ceil(round(steps, 6))


AnyStage: TypeAlias = Stage | TopDown | BottomUp | Rotate
"""What the stages of a plan may consist of."""


def stage_from_dict(values: Mapping[str, Any]) -> AnyStage:
    """Read one stage; `plateau` is a metric's name or a mapping of `Plateau`'s fields, `settled` one of `Settled`'s."""
    if isinstance(values, Mapping) and values.keys() == {"top_down"}:
        return TopDown(**known_fields(TopDown, values["top_down"], "top_down"))
    if isinstance(values, Mapping) and values.keys() == {"bottom_up"}:
        rule = known_fields(BottomUp, values["bottom_up"], "bottom_up")
        return BottomUp(**{**rule, "settled": _settled(rule.get("settled", {}))})
    if isinstance(values, Mapping) and values.keys() == {"rotate"}:
        return Rotate(**known_fields(Rotate, values["rotate"], "rotate"))
    checked = known_fields(Stage, values, "a stage")
    if checked.get("settled") is not None:
        checked["settled"] = _settled(checked["settled"])
    plateau = checked.pop("plateau", None)
    if isinstance(plateau, str):
        plateau = Plateau(plateau)
    elif plateau is not None:
        plateau = Plateau(**{"metric": "", **known_fields(Plateau, plateau, "a plateau")})
    return Stage(plateau=plateau, **checked)


def _settled(values: Any) -> Settled:
    return values if isinstance(values, Settled) else Settled(**known_fields(Settled, values, "settled"))


def stage_to_dict(stage: AnyStage) -> dict[str, Any]:
    """Return one stage as JSON-able values; what is not set is left out."""
    if isinstance(stage, TopDown):
        return {"top_down": asdict(stage)}
    if isinstance(stage, BottomUp):
        return {"bottom_up": asdict(stage)}
    if isinstance(stage, Rotate):
        return {"rotate": asdict(stage)}
    changes = {"unfreeze": plain(stage.unfreeze), "freeze": plain(stage.freeze), "lr_factor": stage.lr_factor}
    changes["forget"] = stage.forget or None
    return {**stage.time, **{name: value for name, value in changes.items() if value is not None}}


def read_mapping(path: str | os.PathLike[str]) -> Any:
    """Read a YAML or JSON file; raises `PlanError` when there is none or it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        quote = " In YAML, quote entries with '!', '*' or brackets." if isinstance(error, yaml.YAMLError) else ""
        raise PlanError(f"The plan file {str(path)!r} cannot be read: {error}.{quote}") from error


def known_fields(cls: type, values: Any, what: str) -> dict[str, Any]:
    """Return a mapping of fields of the dataclass `cls`; raises `PlanError` for another key or another type."""
    names = [field.name for field in fields(cls) if field.name != "_"]
    if not isinstance(values, Mapping):
        raise PlanError(f"{what.capitalize()} is a mapping with the keys {', '.join(names)}; got {values!r}.")
    if unknown := [key for key in values if key not in names]:
        raise PlanError(f"{unknown[0]!r} is not a key of {what}. The keys are {', '.join(names)}.")
    return dict(values)


def plain(value: Any) -> Any:
    """Return a selection as JSON-able values."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
