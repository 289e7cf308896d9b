"""The same row in other company: with other contents, with padding, without it, beside another row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from hf_freeze.label_columns import IGNORED_LABEL
from hf_freeze.model_inputs.input_rows import length_of, positions
from hf_freeze.model_inputs.inspected_model import IDS, InspectedModel

Side: TypeAlias = Literal["left", "right"]
MASK = "attention_mask"
_KEPT = ("mask", "type", "position", "label", "target", "index", "length")


@dataclass(frozen=True)
class Padded:
    """A batch whose first row is padded (or freed of padding), and where its own tokens are there and in the original.

    `reference` is the batch to compare with, where that is not the row itself.
    """

    batch: Mapping[str, Any]
    own: torch.Tensor
    before: torch.Tensor
    side: Side
    pad_id: int | None
    by_collator: bool = False
    reference: Mapping[str, Any] | None = None


def pad_id_of(inspected: InspectedModel) -> int | None:
    """Return the pad token that batches are filled with: the tokenizer's, else the model's."""
    for owner in (inspected.tokenizer, inspected.config):
        found = getattr(owner, "pad_token_id", None)
        if isinstance(found, int) and found >= 0:
            return found
    return None


def real_tokens(inspected: InspectedModel, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return which positions of the first row hold tokens and not padding, judging by the ids."""
    ids = batch[IDS][0]
    pad = pad_id_of(inspected)
    filled = torch.zeros_like(ids, dtype=torch.bool) if pad is None else ids == pad
    mask = batch.get(MASK)
    if isinstance(mask, torch.Tensor) and mask.shape == batch[IDS].shape and bool((mask[0] == 0).any()):
        filled = mask[0] == 0
    elif pad is not None and pad in (getattr(inspected.tokenizer, "eos_token_id", None), _eos(inspected)):
        filled[-1] = False  # an end of the text that is also the pad token
    left = filled.long().cumprod(0).bool()
    right = filled.flip(0).long().cumprod(0).flip(0).bool()
    return ~(left | right)


def _eos(inspected: InspectedModel) -> Any:
    return getattr(inspected.config, "eos_token_id", None)


def has_tokens(batch: Mapping[str, Any]) -> bool:
    """Tell whether the batch is one of token ids, (rows, tokens)."""
    return isinstance(batch.get(IDS), torch.Tensor) and batch[IDS].ndim == 2


