"""Read a plan in any of the forms in which it may be given."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hf_freeze.errors import PlanError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.recipes import names_a_recipe, recipe

PlanLike: TypeAlias = FreezePlan | Mapping[str, Any] | str | os.PathLike[str]


def as_plan(given: PlanLike, *, argument: str = "plan") -> FreezePlan:
    """Return the plan that was given: as itself, a mapping, a recipe's name, or the path of a YAML or JSON file.

    Text that names no recipe is a path when it ends in .yaml, .yml or .json, holds a slash, or when such a file exists.
    `argument` is what an error calls it. Raises `PlanError` and `SelectionError`.

    >>> as_plan("last-layers:2") == as_plan({"trainable": ["head", "rest", "layers[-2:]"]})
    True
    """
    if isinstance(given, FreezePlan):
        return given
    if isinstance(given, Mapping):
        return FreezePlan.from_dict(given)
    if isinstance(given, os.PathLike) or (isinstance(given, str) and _is_path(given)):
        return FreezePlan.load(given)
    if isinstance(given, str):
        return recipe(given)
    raise PlanError(
        f"{argument}={given!r:.200} is of type {type(given).__name__}. Give a FreezePlan, its mapping, the name of a "
        "recipe such as 'linear-probe', or the path of a YAML or JSON file."
    )


def _is_path(text: str) -> bool:
    # A file that happens to be called `full` takes no recipe's place.
    if names_a_recipe(text):
        return False
    if text.lower().endswith((".yaml", ".yml", ".json")) or "/" in text or os.sep in text:
        return True
    # A text with a zero byte, or a very long one, is no file name.
    return bool(text) and "\0" not in text and len(text) < 255 and Path(text).is_file()
