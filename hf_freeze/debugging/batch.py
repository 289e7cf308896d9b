"""From a row to the batch that the model is called with, and what is wrong with the two."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from hf_freeze.debugging import labels
from hf_freeze.debugging.check import Check, failed
from hf_freeze.debugging.rows import Row
from hf_freeze.debugging.subject import IDS, Subject
from hf_freeze.errors import FreezeError


def make_batch(subject: Subject, row: Row) -> tuple[Row, Mapping[str, Any] | None, list[Check]]:
    """Collate a row. Return the row that was used, the batch (None where there is none), and the checks that failed.

    A label that is a text is named and left out. Raises `FreezeError` where the row lacks what the model needs.
    """
    wrong: list[Check] = []
    if (text := labels.text_label(subject, row)) is not None:
        known = sorted(getattr(subject.config, "label2id", None) or {})
        wrong.append(
            failed("label_dtype", f"The label is the text {text!r}; losses take ids. Map it by label2id ({known}).")
        )
        bare = {key: value for key, value in row.value.items() if key not in subject.label_names}
        row = replace(row, value=bare)
    is_batch = _is_batch(row.value)
    try:
        made = row.value if is_batch else subject.collate([row.value])
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        message = f"The collator raised {said:.160} It was given the keys {_keys(row.value)}."
        return row, None, [*wrong, failed("collator", message)]
    if not isinstance(made, Mapping):
        message = f"The collator returned {type(made).__name__}; the model is called with a dict of named inputs."
        return row, None, [*wrong, failed("collator", message)]
    _refuse_missing(subject, row, made)
    return row, made, wrong


def _keys(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, Mapping) else f"of a {type(value).__name__}"


def _refuse_missing(subject: Subject, row: Row, batch: Mapping[str, Any]) -> None:
    task = subject.task_model
    given = set(batch) - set(subject.label_names)
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(task.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable and p.name not in batch]
    main = getattr(task, "main_input_name", None)
    if not needed and main is not None and not given & {main, "inputs_embeds", "encoder_outputs"}:
        says_something = (given & subject.accepts) - {"attention_mask", "token_type_ids"}
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
