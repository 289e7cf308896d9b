"""Weights as they are given in Python, in JSON or on the command line."""

import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_freeze.errors import PlanError

_LIGHTEST, _HEAVIEST = 1e-12, 1e12  # sums over a window are still exact to a few digits in float32
_STEEPEST = 100.0

BALANCED = "balanced"
"""Stands for the weights that give every class the same share of the loss."""


def read_weights(value: Any, name: str) -> Any:
    """Read weights as they are given in Python, JSON or on the command line: a number, a list, a mapping, "balanced".

    >>> read_weights('{"spam": 5}', "class_weights")
    {'spam': 5.0}
    """
    if isinstance(value, str) and not (value == BALANCED and name == "class_weights"):
        value = _from_json(value, name)
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping) and not value:
        raise PlanError(f"{name}={value!r} names no label. Leave it out, or give {_FORMS[name]}.")
    if isinstance(value, Mapping):
        return {label: _weight(weight, name, value) for label, weight in value.items()}
    if isinstance(value, Sequence):
        weights = [_weight(weight, name, value) for weight in value]
        return weights[0] if name == "pos_weight" and len(weights) == 1 else weights
    if name == "pos_weight":
        return _weight(value, name, value)
    raise PlanError(f"{name}={value!r} is not {_FORMS[name]}.")


_FORMS = {
    "class_weights": '"balanced", a list with one weight per class, or a mapping such as {"spam": 5.0}',
    "pos_weight": 'a number such as 5.0; for several labels also a list or a mapping such as {"toxic": 5.0}',
}


def _from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PlanError(f"{name}={text!r} is not {_FORMS[name]}.") from error


def _weight(weight: Any, name: str, given: Any) -> float:
    is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool | np.bool_)
    fits = is_number and (_LIGHTEST <= weight <= _HEAVIEST or (weight == 0 and name != "pos_weight"))
    if not fits:
        which = f"numbers from {_LIGHTEST:g} to {_HEAVIEST:g}" + ("" if name == "pos_weight" else ", or 0")
        raise PlanError(f"{name}={given!r}: {weight!r} is not a weight; give {which}.")
    return float(weight)


def read_gamma(value: Any) -> float | None:
    """Read the exponent of the focal loss. Raises `PlanError` unless it is a number from 0 to 100."""
    if value is None:
        return None
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    if not is_number or not 0 <= value <= _STEEPEST:
        raise PlanError(f"focal_gamma={value!r} is not an exponent; give a number from 0 to {_STEEPEST:g}, such as 2.")
    return float(value)
