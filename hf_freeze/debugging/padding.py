"""Checks of padding: is it masked, is it the model's pad token, is it on the side where it does no harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_freeze.debugging.passes import Runner, distance, noise
from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning
from hf_freeze.debugging.variants import (
    MASK,
    Padded,
    has_tokens,
    pad_id_of,
    padded_by_collator,
    padded_by_hand,
    same_row,
    without_padding,
)
from hf_freeze.errors import in_one_line
from hf_freeze.model_inputs.input_rows import Row
from hf_freeze.model_inputs.inspected_model import IDS, InspectedModel


@dataclass(frozen=True)
class _Probe:
    """What padding did to the logits: `moved` is None where that is unknown."""

    padded: Padded
    moved: float | None
    allowed: float
    error: Exception | None = None

    @property
    def harmful(self) -> bool:
        """Whether padding moved the logits by more than rounding can."""
        return self.moved is not None and self.moved > self.allowed


@dataclass(frozen=True)
class PaddingContext:
    """What the checks of padding share: the row alone, its logits, and how far other contents move them."""

    runner: Runner
    row: Row
    batch: Mapping[str, Any]
    logits: torch.Tensor
    sensitivity: float

    @property
    def inspected(self) -> InspectedModel:
        """What is looked at."""
        return self.runner.inspected


def check_padding(context: PaddingContext, *, judge_moves: bool) -> list[Check]:
    """Pad the row as training will (or take its padding away), and compare its logits with those it has alone.

    `judge_moves=False` where two equal passes differ anyway: then only what can be seen without comparing is judged.
    """
    if not has_tokens(context.batch):
        return []
    missing = _missing_pad_token(context)
    padded = _padded(context) if missing is None else None
    masked = _check_mask(context, padded)
    seen = [check for check in (missing, masked) if check is not None]
    if padded is None:
        return seen
    probe = _probe(context, padded)
    if probe.error is not None and "pad" in str(probe.error):
        return [_no_pad_token(context.inspected, probe.error)]
    if probe.moved is None or not judge_moves or (masked is not None and masked.status != "ok"):
        return seen
    token = _wrong_token(context.inspected, probe)
    if not probe.harmful:
        return [*seen, *([token] if token else []), ok("padding", "Padding does not change the logits.")]
    harm = token or _harm(context, probe)
    return [*(check for check in seen if check.name != harm.name), harm]


def _missing_pad_token(context: PaddingContext) -> Check | None:
    """Check for a pad token: a decoder that classifies finds the last token by it, and refuses batches without one."""
    inspected = context.inspected
    classifies = type(inspected.task_model).__name__.endswith("ForSequenceClassification")
    if not classifies or getattr(_text_config(inspected), "pad_token_id", 0) is not None:
        return None
    two = {
        key: torch.cat([value, value]) if hasattr(value, "ndim") and value.ndim else value
        for key, value in context.batch.items()
    }
    error = context.runner.run(two, score=False).error
    return None if error is None else _no_pad_token(inspected, error)


def _no_pad_token(inspected: InspectedModel, error: Exception) -> Check:
    eos = getattr(inspected.tokenizer, "eos_token_id", None) or getattr(inspected.config, "eos_token_id", None)
    return failed(
        "pad_token",
        f"A batch of two rows raised {in_one_line(error, most=90)}. Set tokenizer.pad_token and "
        f"model.config.pad_token_id; the end token ({eos}) will do.",
    )


def _padded(context: PaddingContext) -> Padded | None:
    """Return the row padded differently: freed of padding, in a longer batch, or (where masked) padded by hand."""
    inspected, batch = context.inspected, context.batch
    found = without_padding(inspected, batch) or padded_by_collator(inspected, context.row.value)
    if found is not None:
        return found
    pad_id = pad_id_of(inspected)
    if MASK not in batch or pad_id is None:
        return None
    return padded_by_hand(inspected, batch, _side(inspected), pad_id)


def _side(inspected: InspectedModel) -> Any:
    return getattr(inspected.tokenizer, "padding_side", "right")


def _check_mask(context: PaddingContext, padded: Padded | None) -> Check | None:
    """Judge the mask itself."""
    mask = context.batch.get(MASK)
    name: CheckName = "attention_mask"
    takes = MASK in context.inspected.accepts
    if mask is None:
        given = isinstance(context.row.value, Mapping) and MASK in context.row.value
        if given and takes:
            return failed(name, "The row has an attention_mask and the batch does not. Which collator drops it?")
        return ok(name, "No attention_mask, and no padding that would need one.") if takes else None
    if mask.shape[:1] and not bool(mask.any()):
        return failed(name, "The attention_mask is zero everywhere: the model sees nothing. Is it inverted?")
    shown = context.batch if padded is None or not padded.by_collator else padded.batch
    if padded is not None and mask.ndim == 2 and (unmasked := _unmasked(context, padded, shown)):
        return failed(
            name,
            f"The attention_mask is 1 on {unmasked} pad tokens: the model reads them. Take the mask from the "
            "tokenizer, or make it from the ids before padding.",
        )
    return ok(name, f"The attention_mask covers {int(mask.ne(0).sum())} of {mask.numel()} tokens.")


def _unmasked(context: PaddingContext, padded: Padded, shown: Mapping[str, Any]) -> int:
    mask = shown.get(MASK)
    if not isinstance(mask, torch.Tensor) or mask.shape != shown[IDS].shape:
        return 0
    own = padded.own if shown is padded.batch else padded.before
    rest = torch.ones(mask.shape[1], dtype=torch.bool, device=mask.device)
    rest[own] = False
    return int(mask[0][rest].ne(0).sum())


def _probe(context: PaddingContext, padded: Padded) -> _Probe:
    reference, logits = context.batch, context.logits
    if padded.reference is not None:
        alone = context.runner.run(padded.reference, score=_scored(context))
        if alone.logits is None:
            return _Probe(padded, None, 0.0)
        reference, logits = padded.reference, alone.logits
    made = context.runner.run(padded.batch, score=_scored(context))
    if made.logits is None:
        return _Probe(padded, None, 0.0, made.error)
    pair = same_row(logits, made.logits, padded, reference)
    if pair is None:
        return _Probe(padded, None, 0.0)
    # Rounding is judged by what the contents of the row do to the logits: those of a new model are small.
    share = {1: 0.5, 2: 0.2}.get(_bytes(context), 1e-3)
    return _Probe(
        padded, distance(*pair), max(noise(pair[0]) if _bytes(context) > 2 else 0.0, share * context.sensitivity)
    )


def _bytes(context: PaddingContext) -> int:
    mixed = getattr(getattr(context.inspected.trainer, "accelerator", None), "mixed_precision", "no")
    fast = torch.backends.cuda.matmul.allow_tf32 and context.logits.is_cuda
    weights = [p.element_size() for p in context.inspected.model.parameters() if p.is_floating_point()]
    return 2 if mixed not in ("no", None) or fast else min([context.logits.element_size(), *weights])


def _scored(context: PaddingContext) -> bool:
    """Tell whether labels must be passed on: an encoder-decoder makes its decoder's inputs from them."""
    return bool(getattr(context.inspected.config, "is_encoder_decoder", False))


