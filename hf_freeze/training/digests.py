"""Cheap exact digests of tensors, to tell whether a single bit changed.

The bits are read as 64-bit integers, laid out in rows of 1024, and the sums of rows and of columns are added up with
weights, modulo 2**64. Every word has an odd weight in all, so that a change of one always shows; the weights step by
constants without small ratios, so that no two words of a tensor have the same, and elements that change places show
too. Two passes over memory and no copy, on the tensor's own device; tensors of up to 256 kB are
multiplied with the same weights written out, which takes a single pass and few calls.
Of sharded tensors each rank reads its shard, and the ranks' sums are added up.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import torch
import torch.distributed as dist

from hf_freeze.tensor_parts import parts_of
from hf_freeze.training.backends import is_sharded, local

_ROW = 1024
_AT_ONCE = 32 * _ROW
"""Up to how many words weights are kept written out; with more, to read them takes longer than a second pass."""
_ROWS, _COLUMNS, _REST = 0x1E3779B97F4A7C15, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85
"""Odd numbers with random bits, by which the weights of rows, of columns, and of what fills no row step."""


def digests(tensors: Mapping[str, torch.Tensor], *, merge_zeros: bool = False) -> dict[str, int]:
    """Digest every tensor; one transfer from the device for all of them.

    With `merge_zeros`, -0.0 counts as 0.0, for a copy of one tensor at a time: a step at a rate of 0 turns the one into
    the other.
    """
    if not tensors:
        return {}
    with torch.no_grad():
        pieces = (local(tensor) + 0 if merge_zeros else local(tensor) for tensor in tensors.values())
        values = torch.cat([*_digests(pieces)])
    return dict(zip(tensors, over_shards(values, tensors.values()).tolist(), strict=True))


def typed_digests(tensors: Mapping[str, torch.Tensor], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Digest every tensor together with its type and shape: rows of zeros more or less would not show in the bits.

    Those in `known`, which `digests` has just returned, are not read again.
    """
    known = known or {}
    values = {**known, **digests({name: tensor for name, tensor in tensors.items() if name not in known})}
    return {name: values[name] ^ _of_kind(tensor) for name, tensor in tensors.items()}


def over_shards(values: torch.Tensor, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Add up what each rank computed for its shards, so that all ranks go by the same numbers."""
    if any(map(is_sharded, tensors)):
        dist.all_reduce(values)
    return values


def _digests(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Digest each tensor by itself, runs of small ones together: thousands of biases would cost more than a layer."""
    small: list[torch.Tensor] = []
    for words in map(as_words, tensors):
        fits = words.numel() < _ROW and (not small or words.device == small[0].device)
        if small and not (fits and len(small) < _ROW):
            yield _digests_of_small(small)
            small = []
        if words.numel() < _ROW:
            small.append(words)
        else:
            yield _digest(words).reshape(1)
    if small:
        yield _digests_of_small(small)


def _of_kind(tensor: torch.Tensor) -> int:
    text = f"{tensor.dtype} {[*tensor.shape]}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _digests_of_small(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the digests of tensors of less than a row each, as `_digest` computes them."""
    device = tensors[0].device
    lengths = torch.tensor([words.numel() for words in tensors])
    owners = torch.repeat_interleave(lengths)
    places = torch.arange(len(owners)) - (lengths.cumsum(0) - lengths)[owners]
    weighted = torch.cat([*tensors]) * (2 * places * _REST + 1).to(device)
    sums = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    return _REST * sums.index_add_(0, owners.to(device), weighted)


def _digest(words: torch.Tensor) -> torch.Tensor:
    if words.numel() <= _AT_ONCE:
        return (words * _weights(words.numel(), words.device)).sum()
    whole = words.numel() // _ROW * _ROW
    rows = words[:whole].view(-1, _ROW)
    in_rows = _weighted(rows.sum(dim=1), _ROWS) + 2 * _weighted(rows.sum(dim=0), _COLUMNS)
    return in_rows + _REST * _weighted(words[whole:], _REST)


def _weighted(values: torch.Tensor, step: int) -> torch.Tensor:
    count = values.numel()
    return (values * _odd_numbers(1 << count.bit_length(), step, values.device)[:count]).sum()


@lru_cache(maxsize=64)
def _odd_numbers(count: int, step: int, device: torch.device) -> torch.Tensor:
    return 2 * torch.arange(count, device=device) * step + 1


@lru_cache(maxsize=16)
def _weights(count: int, device: torch.device) -> torch.Tensor:
    """Return what `_digest` multiplies each of so many words with."""
    whole = count // _ROW * _ROW
    rows, columns = (_odd_numbers(number, step, device) for number, step in ((whole // _ROW, _ROWS), (_ROW, _COLUMNS)))
    in_rows = (rows[:, None] + 2 * columns).flatten()
    return torch.cat([in_rows, _REST * _odd_numbers(count - whole, _REST, device)])


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bits of a tensor as 64-bit integers, without a copy where it lies so in memory."""
    parts = parts_of(tensor)
    if parts[0] is not tensor:
        return torch.cat([*map(as_words, parts)])
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if short := -flat.numel() % 8:
        flat = torch.cat([flat, flat.new_zeros(short)])
    if flat.storage_offset() % 8:
        flat = flat.clone()  # a view into a larger tensor, as DeepSpeed's pieces are
    return flat.view(torch.int64)
