"""A rotation held against a model: which layers train in each of its periods."""

import random
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from hf_freeze.errors import PlanError
from hf_freeze.main_process import MainProcessLogger
from hf_freeze.plan.stages import Rotate
from hf_freeze.plan.tables import join_neighbours, stack_prefixes
from hf_freeze.plan.trainable import changed
from hf_freeze.selection.model_map import ModelMap

logger = MainProcessLogger(__name__)

_SHOWN = 4
"""How many periods of a cycle are shown."""


@dataclass(frozen=True)
class Rotation:
    """A rule, and the layers that it rotates: what each is called, and the canonical names of what trains in it.

    Layers have no name in common. Period k, from 0 on, is a function of the rule and k alone: no state, and no random
    numbers but its own.
    """

    rule: Rotate
    layers: Mapping[str, frozenset[str]] = field(hash=False)

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """Canonical name -> the place of its layer, for all that rotates."""
        return {name: place for place, names in enumerate(self.layers.values()) for name in names}

    @property
    def periods_per_cycle(self) -> int:
        """How many periods it takes until every layer has trained."""
        return -(-len(self.layers) // self.rule.layers)

    def period(self, step: int) -> int:
        """Return the period of the optimizer step that comes after `step` steps."""
        return step // self.rule.every

    def names(self, period: int) -> frozenset[str]:
        """Return the canonical names of what this period trains of the layers."""
        layers = (*self.layers.values(),)
        return frozenset[str]().union(*(layers[place] for place in self._chosen(period)))

    def largest(self, sizes: Mapping[str, int]) -> int:
        """Return the period of the first cycle that trains most; of several, the one that reaches the lowest layer."""
        periods = range(self.periods_per_cycle)
        return max(periods, key=lambda p: (sum(sizes[n] for n in self.names(p)), -min(self._chosen(p))))

    def places(self, names: Set[str]) -> frozenset[int]:
        """Return the places of the layers that hold these names; none where some of them train throughout."""
        return frozenset(self.layer_of[name] for name in names) if names <= self.layer_of.keys() else frozenset()

    def factor(self, places: frozenset[int], step: int, warmup: int) -> float:
        """Return what a rate is multiplied with for layers at these places: 0 while all are frozen, else their ramp.

        It is 1 for none.
        """
        if not places:
            return 1.0
        first = self.period(step)
        if places.isdisjoint(self._chosen(first)):
            return 0.0
        steps = step - first * self.rule.every + 1
        while first and steps < warmup and not places.isdisjoint(self._chosen(first - 1)):
            first, steps = first - 1, steps + self.rule.every
        return min(steps / warmup, 1.0) if first and warmup else 1.0

    def take_turns(self, names: Set[str]) -> bool:
        """Tell whether some of these names train while others do not."""
        return len({self.layer_of.get(name, -1) for name in names}) > 1

    def check_length(self, max_steps: int) -> None:
        """Raise `PlanError` for a run that ends with the first period; warn of one in which layers never train."""
        if self.rule.every >= max_steps:
            raise PlanError(
                f"{self.rule!r}: a period has {self.rule.every} steps, but the run has only {max_steps}, so the "
                "layers would never change. Lower every, or train for longer."
            )
        periods = self.period(max_steps - 1) + 1
        if periods >= self.periods_per_cycle:
            return
        turns = frozenset().union(*map(self._chosen, range(periods)))
        never = [label for place, label in enumerate(self.layers) if place not in turns]
        logger.warning(
            "%r: the run ends after %d steps, but it takes %d until every layer has had its turn. Of %d layers, %d "
            "never train: %s. Lower every, or train for longer.",
            self.rule,
            max_steps,
            (self.periods_per_cycle - 1) * self.rule.every + 1,
            len(self.layers),
            len(never),
            ", ".join(join_neighbours(never)),
        )

    def layers_of(self, names: Set[str]) -> str:
        """Name the layers that hold these: `layers[3:5], layers[7]`."""
        chosen = {self.layer_of[name] for name in names if name in self.layer_of}
        return ", ".join(join_neighbours(label for place, label in enumerate(self.layers) if place in chosen))

    def describe_change(self, before: Set[str], now: Set[str]) -> str:
        """Say which layers train from a period on, when `before` trained before it and `now` does."""
        others = self.layers_of(now & before)
        goes_on = f"; goes on: {others}" if others else ""
        return f"Trains from here on, with fresh optimizer state: {self.layers_of(now - before)}{goes_on}."

    @property
    def schedule(self) -> str:
        """Say in one line which layers train when."""
        every, length = self.rule.every, self.periods_per_cycle
        steps = [f"{period * every} {self.layers_of(self.names(period))}" for period in range(min(length, _SHOWN))]
        if length > _SHOWN:
            steps.append("...")
        order = "another" if self.rule.order == "random" and length > 1 else "the same"
        return f"The rotation, from step {'; '.join(steps)}; {length * every} the next cycle, in {order} order."

    def __str__(self) -> str:
        rule, count = self.rule, len(self.layers)
        seed = f", seed {rule.seed}" if rule.order == "random" else ""
        return f"{rule.layers} of {count} layers, others every {rule.every} steps ({rule.order}{seed})"

    def _chosen(self, period: int) -> frozenset[int]:
        cycle, place = divmod(period, self.periods_per_cycle)
        order = _order(self.rule, len(self.layers), cycle if self.rule.order == "random" else 0)
        return frozenset(order[place * self.rule.layers : (place + 1) * self.rule.layers])


@lru_cache(maxsize=16)
def _order(rule: Rotate, count: int, cycle: int) -> tuple[int, ...]:
    places = list(range(count))
    if rule.order == "random":
        random.Random(f"{rule.seed} {cycle}").shuffle(places)
    return tuple(reversed(places)) if rule.order == "descending" else tuple(places)


def resolve_rotation(rule: Rotate, always: frozenset[str], model_map: ModelMap) -> Rotation:
    """Hold a rule against a model of which `always` trains throughout.

    Raises `PlanError` for a model without layers, or with fewer than are to train at a time.
    """
    if not model_map.stacks:
        raise PlanError(f"{rule!r} needs a repeated stack of layers, and this model has none. Write the stages out.")
    layers: dict[str, frozenset[str]] = {}
    taken = always
    for where, stack in zip(stack_prefixes(model_map), model_map.stacks, strict=True):
        for index in range(len(stack.layers)):
            after = changed(taken, model_map, unfreeze=f"{where}layers[{index}]")
            if after != taken:  # layers that share all their weights take one turn
                layers[f"{where}layers[{index}]"] = after - taken
            taken = after
    if not layers:
        raise PlanError(
            f"{rule!r} has no layers to rotate: all layers of this model train from the start. Train less from the "
            "start, for example trainable='head'."
        )
    if rule.layers > len(layers):
        raise PlanError(
            f"{rule!r} trains {rule.layers} layers at a time, but this model has only {len(layers)} that can take "
            "turns. Lower layers."
        )
    return Rotation(rule, layers)