def _harm(context: PaddingContext, probe: _Probe) -> Check:
    """Say why padding moves the logits."""
    takes, has = MASK in context.inspected.accepts, MASK in context.batch
    if takes and not has:
        return failed(
            "attention_mask",
            f"Batches are padded and have no attention_mask, which the model takes: padding {_by(probe)}. Does the "
            "tokenizer return one, and does the collator keep it?",
        )
    side = probe.padded.side
    other = "left" if side == "right" else "right"
    if has and _harmless(context, other, probe):
        return failed(
            "padding_side",
            f"Padding on the {side} {_by(probe)}, on the {other} it does not: this model reads a fixed end of the row, "
            f"or counts positions from the left. Set tokenizer.padding_side = {other!r}.",
        )
    if not takes:
        return warning(
            "padding",
            f"Padding {_by(probe)}, and the model takes no attention_mask: a row's result depends on its batch. Mask "
            "the pad tokens in forward.",
        )
    return failed(
        "padding",
        f"Padding {_by(probe)}, though it is masked: a row's result depends on its batch. Does forward pass the "
        "attention_mask on, and pool with it?",
    )


def _by(probe: _Probe) -> str:
    return f"changes the logits by {probe.moved:.3g}"


def _harmless(context: PaddingContext, side: Any, probe: _Probe) -> bool:
    if probe.padded.pad_id is None:
        return False
    by_hand = padded_by_hand(context.inspected, _unpadded(context, probe), side, probe.padded.pad_id)
    if by_hand is None:
        return False
    again = _probe(_alone(context, probe), by_hand)
    return again.moved is not None and not again.harmful


def _unpadded(context: PaddingContext, probe: _Probe) -> Mapping[str, Any]:
    """Return the row without padding: what came out of the trimming, or the row itself."""
    trimmed = len(probe.padded.before) < context.batch[IDS].shape[1] and probe.padded.reference is None
    return probe.padded.batch if trimmed else context.batch


def _alone(context: PaddingContext, probe: _Probe) -> PaddingContext:
    batch = _unpadded(context, probe)
    if batch is context.batch:
        return context
    logits = context.runner.run(batch, score=_scored(context)).logits
    return (
        context if logits is None else PaddingContext(context.runner, context.row, batch, logits, context.sensitivity)
    )


def _wrong_token(inspected: InspectedModel, probe: _Probe) -> Check | None:
    expected, used = getattr(_text_config(inspected), "pad_token_id", None), probe.padded.pad_id
    if expected is None or used is None or expected == used:
        return None
    message = (
        f"Rows are padded with id {used}, config.pad_token_id is {expected}"
        + (f", and padding {_by(probe)}" if probe.harmful else "")
        + ": models find positions, or the last token, by their pad token. Use one id for both."
    )
    return failed("pad_token", message) if probe.harmful else warning("pad_token", message)


def _text_config(inspected: InspectedModel) -> Any:
    return getattr(inspected.config, "get_text_config", lambda: inspected.config)()
