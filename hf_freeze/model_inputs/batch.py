"""Turn a row into the batch that the model is called with, or say what is wrong with either."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from hf_freeze.errors import FreezeError, in_one_line
from hf_freeze.model_inputs.input_rows import Row
from hf_freeze.model_inputs.inspected_model import IDS, InspectedModel


class CollatorError(FreezeError):
    """The collator raised, or made no batch."""


def labels_of(inspected: InspectedModel, row: Row) -> list[Any]:
    """Return what a row holds under the names of labels."""
    if not isinstance(row.value, Mapping):
        return []
    return [row.value[name] for name in inspected.label_names if name in row.value]


def without_label(inspected: InspectedModel, row: Row) -> Row:
    """Return the row without its label."""
    return replace(row, value={key: value for key, value in row.value.items() if key not in inspected.label_names})


def make_batch(inspected: InspectedModel, row: Row) -> dict[str, Any]:
    """Collate a row. Raises `CollatorError`, and `FreezeError` where the row lacks what the model needs."""
    try:
        made = row.value if _is_batch(row.value) else inspected.collate([row.value])
    except FreezeError:
        raise
    except Exception as error:
        raise CollatorError(
            f"The collator raised {in_one_line(error)}. It was given the keys {_keys(row.value)}."
        ) from error
    if not isinstance(made, Mapping):
        raise CollatorError(
            f"The collator returned {type(made).__name__}; the model is called with a dict of named inputs."
        )
    _refuse_missing(inspected, row, made)
    return dict(made)


def _keys(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, Mapping) else f"of a {type(value).__name__}"


def _refuse_missing(inspected: InspectedModel, row: Row, batch: Mapping[str, Any]) -> None:
    task = inspected.task_model
    given = set(batch) - set(inspected.label_names)
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(task.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable and p.name not in batch]
    main = getattr(task, "main_input_name", None)
    if not needed and main is not None and not given & {main, "inputs_embeds", "encoder_outputs"}:
        says_something = (given & inspected.accepts) - {"attention_mask", "token_type_ids"}
        needed = [] if says_something else [main]
    if needed or not given:
        raise FreezeError(
            f"The row has {_keys(row.value)}, of which {sorted(given) or 'nothing'} reaches {type(task).__name__}; its "
            f"forward needs {', '.join(needed) or 'inputs'}. Give a row with these keys, or a text with tokenizer=."
        )


def _is_batch(value: Any) -> bool:
    """Tell a row that is a batch of one already. Raises `FreezeError` for one of several rows."""
    if not isinstance(value, Mapping) or not all(isinstance(v, torch.Tensor) and v.ndim for v in value.values()):
        return False
    ids = value.get(IDS)
    if ids is not None and ids.ndim == 2 and ids.shape[0] > 1:
        raise FreezeError(
            f"The sample is a batch of {ids.shape[0]} rows. Give one of them, such as row 0 of each tensor."
        )
    return {len(item) for item in value.values()} == {1} and any(item.ndim > 1 for item in value.values())
