"""What optimizer groups are called, in logs, tables and pictures. Trackers take letters, digits, spaces and . - _ /."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

NO_DECAY = ".no_decay"
LOW_RANK = ".low_rank"


def group_name(label: str, *, decays: bool, stages: Sequence[int] = (), of: int = 0) -> str:
    """Name a group by its label, and by when it trains where groups of one label differ in that.

    `stages` are the numbers of those in which it trains, `of` how many there are.

    >>> group_name("head", decays=False)
    'head.no_decay'
    >>> group_name("norms", decays=True, stages=[1, 2, 3], of=4)
    'norms from stage 1'
    """
    return f"{label}{'' if decays else NO_DECAY}{' ' + _when(stages, of) if stages else ''}"


def _when(stages: Sequence[int], of: int) -> str:
    runs: list[list[int]] = []
    for stage in stages:
        if runs and runs[-1][-1] == stage - 1:
            runs[-1].append(stage)
        else:
            runs.append([stage])
    if len(runs) == 1 and stages[-1] == of - 1:
        return f"from stage {stages[0]}" if stages[0] else "from the start"
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"in stage{'s' if len(stages) > 1 else ''} {' and '.join(spans)}"


_WHEN = re.compile(r" (from the start|from stage \d+|in stages? \d[\d -]*( and \d[\d -]*)*)$")


def joined_names(same: Mapping[str, Any], *, whenever: bool = False) -> dict[str, str]:
    """Return name to show -> group: parts of a group that differ in weight decay alone are shown once.

    With `whenever`, so are those that differ in when they train.

    >>> joined_names({"head": 1, "head.no_decay": 1, "rest": 1, "norms.no_decay": 1})
    {'head': 'head', 'rest': 'rest', 'norms': 'norms.no_decay'}
    >>> joined_names({"norms from the start": 1, "norms in stages 1-2 and 4": 1, "head from stage 2": 2}, whenever=True)
    {'norms': 'norms from the start', 'head': 'head from stage 2'}
    """
    shown: dict[str, str] = {}
    for name, value in same.items():
        plain = name.replace(NO_DECAY, "", 1).removesuffix(LOW_RANK)
        if whenever:
            plain = _WHEN.sub("", plain)
        if plain not in shown:
            shown[plain] = name
        elif same[shown[plain]] != value:
            shown[name] = name
    return shown


def from_the_head_down(name: str) -> tuple[int, str, float]:
    """Return what to sort names by, so that they stand as the model does: its head above, its embeddings below.

    >>> sorted(["embeddings", "layers.9", "layers.10", "norms", "head.no_decay"], key=from_the_head_down)
    ['head.no_decay', 'norms', 'layers.10', 'layers.9', 'embeddings']
    """
    label = re.split(r"[. ]", name, maxsplit=1)[0]
    if label in ("head", "embeddings"):
        return (0 if label == "head" else 3), "", 0
    layer = re.match(r"(.*?)\blayers\b[.[]?(\d+)?", name)
    if layer is None:
        return 1, "", 0
    return 2, layer[1], -float(layer[2] or "inf")
