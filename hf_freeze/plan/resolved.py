"""A plan held against a model: which parameters train in each stage."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING

from hf_freeze.errors import PlanError
from hf_freeze.plan.stages import FreezePlan, Stage, TopDown
from hf_freeze.plan.tables import as_table, describe_parts
from hf_freeze.plan.trainable import all_but, changed, trainable_only
from hf_freeze.selection.language import parse, paths_in_front
from hf_freeze.selection.model_map import ModelMap, map_model, unwrap

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class ResolvedPlan:
    """The trainable parameters of every stage; index 0 is the start, index i is `timed[i - 1]`.

    `timed` holds the plan's stages, with `TopDown` written out for this model. `stages` holds canonical names (one a
    tensor), `names[i]` and `ever_trainable` every alias of tied weights. `str()` is a table.
    """

    plan: FreezePlan
    words: ModelMap = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)
    timed: tuple[Stage, ...]
    stages: tuple[frozenset[str], ...]

    @cached_property
    def names(self) -> tuple[frozenset[str], ...]:
        """Names per stage, every alias of tied weights among them."""
        return tuple(map(self.words.every_alias, self.stages))

    @cached_property
    def ever_trainable(self) -> frozenset[str]:
        """Names of what trains in some stage, every alias of tied weights among them."""
        return frozenset().union(*self.names)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of what trains when; two spellings of one plan share it."""
        # epoch=1 is epoch=1.0
        times = ["start", *(json.loads(json.dumps(stage.time), parse_int=float) for stage in self.timed)]
        # The text of json.dumps([[when, sorted(names)], ...]), with each name sorted and written once for all stages.
        ever = sorted(frozenset().union(*self.stages))
        texts = [json.dumps(name) for name in ever]
        digest = hashlib.sha256()
        for index, (when, names) in enumerate(zip(times, self.stages, strict=True)):
            chosen = ", ".join(compress(texts, map(names.__contains__, ever)))
            digest.update(f"{', ' if index else '['}[{json.dumps(when)}, [{chosen}]]".encode())
        digest.update(b"]")
        return digest.hexdigest()[:16]

    @cached_property
    def declared(self) -> dict[str, frozenset[str]]:
        """Entry of the plan -> the tensors that it asked to train."""
        asked = [self.plan.trainable, *(stage.unfreeze for stage in self.timed)]
        entries = [entry for selection in asked if selection is not None for entry in parse(selection)]
        ever = frozenset().union(*self.stages)
        return {entry.text: entry.pick(self.words) & ever for entry in entries if not entry.takes_out}

    def size_of(self, canonical: Iterable[str]) -> int:
        """Return how many elements the tensors of these canonical names have together."""
        return sum(self.sizes[name] for name in canonical)

    def __str__(self) -> str:
        total = sum(self.sizes.values())
        rows = [("stage", "starts", "trainable", "share", "what trains")]
        for index, names in enumerate(self.stages):
            count = self.size_of(names)
            when = self.timed[index - 1].when if index else "start"
            rows.append(
                (str(index), when, f"{count:,}", f"{count / max(total, 1):.1%}", describe_parts(names, self.words))
            )
        told = f"\nThe head, told by names: {', '.join(self.words.head_by_name)}." if self.words.head_by_name else ""
        return as_table(rows) + told


def resolve(plan: FreezePlan, model: "nn.Module", *, others_train: bool = False) -> ResolvedPlan:
    """Hold `plan` against `model`; see `FreezePlan.resolve`.

    With `others_train`, something beside the model has parameters that train, so that all of the model may be frozen.
    """
    model = unwrap(model)
    words = map_model(model)
    first = trainable_only(plan.trainable, words) if plan.trainable is not None else all_but(plan.freeze or (), words)
    if not others_train:
        _refuse_nothing(first, plan, "from the start", words)
    timed: list[Stage] = []
    stages = [first]
    for stage, written_out in _written_out(plan.stages, words):
        after = changed(stages[-1], words, unfreeze=stage.unfreeze, freeze=stage.freeze)
        if after == stages[-1] and written_out:
            continue
        if after == stages[-1]:
            raise PlanError(
                f"The stage at {stage.when} changes nothing: unfreeze={stage.unfreeze!r}, freeze={stage.freeze!r}, and "
                "the parameters are so already or stay frozen because the model handed in had them frozen. Remove it."
            )
        if not others_train:
            _refuse_nothing(after, plan, f"from {stage.when}", words)
        timed.append(stage)
        stages.append(after)
    return ResolvedPlan(plan=plan, words=words, sizes=sizes_of(model), timed=tuple(timed), stages=tuple(stages))


def sizes_of(model: "nn.Module") -> dict[str, int]:
    """Canonical name -> number of elements; under DeepSpeed ZeRO-3 that of the whole tensor."""
    return {name: getattr(p, "ds_numel", p.numel()) for name, p in unwrap(model).named_parameters()}


def _written_out(stages: Sequence[Stage | TopDown], words: ModelMap) -> Iterator[tuple[Stage, bool]]:
    """The stages, each with whether it stems from `TopDown`."""
    for stage in stages:
        if isinstance(stage, TopDown):
            yield from ((written, True) for written in _top_down(stage, words))
        else:
            yield stage, False


def _top_down(rule: TopDown, words: ModelMap) -> Iterator[Stage]:
    deepest = max((len(stack.layers) for stack in words.stacks), default=0)
    count = math.ceil(deepest / rule.layers_per_stage)
    if not count:
        raise PlanError(f"{rule!r} needs a repeated stack of layers, and this model has none. Write the stages out.")
    for index in range(1, count + 1):
        above, depth = (index - 1) * rule.layers_per_stage, index * rule.layers_per_stage
        layers = [
            f"{where}layers[-{depth}:{-above or ''}]"
            for where, stack in zip(_stack_prefixes(words), words.stacks, strict=True)
            if len(stack.layers) > above
        ]
        yield Stage(epoch=index * rule.every_epochs, unfreeze=[*(["rest"] if index == 1 else ()), *layers])
    yield Stage(epoch=(count + 1) * rule.every_epochs, unfreeze="all")


def _stack_prefixes(words: ModelMap) -> list[str]:
    if len(words.stacks) == 1:
        return [""]
    return [f"{path}." for path in paths_in_front(words.stacks)]


def _refuse_nothing(trainable: frozenset[str], plan: FreezePlan, when: str, words: ModelMap) -> None:
    if trainable:
        return
    declared = f"freeze={plan.freeze!r}" if plan.freeze is not None else f"trainable={plan.trainable!r}"
    handed_in = len(words.frozen_at_hand_in)
    raise PlanError(
        f"Nothing would train {when}: {declared} leaves none of the {len(words.parts)} parameters trainable. "
        f"{handed_in} of them were already frozen in the model handed in; 'all' and roles leave those as they are, "
        "a dotted path or re: thaws them."
    )
