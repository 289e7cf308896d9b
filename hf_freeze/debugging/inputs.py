"""Checks of what goes into the model, and of the model's state."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_freeze.debugging.passes import OutOfRange, all_finite
from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning
from hf_freeze.debugging.variants import has_tokens, real_tokens
from hf_freeze.model_inputs.input_rows import Row, length_of, positions
from hf_freeze.model_inputs.inspected_model import IDS, InspectedModel
from hf_freeze.module_types import BATCH_NORMS, DROPOUTS
from hf_freeze.tensor_parts import parts_of

_UNKNOWN_SHARE = 0.3


def check_modes(flags: Mapping[str, bool], model: nn.Module, ignores_eval: Sequence[str]) -> Check:
    """Check that the parts agree in their train and eval flags."""
    name: CheckName = "modes"
    ignores_eval = [path for path in ignores_eval if _minds_mode(model.get_submodule(path))]
    if ignores_eval:
        return failed(
            name,
            f"{ignores_eval[0] or 'the model'} and {len(ignores_eval) - 1} more stay in train mode after model.eval(): "
            "evaluation runs with dropout or moving statistics there. Is train() or eval() overridden?",
        )
    if not flags[""]:
        strays = [path for path, training in flags.items() if training and _minds_mode(model.get_submodule(path))]
        if strays:
            return warning(
                name,
                f"{strays[0]} is in train mode inside a model in eval mode ({len(strays)} modules): dropout or batch "
                "statistics are on there. Call model.eval() or model.train() on the whole model.",
            )
    return ok(name, "The parts of the model follow eval() and agree with each other.")


def _minds_mode(module: nn.Module) -> bool:
    """Tell whether train mode makes a difference to a module or to what is in it."""
    for part in module.modules():
        if getattr(part, "p", 0) and isinstance(part, DROPOUTS):
            return True
        if isinstance(part, BATCH_NORMS) and part.track_running_stats:
            return True
        if not type(part).__module__.startswith(("torch.nn.", "peft.")):
            return True
    return False


def check_weights(model: nn.Module) -> Check:
    """Look for NaN and infinity among the weights."""
    bad = [(path, int((~torch.isfinite(tensor)).sum())) for path, tensor in _floating(model) if not all_finite(tensor)]
    if not bad:
        return ok("weights_finite", "Every weight is finite.")
    more = f", and {len(bad) - 1} more parameters" if len(bad) > 1 else ""
    return failed(
        "weights_finite",
        f"{bad[0][0]} holds {bad[0][1]:,} values that are NaN or infinite{more}. Load the weights again; did an "
        "earlier run diverge, or was a new layer left without initialisation?",
    )


def _floating(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        is_statistic = "running" in path or isinstance(tensor, nn.Parameter)  # a mask may hold -inf on purpose
        own: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        for piece in parts_of(own) if is_statistic else ():
            if piece.is_floating_point() and piece.numel() and piece.element_size() > 1:
                yield path, piece.detach()


def check_inputs(batch: Mapping[str, Any]) -> Check:
    """Look for NaN and infinity among pixels and samples."""
    for key, value in batch.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            continue
        if not bool(torch.isfinite(value).all()) and "mask" not in key:
            return failed("inputs", f"{key} holds NaN or infinite values. Look at the row and its preprocessing.")
    return ok("inputs", "The inputs are finite.")


def check_vocabulary(inspected: InspectedModel, batch: Mapping[str, Any], error: Exception | None) -> Check | None:
    """Check that token ids and the tokenizer fit the embedding."""
    table = inspected.input_embedding
    name: CheckName = "vocabulary"
    if isinstance(error, OutOfRange) and not (error.is_counting and error.module is not table):
        return failed(
            name,
            f"Ids from {error.smallest} to {error.largest} index {error.path}, which has {error.module.num_embeddings} "
            "rows. Is it the model's own tokenizer? After adding tokens: "
            "model.resize_token_embeddings(len(tokenizer)).",
        )
    if table is None or not has_tokens(batch):
        return None
    if inspected.tokenizer is not None and len(inspected.tokenizer) > table.num_embeddings:
        return failed(
            name,
            f"The tokenizer has {len(inspected.tokenizer):,} tokens, but the embedding only {table.num_embeddings:,} "
            "rows: the other ids will raise an error. Call model.resize_token_embeddings(len(tokenizer)), or use the "
            "model's own tokenizer.",
        )
    ids = batch[IDS]
    return ok(
        name,
        f"Ids from {int(ids.min())} to {int(ids.max())} are within the {table.num_embeddings:,} rows of the embedding.",
    )


def check_length(inspected: InspectedModel, batch: Mapping[str, Any], error: Exception | None) -> Check | None:
    """Check that the model has positions for all tokens."""
    if not has_tokens(batch):
        return None
    length, limit = batch[IDS].shape[1], positions(inspected)
    counting = isinstance(error, OutOfRange) and error.is_counting and error.module is not inspected.input_embedding
    if counting or (limit is not None and length > limit):
        return failed(
            "length",
            f"The row has {length} tokens, but the model has only {limit or 'fewer'} positions. Tokenize with "
            f"truncation=True, max_length={limit or '...'}.",
        )
    return ok("length", f"{length} tokens" + (f" fit {limit} positions." if limit else "."))


def check_truncated(inspected: InspectedModel, row: Row, batch: Mapping[str, Any]) -> Check | None:
    """Tell whether tokens were cut off: for certain where the text is known, else by where other rows end."""
    if not has_tokens(batch):
        return None
    name: CheckName = "truncated"
    length = int(real_tokens(inspected, batch).sum())
    if row.untruncated is not None:
        if row.untruncated <= length:
            return ok(name, f"The whole text fits: {length} tokens.")
        return warning(
            name,
            f"The text has {row.untruncated} tokens, {row.untruncated - length} of which were cut off. Give the "
            "tokenizer a larger max_length, or shorten the texts yourself where it matters least.",
        )
    lengths = [found for other in row.others if (found := length_of(other)) is not None]
    if len(lengths) > 1 and len(set(lengths)) == 1:
        return ok(name, f"{length} tokens, as in every row: texts come in pieces of one length.")
    told = getattr(getattr(inspected.tokenizer, "backend_tokenizer", None), "truncation", None) or {}
    limits = told.get("max_length"), getattr(inspected.tokenizer, "model_max_length", None), positions(inspected)
    piled = _piled_up(length, lengths)
    if length in limits or piled:
        longest = f"as {piled} of {len(lengths)} rows have, which is the longest"
        why = "as many as were allowed" if length in limits else longest
        return warning(
            name,
            f"The row has {length} tokens, {why}: its text was probably truncated. Look at its end in the text above; "
            "a larger max_length keeps more.",
        )
    return ok(name, f"{length} tokens, below every limit that is known.")


def _piled_up(length: int, lengths: Sequence[int]) -> int:
    """Return how many rows share the largest length, where so many do that a limit must be the cause; else 0."""
    counts = Counter(lengths)
    if len(lengths) < 20 or length != max(lengths) or len(counts) < 4:
        return 0
    piled = counts.pop(length)
    return piled if piled >= 5 and piled > 2 * max(counts.values()) else 0


def check_unknown(inspected: InspectedModel, batch: Mapping[str, Any]) -> Check | None:
    """Count tokens that the tokenizer did not know."""
    unknown = getattr(inspected.tokenizer, "unk_token_id", None)
    if unknown is None or not has_tokens(batch):
        return None
    special = {i for i in (getattr(inspected.tokenizer, "all_special_ids", None) or ()) if i != unknown}
    ids = [i for i in batch[IDS][0].tolist() if i not in special]
    count = ids.count(unknown)
    if not ids:
        return warning("tokens", "The row holds special tokens only: is the text empty?")
    eos = getattr(inspected.tokenizer, "eos_token_id", None)
    if count > _UNKNOWN_SHARE * len(ids) and unknown != eos:
        return warning(
            "tokens",
            f"{count} of {len(ids)} tokens are {inspected.tokenizer.unk_token!r}: the tokenizer does not know this "
            "language, alphabet or vocabulary. Is it the model's own?",
        )
    return ok("tokens", f"{count} of {len(ids)} tokens are unknown to the tokenizer.")
