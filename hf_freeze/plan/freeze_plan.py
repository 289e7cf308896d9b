"""A plan as declared, and resolved for a model: which parameters train in each stage."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any

from hf_freeze.errors import PlanError
from hf_freeze.plan.rotation import Rotation, resolve_rotation
from hf_freeze.plan.stages import (
    AnyStage,
    Rotate,
    Stage,
    is_factor,
    known_fields,
    plain,
    read_mapping,
    stage_from_dict,
    stage_to_dict,
)
from hf_freeze.plan.tables import as_table, describe_parts
from hf_freeze.plan.trainable import all_but, changed, trainable_only
from hf_freeze.plan.written_out import written_out
from hf_freeze.selection.cuts import cut_at, sizes_of
from hf_freeze.selection.language import Selection, parse
from hf_freeze.selection.model_map import ModelMap, map_model, unwrap

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """What trains from the start, and how that changes over the run.

    Args:
        freeze: What is frozen from the start; everything else trains. Give exactly one of `freeze` and `trainable`.
        trainable: What trains from the start; everything else is frozen.
        stages: Changes over the run, in the order of their times.
        lr_factors: Maps a selection to a factor on its learning rate: `{"head": 10.0}`. A rate from `group_lrs` takes
            precedence.
        lr_spread: How many times lower the learning rate is at the bottom (the embeddings) than at the top (the head),
            falling by the same factor from layer to layer; 1 is one rate for all. A `layer_lr_decay` other than 1 takes
            its place.

    Raises:
        PlanError: With both of `freeze` and `trainable` or neither, for invalid stages, or for a factor that is not a
            finite number above 0.
        SelectionError: For a selection that cannot be read.

    >>> plan = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="layers[-1]")])
    >>> plan == FreezePlan.from_dict(plan.to_dict())
    True
    """

    freeze: Selection | None = None
    trainable: Selection | None = None
    stages: Sequence[AnyStage] = ()
    lr_factors: Mapping[str, float] = field(default_factory=dict, hash=False)
    lr_spread: float = 1.0

    def __post_init__(self) -> None:
        given, found = [n for n in ("freeze", "trainable") if getattr(self, n) is not None], ""
        if len(given) != 1:
            found = f"freeze={self.freeze!r} and trainable={self.trainable!r}" if given else "neither"
            raise PlanError(
                f"A plan needs exactly one of freeze= and trainable=, each the complement of the other; got {found}."
            )
        parse(getattr(self, given[0]))
        if not isinstance(self.stages, Sequence) or isinstance(self.stages, str):
            raise PlanError(f"stages= must be a list of Stage objects; got {self.stages!r}.")
        object.__setattr__(self, "stages", tuple(self.stages))
        for stage in self.stages:
            if not isinstance(stage, AnyStage):
                raise PlanError(
                    f"stages= holds Stage objects; found {stage!r}. For plain dicts use FreezePlan.from_dict."
                )
        if len(self.stages) > 1 and (rules := [stage for stage in self.stages if isinstance(stage, Rotate)]):
            raise PlanError(
                f"stages= holds {rules[0]!r} and {len(self.stages) - 1} others: a rotation goes on from the start of "
                "a run to its end. Make it the only stage; what the plan trains from the start goes on training beside "
                "the layers whose turn it is."
            )
        self._check_rates()

    def _check_rates(self) -> None:
        if not isinstance(self.lr_factors, Mapping):
            raise PlanError(
                f"lr_factors={self.lr_factors!r} is not a mapping of selections to factors, such as {{'head': 10}}."
            )
        object.__setattr__(self, "lr_factors", dict(self.lr_factors))
        for selection, factor in self.lr_factors.items():
            parse(selection)
            if not is_factor(factor):
                raise PlanError(f"lr_factors[{selection!r}]={factor!r} is not a finite number above 0.")
        if not (is_factor(self.lr_spread) and self.lr_spread >= 1):
            raise PlanError(f"lr_spread={self.lr_spread!r} is not a finite number of at least 1 (no spread).")

    def resolve(self, model: "nn.Module") -> "ResolvedPlan":
        """Work out what the plan means for a model; the model is not changed.

        Args:
            model: Any module, wrapped (DDP, DataParallel, torch.compile) or not.

        Returns:
            The names of what trains in each stage; `str()` of it is a table.

        Raises:
            SelectionError: For an entry that matches nothing.
            PlanError: When nothing would train, or a stage changes nothing.
            UnsupportedSetupError: When a quantised parameter is to be trained.
        """
        return resolve(self, model)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able values; what is not set is left out."""
        plan = {name: plain(getattr(self, name)) for name in ("freeze", "trainable") if getattr(self, name) is not None}
        if self.stages:
            plan["stages"] = [stage_to_dict(stage) for stage in self.stages]
        if self.lr_factors:
            plan["lr_factors"] = dict(self.lr_factors)
        if self.lr_spread != 1:
            plan["lr_spread"] = self.lr_spread
        return plan

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FreezePlan":
        """Read what `to_dict` wrote, or the same written by hand.

        Args:
            values: A mapping with `freeze` or `trainable`, and perhaps `stages`, a list of mappings.

        Returns:
            The plan.

        Raises:
            PlanError: For an unknown key, for a value of the wrong type, and for what `FreezePlan` itself refuses.

        >>> FreezePlan.from_dict({"trainable": "head", "stages": [{"epoch": 1, "unfreeze": "all"}]}).stages[0].epoch
        1
        """
        checked = known_fields(cls, values, "a plan")
        stages = checked.get("stages") or ()
        if not isinstance(stages, Sequence) or isinstance(stages, str):
            raise PlanError(f"stages: {stages!r} is not a list of stages.")
        given = {name: value for name, value in checked.items() if value is not None}
        return cls(**{**given, "stages": [stage_from_dict(stage) for stage in stages]})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FreezePlan":
        """Read a plan from a YAML or JSON file.

        Args:
            path: The file. It holds one mapping, as `from_dict` takes it; a YAML entry with '!', '*' or brackets needs
                quotes.

        Returns:
            The plan.

        Raises:
            PlanError: For a file that is missing, cannot be read, or holds no plan.
        """
        return cls.from_dict(read_mapping(path))


