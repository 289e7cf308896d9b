"""The blocks of a model that can be worth training: embeddings, layers, rest and head, as a plan names them."""

from collections.abc import Mapping

from torch import nn

from hf_freeze.errors import SelectionError
from hf_freeze.plan.tables import part_labels
from hf_freeze.plan.trainable import trainable_only
from hf_freeze.selection.model_map import map_model
from hf_freeze.selection.vocabulary import ROLES


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
