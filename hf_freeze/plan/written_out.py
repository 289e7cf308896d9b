"""Rules that are written out as stages, once the layers of a model are known."""

import math
from collections.abc import Iterator, Sequence

from hf_freeze.errors import PlanError
from hf_freeze.plan.stages import AnyStage, BottomUp, Stage, TopDown
from hf_freeze.plan.tables import stack_prefixes
from hf_freeze.selection.model_map import ModelMap


def written_out(stages: Sequence[AnyStage], model_map: ModelMap) -> Iterator[tuple[Stage, bool]]:
    """Return the stages, each with whether it stems from `TopDown` or `BottomUp`."""
    for stage in stages:
        if isinstance(stage, TopDown):
            yield from ((written, True) for written in _top_down(stage, model_map))
        elif isinstance(stage, BottomUp):
            yield from ((written, True) for written in _bottom_up(stage, model_map))
        elif isinstance(stage, Stage):
            yield stage, False


def _depth(rule: TopDown | BottomUp, model_map: ModelMap) -> int:
    deepest = max((len(stack.layers) for stack in model_map.stacks), default=0)
    if not deepest:
        raise PlanError(f"{rule!r} needs a repeated stack of layers, and this model has none. Write the stages out.")
    return deepest


def _bottom_up(rule: BottomUp, model_map: ModelMap) -> Iterator[Stage]:
    deepest = _depth(rule, model_map)
    if rule.keep >= deepest:
        raise PlanError(
            f"{rule!r} keeps all {deepest} layers of this model training: it would freeze none. Lower keep."
        )
    for index in range(deepest - rule.keep):
        layers = [
            f"{where}layers[{index}]"
            for where, stack in zip(stack_prefixes(model_map), model_map.stacks, strict=True)
            if len(stack.layers) - rule.keep > index
        ]
        below = ["embeddings"] if index == 0 and model_map.roles["embeddings"] else []
        yield Stage(settled=rule.settled, freeze=[*below, *layers])


def _top_down(rule: TopDown, model_map: ModelMap) -> Iterator[Stage]:
    count = math.ceil(_depth(rule, model_map) / rule.layers_per_stage)
    for index in range(1, count + 1):
        above, depth = (index - 1) * rule.layers_per_stage, index * rule.layers_per_stage
        layers = [
            f"{where}layers[-{depth}:{-above or ''}]"
            for where, stack in zip(stack_prefixes(model_map), model_map.stacks, strict=True)
            if len(stack.layers) > above
        ]
        yield Stage(epoch=index * rule.every_epochs, unfreeze=[*(["rest"] if index == 1 else ()), *layers])
    yield Stage(epoch=(count + 1) * rule.every_epochs, unfreeze="all")