@dataclass(frozen=True, kw_only=True)
class ResolvedPlan:
    """The trainable parameters of every stage; index 0 is the start, index i is `timed[i - 1]`. `str()` is a table.

    Attributes:
        plan: The plan that was resolved.
        model_map: The roles, layers and tied weights of the model.
        sizes: Canonical name of each member, a tensor or rows of a matrix, -> its elements.
        timed: The plan's stages, with `TopDown` written out for this model.
        stages: Canonical names (one a member) of what trains in each stage; `names` has every alias of tied weights. A
            rotation is one stage, with all of its layers.
        rotation: The rotation, where the plan is one.
    """

    plan: FreezePlan
    model_map: ModelMap = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    timed: tuple[Stage, ...]
    stages: tuple[frozenset[str], ...]
    rotation: Rotation | None = None

    def trains(self, stage: int, period: int = 0) -> frozenset[str]:
        """Return the canonical names of what trains in a stage; of a rotation, in this period of it."""
        if self.rotation is None:
            return self.stages[stage]
        return self.stages[stage] - frozenset(self.rotation.layer_of) | self.rotation.names(period)

    @cached_property
    def names(self) -> tuple[frozenset[str], ...]:
        """Return the names per stage, every alias of tied weights among them."""
        return tuple(map(self.model_map.every_alias, self.stages))

    @cached_property
    def ever_trainable(self) -> frozenset[str]:
        """Return the names of what trains in some stage, every alias of tied weights among them."""
        return frozenset().union(*self.names)

    @cached_property
    def stages_of(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> the stages in which it trains, for what ever does; read off what changes from stage to stage."""
        changes: dict[str, tuple[int, ...]] = {}
        for index, (before, after) in enumerate(zip((frozenset[str](), *self.names), self.names, strict=False)):
            for name in before ^ after:
                changes[name] = (*changes.get(name, ()), index)
        expanded = {when: _between(when, len(self.names)) for when in set(changes.values())}
        return {name: expanded[when] for name, when in changes.items()}

    @cached_property
    def lr_factors(self) -> tuple[float, ...]:
        """The factor of each stage on every learning rate."""
        factors = [1.0]
        for stage in self.timed:
            factors.append(factors[-1] if stage.lr_factor is None else stage.lr_factor)
        return tuple(factors)

    @property
    def forgets(self) -> bool:
        """Whether the optimizer's state of what freezes is ever forgotten."""
        return self.rotation is not None or any(stage.forget for stage in self.timed)

    def forgotten(self, stage: int) -> frozenset[str]:
        """Return the canonical names of what loses its optimizer state where `stage` begins."""
        forgets = stage > 0 and self.timed[stage - 1].forget
        return self.stages[stage - 1] - self.stages[stage] if forgets else frozenset()

    def trained_up_to(self, stage: int, period: int = 0) -> frozenset[str]:
        """Return the canonical names of what trained in the stages, or periods of a rotation, up to this one."""
        if self.rotation is None:
            return frozenset().union(*self.stages[: stage + 1])
        last = min(period, self.rotation.periods_per_cycle - 1)
        return self.trains(stage).union(*map(self.rotation.names, range(1, last + 1)))

    def with_optimizer_state(self, stage: int, period: int = 0) -> frozenset[str]:
        """Return the canonical names of what the optimizer has state of after a step of this stage and period."""
        if self.rotation is not None:
            return self.trains(stage, period)
        held = frozenset[str]()
        for index, names in enumerate(self.stages[: stage + 1]):
            held = (held - self.forgotten(index)) | names
        return held

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of what trains when; two spellings of one plan share it."""
        # epoch=1 is epoch=1.0
        times = ["start", *(json.loads(json.dumps(stage.time), parse_int=float) for stage in self.timed)]
        # The text of json.dumps([[when, sorted(names)], ...]), with each name sorted and written once for all stages.
        stages = [*map(self.model_map.in_whole_runs, self.stages)]
        ever = sorted(frozenset().union(*stages))
        texts = [json.dumps(name) for name in ever]
        digest = hashlib.sha256()
        for index, (when, names) in enumerate(zip(times, stages, strict=True)):
            chosen = ", ".join(compress(texts, map(names.__contains__, ever)))
            digest.update(f"{', ' if index else '['}[{json.dumps(when)}, [{chosen}]]".encode())
        digest.update(b"]")
        if self.rotation is not None:
            digest.update(json.dumps(stage_to_dict(self.rotation.rule)).encode())
        elif self.forgets:
            digest.update(json.dumps([stage.forget for stage in self.timed]).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def declared(self) -> dict[str, frozenset[str]]:
        """Return each entry of the plan with the tensors that it asked to train."""
        asked = [self.plan.trainable, *(stage.unfreeze for stage in self.timed)]
        entries = [entry for selection in asked if selection is not None for entry in parse(selection)]
        ever = frozenset().union(*self.stages)
        return {entry.text: entry.pick(self.model_map) & ever for entry in entries if not entry.takes_out}

    def size_of(self, canonical: Iterable[str]) -> int:
        """Return how many elements the tensors of these canonical names have together."""
        return sum(self.sizes[name] for name in canonical)

    def __str__(self) -> str:
        total = sum(self.sizes.values())
        rows = [("stage", "starts", "trainable", "share", "what trains")]
        for index, names in enumerate(self.stages):
            count = self.size_of(self.trains(index))
            when = self.timed[index - 1].when if index else "start"
            parts = describe_parts(names, self.model_map)
            if self.rotation is not None:
                always = describe_parts(names - self.rotation.layer_of.keys(), self.model_map)
                parts = f"{always}, {self.rotation}" if always else f"only {self.rotation}"
            rows.append((str(index), when, f"{count:,}", f"{count / max(total, 1):.1%}", parts))
        by_name = ", ".join(self.model_map.head_by_name)
        told = f"\nThe head, found by names: {by_name}." if by_name else ""
        return "\n".join([as_table(rows), *([self.rotation.schedule] if self.rotation else [])]) + told


def _between(changes: Sequence[int], end: int) -> tuple[int, ...]:
    """Return the stages from each unfreezing to the freezing after it: (1, 3, 5) of 7 -> 1, 2, 5, 6."""
    bounds = [*changes, end]
    return tuple(stage for first, last in zip(bounds[::2], bounds[1::2], strict=False) for stage in range(first, last))


def resolve(
    plan: FreezePlan, model: "nn.Module", *, others_train: bool = False, rates: Iterable[Selection] = ()
) -> ResolvedPlan:
    """Work out what `plan` means for `model`; see `FreezePlan.resolve`.

    With `others_train`, something beside the model has parameters that train, so that all of the model may be frozen.
    `rates` are selections that have learning rates of their own: rows that they name become members, too.
    """
    model = unwrap(model)
    model_map = cut_at(map_model(model), [*_selections_of(plan), *rates])
    if plan.trainable is not None:
        first = trainable_only(plan.trainable, model_map)
    else:
        first = all_but(plan.freeze or (), model_map)
    rule = next((stage for stage in plan.stages if isinstance(stage, Rotate)), None)
    rotation = resolve_rotation(rule, first, model_map) if rule else None
    timed: list[Stage] = []
    stages = [first | frozenset(rotation.layer_of)] if rotation else [first]
    if not others_train:
        _refuse_nothing(stages[0], plan, "from the start", model_map)
    for stage, after in _changes(plan, first, model_map):
        if not others_train:
            _refuse_nothing(after, plan, f"from {stage.when}", model_map)
        timed.append(stage)
        stages.append(after)
    _check_settling(timed, stages)
    sizes = sizes_of(model, model_map)
    return ResolvedPlan(
        plan=plan, model_map=model_map, sizes=sizes, timed=tuple(timed), stages=tuple(stages), rotation=rotation
    )


def _changes(
    plan: FreezePlan, trainable: frozenset[str], model_map: ModelMap
) -> Iterator[tuple[Stage, frozenset[str]]]:
    """Yield each stage that changes what is `trainable` before it, with what trains from then on."""
    for stage, by_rule in written_out(plan.stages, model_map):
        after = changed(trainable, model_map, unfreeze=stage.unfreeze, freeze=stage.freeze)
        if after == trainable and by_rule:
            continue
        if after == trainable:
            raise PlanError(
                f"The stage at {stage.when} changes nothing: with unfreeze={stage.unfreeze!r}, freeze={stage.freeze!r} "
                "the parameters are in that state already, or stay frozen because they were frozen when the model was "
                "handed in. Remove it."
            )
        if stage.forget and not trainable - after:
            raise PlanError(
                f"The stage at {stage.when} has forget=True, but freezes nothing that trains before it "
                f"(freeze={stage.freeze!r}): there is no state to forget. Leave forget out."
            )
        yield stage, after
        trainable = after


def _selections_of(plan: FreezePlan) -> list[Selection | None]:
    """Return every selection that a plan holds."""
    changes = [what for stage in plan.stages if isinstance(stage, Stage) for what in (stage.unfreeze, stage.freeze)]
    return [plan.freeze, plan.trainable, *changes, *plan.lr_factors]


def _check_settling(timed: Sequence[Stage], stages: Sequence[frozenset[str]]) -> None:
    """Refuse a stage that waits for what does not train to settle, or for what a plateau unfreezes or freezes too."""
    moved = {
        stage.when: before ^ after
        for stage, before, after in zip(timed, stages, stages[1:], strict=False)
        if stage.plateau
    }
    for stage, before, after in zip(timed, stages, stages[1:], strict=False):
        if stage.settled is None:
            continue
        if not before - after:
            raise PlanError(
                f"The stage with {stage.settled!r} freezes nothing that trains before it (freeze={stage.freeze!r}), so "
                "that nothing can settle."
            )
        for when, names in moved.items():
            if both := sorted(names & (before - after)):
                raise PlanError(
                    f"{both[0]!r} waits for the {when} in one stage and to settle in another. Which comes first is not "
                    "known: give one of the two stages a time."
                )


def _refuse_nothing(trainable: frozenset[str], plan: FreezePlan, when: str, model_map: ModelMap) -> None:
    if trainable:
        return
    declared = f"freeze={plan.freeze!r}" if plan.freeze is not None else f"trainable={plan.trainable!r}"
    handed_in = len(model_map.frozen_at_hand_in)
    raise PlanError(
        f"Nothing would train {when}: {declared} leaves none of the {len(model_map.parts)} parameters trainable. "
        f"{handed_in} of them were already frozen in the model handed in; 'all' and roles leave those as they are, "
        "a dotted path or re: unfreezes them."
    )
