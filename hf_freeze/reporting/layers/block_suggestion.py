"""Which blocks of a model are worth training: a score for each, the best of them, and the plans that follow."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from torch import nn

from hf_freeze.errors import FreezeError, SelectionError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.tables import as_table, part_labels
from hf_freeze.plan.trainable import trainable_only
from hf_freeze.reporting.layers.suggestion import LayerSuggestion
from hf_freeze.selection.model_map import map_model
from hf_freeze.selection.vocabulary import ROLES

WHAT = {"gradient": "relative gradient norm", "spectrum": "rank by signal to noise"}
"""What the score of each method is."""


def find_blocks(model: nn.Module) -> dict[str, frozenset[str]]:
    """Return selection -> canonical names of what a plan with that selection trains; blocks that train nothing are out.

    Raises `SelectionError` for a model without layers or without a clear head, and `UnsupportedSetupError` for layers
    of integers.
    """
    model_map = map_model(model)
    if not model_map.stacks:
        raise SelectionError(
            f"This {type(model).__name__} has no repeated stack of layers, so there are no blocks to rank. Try its "
            "modules one by one, with compare() and a FreezePlan that names each by its path."
        )
    if "head" in model_map.unclear:
        raise SelectionError(f"The blocks cannot be ranked, as the head is ambiguous: {model_map.unclear['head']}")
    labels = dict.fromkeys(part_labels(model_map).values())
    named = [label for label in labels if label not in ROLES or model_map.roles[label]]
    found = {label: trainable_only(label, model_map) for label in named}
    return {label: found[label] for label in _in_order(found) if found[label]}


def _in_order(found: Mapping[str, object]) -> list[str]:
    """Put the embeddings in front of the layers, and what stands above them behind."""
    place = {"embeddings": 0, "rest": 2, "head": 3}
    return sorted(found, key=lambda label: place.get(label, 1))


def default_k(blocks: int) -> int:
    """Return how many blocks train by default: a quarter, as in Spectrum, rounded up.

    >>> default_k(12), default_k(3)
    (3, 1)
    """
    return ceil(blocks / 4)


@dataclass(frozen=True, kw_only=True)
class BlockSuggestion(LayerSuggestion):
    """The score of every block, and the plan that trains the best `k` and the head. `str()` is a table.

    Attributes:
        method: "gradient" or "spectrum".
        scores: Block, as a selection -> its score, from the bottom of the model to the top.
        k: How many blocks the plan trains; where the head is one of them, it counts.
        has_head: Whether the model has a head, which the plan trains in any case.
        rows: How many rows there was a gradient of; 0 for a spectrum.
        seconds: Time of all.
    """

    method: Literal["gradient", "spectrum"]
    scores: Mapping[str, float]
    k: int
    has_head: bool
    rows: int
    seconds: float

    @property
    def best(self) -> tuple[str, ...]:
        """The best `k` blocks, the best first; of equal ones the upper."""
        order = sorted(enumerate(self.scores.items()), key=lambda one: (one[1][1], one[0]), reverse=True)
        return tuple(block for _, (block, _) in order[: self.k])

    @property
    def plan(self) -> FreezePlan:
        """The plan that trains the best blocks and the head."""
        chosen = [block for block in self.scores if block in self.best and block != "head"]
        return FreezePlan(trainable=[*chosen, "head"] if self.has_head else chosen)

    @property
    def soft_plan(self) -> FreezePlan:
        """The plan that trains every block at a rate in proportion to its score, the best at the full rate.

        Auto-RGN's form (Lee et al., 2022). A block without a gradient stays frozen, one handed in frozen trains. Raises
        `FreezeError` for a spectrum, which is a rank and no size.
        """
        if self.method != "gradient":
            raise FreezeError("soft_plan needs method='gradient': the ranks of a spectrum give no rates. Use plan.")
        most = max(self.scores.values())
        factors = {block: score / most for block, score in self.scores.items() if score > 0}
        return FreezePlan(trainable=list(factors), lr_factors=factors)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "method": self.method,
            "scores": dict(self.scores),
            "best": list(self.best),
            "plan": self.plan.to_dict(),
            "rows": self.rows,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        best = {block: f"{place}." for place, block in enumerate(self.best, start=1)}
        lines = [(block, f"{score:.4g}", best.get(block, "")) for block, score in self.scores.items()]
        source = f"{self.rows:,} rows" if self.method == "gradient" else "From the weights alone"
        return "\n".join(
            [
                as_table([("block", WHAT[self.method], "best"), *lines]),
                "",
                f"Plan: {self.plan.to_dict()}",
                f"{source}. Cost: {self.seconds:.1f} s.",
            ]
        )
