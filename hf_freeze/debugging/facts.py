"""What was seen of a sample, as plain JSON-able values: text, inputs, outputs, model."""

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import nn

from hf_freeze.binary.inference import predict_binary
from hf_freeze.binary.margin import binary_margin
from hf_freeze.debugging.look import Look
from hf_freeze.debugging.losses import LossFinding
from hf_freeze.debugging.outputs import squashed_by
from hf_freeze.debugging.variants import has_tokens, real_tokens
from hf_freeze.model_inputs.input_rows import Row
from hf_freeze.model_inputs.inspected_model import IDS, InspectedModel
from hf_freeze.selection.frozen_marks import trainable_size

Facts = dict[str, Any]


def facts_of(look: Look) -> Facts:
    """Return what was seen of a sample, without a pass that the checks have not made."""
    found: Facts = {"sample": {"origin": look.row.origin, "index": look.row.index, "seed": look.row.seed}}
    if look.batch:
        found["sample"] = _sample_facts(look.inspected, look.row, look.batch, look.label)
        found["inputs"] = _input_facts(look.batch)
        if look.logits is not None:
            squashed = squashed_by(look.scored.logits) is not None
            head = "probability" if squashed else "logits"
            found["output"] = _output_facts(look.inspected, look.logits, kind=look.kind, head=head)
        if look.loss_finding is not None:
            found["loss"] = _loss_facts(look.loss_finding, look.logits_with_graph)
    found["model"] = _model_facts(look.model, look.flags)
    found["cost"] = round(look.runner.cost, 2)
    return found


def _loss_facts(finding: LossFinding, logits: torch.Tensor) -> Facts:
    columns = logits.shape[-1] if logits.ndim > 1 else 1
    uniform = 2 if columns == 1 and (finding.kind or "").startswith("binary") else columns
    return {
        "value": finding.value,
        "kind": finding.kind,
        "recomputed": None if finding.plain is None else finding.plain.value,
        "recomputed_as": None if finding.plain is None else finding.plain.kind,
        "classes": uniform,
        "uniform": math.log(uniform) if uniform > 1 else None,
    }


def _sample_facts(inspected: InspectedModel, row: Row, batch: Mapping[str, Any], labels: torch.Tensor | None) -> Facts:
    """Return where the row comes from, its text, and its label by name."""
    facts: Facts = {"origin": row.origin, "index": row.index, "seed": row.seed}
    if has_tokens(batch):
        ids, own = batch[IDS][0], real_tokens(inspected, batch)
        unknown = getattr(inspected.tokenizer, "unk_token_id", None)
        facts["tokens"] = int(own.sum())
        facts["padding"] = int((~own).sum())
        facts["unknown"] = None if unknown is None else int((ids == unknown).sum())
        facts["text"] = None if inspected.tokenizer is None else _marked_text(inspected.tokenizer, ids.tolist())
    if labels is not None:
        single = labels.numel() == 1
        facts["target"] = labels.item() if single else labels.flatten()[:8].tolist()
        names = getattr(inspected.config, "id2label", None) or {}
        facts["target_name"] = names.get(facts["target"]) if single and not labels.is_floating_point() else None
    return facts


def _marked_text(tokenizer: Any, ids: list[int]) -> str:
    """Decode token ids, with special tokens in guillemets and runs of one special token counted."""
    special = set(getattr(tokenizer, "all_special_ids", None) or ())

    def pieces() -> Iterator[str]:
        for token, run in groupby(ids, key=lambda i: i if i in special else None):
            found = list(run)
            if token is None:
                yield str(tokenizer.decode(found)).strip()
            else:
                name = tokenizer.convert_ids_to_tokens(token)
                yield f"«{name}»" + (f" x {len(found)}" if len(found) > 1 else "")

    return " ".join(pieces())


def _input_facts(batch: Mapping[str, Any]) -> Facts:
    """Return shape, dtype, device and range of every input."""
    return {name: _tensor_facts(value) for name, value in batch.items() if isinstance(value, torch.Tensor)}


def _tensor_facts(value: torch.Tensor) -> Facts:
    facts: Facts = {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "device": str(value.device),
    }
    if value.numel():
        plain = value.detach().float() if value.is_floating_point() else value.detach().long()
        facts |= {"min": plain.min().item(), "max": plain.max().item()}
    return facts


def _output_facts(inspected: InspectedModel, logits: torch.Tensor, *, kind: str, head: Any = "logits") -> Facts:
    """Return what follows from the logits: margin, probability, and the label at 0.5 and at the tuned threshold."""
    facts: Facts = {**_tensor_facts(logits), "kind": kind}
    row = logits.detach().float().reshape(-1)
    names = {int(i): str(name) for i, name in (getattr(inspected.config, "id2label", None) or {}).items()}
    if kind == "binary" and bool(torch.isfinite(row).all()):
        facts |= _binary_facts(inspected, logits.detach().reshape(1, -1), head=head)
    elif kind == "classes":
        shares = row.softmax(0)
        best = int(row.nan_to_num(nan=-math.inf).argmax())
        facts |= {"label": best, "probability": float(shares[best])}
    elif kind == "regression":
        facts["value"] = float(row[0])
    if facts.get("label") is not None:
        facts["label_name"] = names.get(facts["label"]) if len(names) > 1 else None
    return facts


def _binary_facts(inspected: InspectedModel, logits: torch.Tensor, *, head: Any) -> Facts:
    tuned = inspected.threshold
    positive = 1 if tuned is None else tuned.positive
    margin = float(binary_margin(logits, positive=positive, head=head)[0])
    at_half = predict_binary(logits, positive=positive, head=head)
    label = int(at_half.label[0]) if tuned is None else int(predict_binary(logits, tuned, head=head).label[0])
    return {
        "margin": margin,
        "probability": float(at_half.probability[0]),
        "positive": positive,
        "label_at_half": int(at_half.label[0]),
        "label": label,
        "threshold": None if tuned is None else tuned.threshold,
        "distance": margin - (0.0 if tuned is None else tuned.threshold),
    }


def _model_facts(model: nn.Module, flags: Mapping[str, bool]) -> Facts:
    """Return the size of the model, and the mode that its top-level parts were in."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p) for p in model.parameters()]
    parts = {path: flags[path] for path in flags if path and "." not in path} or {"model": flags[""]}
    return {
        "class": type(model).__name__,
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size if size > p.numel() else trainable_size(p) for size, p in sizes if p.requires_grad),
        "modes": {path: "train" if training else "eval" for path, training in parts.items()},
    }
