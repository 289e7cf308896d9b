"""Batches of rows without a custom collator: texts tokenised, padded by the tokenizer or stacked."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_freeze.errors import FreezeError, in_one_line
from hf_freeze.model_inputs.batch import make_batch
from hf_freeze.model_inputs.input_rows import Row, pick_row
from hf_freeze.model_inputs.inspected_model import InspectedModel


def as_mapping(row: Any) -> Mapping[str, Any]:
    """Return the row. Raises `FreezeError` for one that is not a mapping."""
    if not isinstance(row, Mapping):
        raise FreezeError(
            f"dataset has rows such as {row!r:.80}, a {type(row).__name__}. Give rows as dicts, {{'input_ids': [...], "
            "'label': 1}, or collator=, which makes batches of them."
        )
    return row


def inputs_of(inspected: InspectedModel, row: Any) -> Mapping[str, Any]:
    """Return a row without its labels, and with token ids in place of its texts, where it has only these."""
    inputs = {k: v for k, v in as_mapping(row).items() if k not in inspected.label_names}
    if inspected.accepts & inputs.keys() or not any(isinstance(text, str) for text in inputs.values()):
        return inputs
    tokenised: Mapping[str, Any] = pick_row(inspected, inputs, dataset=None, index=None, seed=0).value
    return tokenised


def refuse_unread(inspected: InspectedModel, row: Any) -> None:
    """Raise `FreezeError` where what the model needs is not in a row."""
    make_batch(inspected, Row(value=dict(inputs_of(inspected, row)), origin=""))


def stacked(inspected: InspectedModel, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows as one batch. Raises `FreezeError` where they cannot be one."""
    try:
        return dict(inspected.collate(rows))
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise FreezeError(_why_not(inspected, rows, error)) from error


def _why_not(inspected: InspectedModel, rows: Sequence[Mapping[str, Any]], error: Exception) -> str:
    tokenizer = inspected.tokenizer
    lengths = {name: {len(row[name]) for row in rows if hasattr(row.get(name), "__len__")} for name in rows[0]}
    uneven = [name for name in lengths if len(lengths[name]) > 1 and name in inspected.accepts]
    if uneven and (tokenizer is None or tokenizer.pad_token is None):
        found = f"{uneven[0]!r} has {min(lengths[uneven[0]])} to {max(lengths[uneven[0]])} values in a row"
        give = "tokenizer=, which pads them," if tokenizer is None else "the tokenizer a pad_token"
        return f"Rows of unequal length: {found}. Give {give} or collator=."
    return f"Rows with {sorted(rows[0])} cannot be made a batch: {in_one_line(error)}"
