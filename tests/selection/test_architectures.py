"""The model map against the hand-written table of architectures."""

import pytest

from hf_freeze import SelectionError, recipes
from hf_freeze.selection.model_map import ModelMap, map_model
from tests.installed import since
from tests.selection.architectures import ARCHITECTURES, Architecture

CHANGED = [
    "ast-audio-classification",
    "beit-image-classification",
    "deit-image-classification-with-teacher",
    "detr-object-detection",
    "dinov3-base-model",
    "gpt-neox-causal-lm",
    "levit-image-classification",
    "llava-conditional-generation",
    "mamba-causal-lm",
    "segformer-semantic-segmentation",
    "videomae-video-classification",
    "vision-encoder-decoder-vit-gpt2",
    "vit-image-classification",
    "vit-mae-pretraining",
    "yolos-object-detection",
    "zamba2-causal-lm",
]
"""Whose modules have other names in older versions, or which cannot be built there from the configuration."""

of_this_version = since("5.15", "the modules of this architecture have other names, or it cannot be built")
every_architecture = pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=[of_this_version] if row.name in CHANGED else []) for row in ARCHITECTURES],
)


def canonical_below(mapped: ModelMap, paths: tuple[str, ...]) -> set[str]:
    prefixes = tuple(f"{path}." for path in paths)
    return {name for name, aliases in mapped.ties.items() if any(f"{alias}.".startswith(prefixes) for alias in aliases)}


@every_architecture
def test_every_parameter_belongs_to_the_part_that_the_table_says(row: Architecture) -> None:
    mapped = map_model(row.build())

    stated = dict.fromkeys(canonical_below(mapped, row.rest), "rest")
    stated |= dict.fromkeys(canonical_below(mapped, row.embeddings), "embeddings")
    stated |= dict.fromkeys(canonical_below(mapped, row.head) - stated.keys(), "head")
    stated = {name: stated.get(name, "layers") for name in mapped.parts}

    wrong = {name: (part, stated[name]) for name, part in mapped.parts.items() if part != stated[name]}
    assert not wrong, "name: (found, stated)"
    assert set(mapped.parts.values()) <= {"head", "embeddings", "layers", "rest"}


@every_architecture
def test_layer_stacks_norms_and_biases_are_those_of_the_table(row: Architecture) -> None:
    mapped = map_model(row.build())

    assert {stack.path: len(stack.layers) for stack in mapped.stacks} == row.stacks
    assert frozenset().union(*(layer for stack in mapped.stacks for layer in stack.layers)) == mapped.roles["layers"]
    assert len(mapped.roles["norms"]) == row.norms
    assert len(mapped.roles["biases"]) == row.biases


def test_what_changed_is_in_the_table() -> None:
    assert {row.name for row in ARCHITECTURES} >= set(CHANGED)


def test_the_table_names_at_least_forty_architectures() -> None:
    assert len({row.name for row in ARCHITECTURES}) == len(ARCHITECTURES) >= 40


@every_architecture
def test_the_last_layer_trains_with_what_lies_above_it_and_nothing_below(row: Architecture) -> None:
    model = row.build()
    mapped = map_model(model)
    if len(mapped.stacks) != 1 or not mapped.roles["head"]:
        with pytest.raises(SelectionError, match="stack|'head' matches none"):
            recipes.last_layers(1).resolve(model)
        return
    trains = recipes.last_layers(1).resolve(model).stages[0]
    above = {name for name, part in mapped.parts.items() if part in ("head", "rest")}
    last = mapped.stacks[0].layers[-1]
    assert trains == (above | last) - mapped.frozen_at_hand_in - mapped.not_floating - mapped.inactive
    assert trains or not (above | last)