def other_contents(inspected: InspectedModel, batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the batch with other tokens, pixels or samples; special tokens, padding and labels stay."""
    generator = torch.Generator().manual_seed(0)
    changed: dict[str, Any] = {}
    for key, value in batch.items():
        if not isinstance(value, torch.Tensor) or not value.numel() or any(word in key for word in _KEPT):
            continue
        if key in inspected.label_names or value.dtype == torch.bool:
            continue
        if value.is_floating_point():
            spread = value.float().std().nan_to_num().item() if value.numel() > 1 else 0.0
            added = torch.randn(value.shape, generator=generator) * (spread or 1.0)
            changed[key] = value + added.to(value.device, value.dtype)
        elif key == IDS or not has_tokens(batch):
            changed[key] = _other_ids(inspected, key, value, generator)
    changed = {key: value for key, value in changed.items() if not torch.equal(value, batch[key])}
    return {**batch, **changed} if changed else None


def _other_ids(inspected: InspectedModel, key: str, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    table = inspected.input_embedding if key == IDS else None
    size = table.num_embeddings if table is not None else int(ids.max()) + 1
    if inspected.tokenizer is not None and key == IDS:
        size = min(size, len(inspected.tokenizer))
    special = torch.tensor(sorted(_special_ids(inspected)), dtype=ids.dtype)
    ordinary = torch.arange(size, dtype=ids.dtype)
    ordinary = ordinary[~torch.isin(ordinary, special)]
    if not len(ordinary):
        return ids
    drawn = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)].to(ids.device)
    return torch.where(torch.isin(ids, special.to(ids.device)), ids, drawn)


def _special_ids(inspected: InspectedModel) -> set[int]:
    """Return the ids that have a meaning to the model itself: separators, padding, placeholders for images."""
    found = set(getattr(inspected.tokenizer, "all_special_ids", None) or ())
    for name, value in vars(inspected.config).items() if hasattr(inspected.config, "__dict__") else ():
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= 0:
            found.add(value)
    return found


def without_padding(inspected: InspectedModel, batch: Mapping[str, Any]) -> Padded | None:
    """Return a row that came padded, without its padding; None when it has none."""
    own = real_tokens(inspected, batch)
    if bool(own.all()) or not bool(own.any()):
        return None
    side: Side = "left" if not bool(own[0]) else "right"
    positions_kept = own.nonzero()[:, 0]
    trimmed = {key: value[:, positions_kept] if _per_token(value, batch) else value for key, value in batch.items()}
    pad_id = int(batch[IDS][0][~own][0])
    everything = torch.arange(len(positions_kept), device=own.device)
    return Padded(trimmed, everything, positions_kept, side, pad_id)


def padded_by_collator(inspected: InspectedModel, row: Any) -> Padded | None:
    """Return the row in one batch with a longer one, as the collator makes it; None where it cannot."""
    length = length_of(row)
    if length is None or not isinstance(row, Mapping):
        return None
    added = _room(inspected, length)
    longer, reference = (_longer(row, length, added), None) if added > 0 else (row, _shorter(row, length))
    try:
        batch = inspected.place(inspected.collate([row if reference is None else reference, longer]))
        alone = inspected.place(inspected.collate([reference])) if reference is not None else None
    except Exception:
        return None
    if not has_tokens(batch) or len(batch[IDS]) != 2:
        return None
    return _where(batch, alone, length if reference is None else length_of(reference) or 0, row, reference)


def _where(batch: dict[str, Any], alone: Any, length: int, row: Any, reference: Any) -> Padded | None:
    ids = batch[IDS][0]
    wanted = torch.as_tensor((row if reference is None else reference)[IDS], device=ids.device)
    if len(ids) <= length:
        return None
    for side, own in (("right", torch.arange(length)), ("left", torch.arange(len(ids) - length, len(ids)))):
        own = own.to(ids.device)
        if torch.equal(ids[own], wanted):
            rest = torch.ones_like(ids, dtype=torch.bool)
            rest[own] = False
            found: Side = "left" if side == "left" else "right"
            before = torch.arange(length, device=ids.device)
            return Padded(batch, own, before, found, int(ids[rest][0]), by_collator=True, reference=alone)
    return None


def padded_by_hand(inspected: InspectedModel, batch: Mapping[str, Any], side: Side, pad_id: int) -> Padded | None:
    """Return the row with a few pad tokens more on one side; None where there is no room."""
    length = batch[IDS].shape[1]
    added = _room(inspected, length)
    if added <= 0:
        return None
    padded = dict(batch)
    for key, value in batch.items():
        if _per_token(value, batch):
            filling = pad_id if key == IDS else IGNORED_LABEL if key in inspected.label_names else 0
            extra = torch.full((1, added, *value.shape[2:]), filling, dtype=value.dtype, device=value.device)
            padded[key] = torch.cat([value, extra] if side == "right" else [extra, value], dim=1)
    before = torch.arange(length, device=batch[IDS].device)
    return Padded(padded, before + (added if side == "left" else 0), before, side, pad_id)


def _room(inspected: InspectedModel, length: int) -> int:
    """Return how many tokens to add to a row of this length: a quarter of it, or what fits, which may be none."""
    wanted, limit = max(2, length // 4), positions(inspected)
    return wanted if limit is None else min(wanted, limit - length)


def _per_token(value: Any, batch: Mapping[str, Any]) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[:2] == batch[IDS].shape


def _longer(row: Mapping[str, Any], length: int, added: int) -> dict[str, Any]:
    inner = range(1, max(length - 1, 2)) if length > 1 else range(1)
    pattern = [inner[i % len(inner)] for i in range(added)]
    return _rearranged(row, length, [*range(length - 1), *pattern, length - 1])


def _shorter(row: Mapping[str, Any], length: int) -> dict[str, Any]:
    removed = max(length // 4, 1)
    return _rearranged(row, length, [*range(length - 1 - removed), length - 1])


def _rearranged(row: Mapping[str, Any], length: int, order: list[int]) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) == length:
            return value[order]
        if isinstance(value, list | tuple) and len(value) == length:
            return [value[i] for i in order]
        return value

    return {key: moved(value) for key, value in row.items()}


def same_row(
    logits: torch.Tensor, variant: torch.Tensor, padded: Padded, reference: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the first row's logits in both, at the tokens that are its own; None where they cannot be matched."""
    one, other = logits[:1], variant[:1]
    if one.ndim >= 3:
        if one.shape[1] == reference[IDS].shape[1] and other.shape[1] == padded.batch[IDS].shape[1]:
            one, other = one[:, padded.before], other[:, padded.own]
        else:  # a decoder's positions, which start at the left
            other = other[:, : one.shape[1]]
    return (one, other) if one.shape == other.shape else None
