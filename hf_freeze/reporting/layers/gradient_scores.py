"""The relative gradient norm of each block: how strongly a task changes its weights (auto-RGN; Lee et al., 2022)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.errors import FreezeError, in_one_line
from hf_freeze.features.batches import Source
from hf_freeze.model_inputs.inspected_model import InspectedModel, inspect_model
from hf_freeze.no_trace import gradients_kept, modules_kept, untouched
from hf_freeze.reporting.layers.row_batches import as_mapping, inputs_of, refuse_unread, stacked
from hf_freeze.selection.model_map import map_model, unwrap

_LOSS = "method='gradient' takes the loss that the model returns for labels, as the Trainer does"
_WITHOUT = "method='spectrum' needs neither rows nor labels"


def gradient_scores(
    model: nn.Module,
    blocks: Mapping[str, frozenset[str]],
    dataset: Any,
    batches: Sequence[Sequence[int]],
    *,
    collator: Callable[[list[Any]], Mapping[str, Any]] | None,
    tokenizer: Any,
    show_progress: bool,
) -> dict[str, float]:
    """Return block -> the mean over `batches` of the norm of its gradient over that of its weights.

    As in the authors' code, norms of single batches are averaged, not gradients, and the weights of normalisation
    layers, which start at 1, are left out, unless a block has no others. Theirs are also averaged over the tensors of a
    block, where a bias close to zero outweighs all matrices; here a block counts as one vector. The model is in eval
    mode, and left as it was. Raises `FreezeError` where there is no loss, no label or no gradient, or one that is not
    finite.
    """
    inspected = inspect_model(unwrap(model), tokenizer=tokenizer, collator=collator, threshold=None)
    own, norm_layers = dict(inspected.model.named_parameters()), map_model(model).roles["norms"]
    weighed = {block: sorted(names - norm_layers or names) for block, names in blocks.items()}
    sizes = {block: _size(block, [own[name] for name in names]) for block, names in weighed.items()}
    if collator is None:
        refuse_unread(inspected, dataset[batches[0][0]])
    source = Source(dataset, collator or (lambda rows: _with_labels(inspected, rows)), inspected.place)
    pulls: dict[str, list[float]] = {block: [] for block in blocks}
    wanted = {name: own[name] for name in sorted({name for names in weighed.values() for name in names})}
    bar = tqdm(total=sum(map(len, batches)), unit="rows", desc="Gradients", disable=not show_progress)
    with bar, _ready(inspected.model, [*wanted.values()]):
        for rows, batch in zip(batches, source.batches(batches), strict=True):
            norms = _norms(inspected, wanted, batch.inputs())
            for block, names in weighed.items():
                pulls[block].append(math.hypot(*(norms[name] for name in names)) / sizes[block])
            bar.update(len(rows))
    scores = {block: fmean(found) for block, found in pulls.items()}
    if not any(scores.values()):
        raise FreezeError(
            "Every gradient is zero, so no block stands out. Is the loss saturated, or does it not depend on the "
            f"weights? debug_sample(model, row) looks at one row; {_WITHOUT}."
        )
    return scores


def _norms(inspected: InspectedModel, wanted: Mapping[str, nn.Parameter], inputs: dict[str, Any]) -> dict[str, float]:
    loss = _loss(inspected, inputs)
    gradients = torch.autograd.grad(loss, [*wanted.values()], allow_unused=True)
    return {name: _norm(name, gradient) for name, gradient in zip(wanted, gradients, strict=True)}


def _size(block: str, weights: Sequence[torch.Tensor]) -> float:
    """Return the norm of the weights of a block. Raises `FreezeError` where all are zero."""
    size = math.hypot(*(float(torch.linalg.vector_norm(tensor.detach().float())) for tensor in weights))
    if not size:
        raise FreezeError(
            f"All weights of {block!r} are zero, so no gradient can be measured relative to them. Initialise them, or "
            "load the trained weights."
        )
    return size


@contextmanager
def _ready(model: nn.Module, wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Make exactly these parameters require a gradient, in eval mode; put everything back."""
    ids = {id(parameter) for parameter in wanted}
    with untouched(model), gradients_kept(model), modules_kept(model), torch.enable_grad():
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in ids)
        yield


def _with_labels(inspected: InspectedModel, rows: Sequence[Any]) -> dict[str, Any]:
    ids = getattr(inspected.config, "label2id", None) or {}

    def number(label: Any) -> Any:
        if isinstance(label, str) and label not in ids:
            raise FreezeError(
                f"The label {label!r:.80} is a text that the model does not know; its config.label2id has "
                f"{sorted(ids)!s:.120}. Give its number, or set label2id as the model was trained."
            )
        return ids[label] if isinstance(label, str) else int(label) if isinstance(label, bool) else label

    given = [{k: number(v) for k, v in as_mapping(row).items() if k in inspected.label_names} for row in rows]
    return stacked(
        inspected, [{**inputs_of(inspected, row), **labels} for row, labels in zip(rows, given, strict=True)]
    )


def _loss(inspected: InspectedModel, batch: dict[str, Any]) -> torch.Tensor:
    if all(batch.get(name) is None for name in inspected.label_names):
        raise FreezeError(
            f"A batch holds {sorted(batch)}, and no labels. {_LOSS}: name the column 'label' or 'labels'. {_WITHOUT}."
        )
    try:
        outputs = inspected.model(**batch)
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise FreezeError(
            f"The model raised {in_one_line(error)} for a batch of {sorted(batch)}. {_LOSS}; "
            "debug_sample(model, row) looks at one row."
        ) from error
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0] if isinstance(outputs, tuple) else None
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise FreezeError(
            f"{type(inspected.model).__name__} returned no loss for {sorted(batch)} that has a gradient. "
            f"{_LOSS}: let forward take labels and return {{'loss': ...}}. {_WITHOUT}."
        )
    if not bool(torch.isfinite(loss)):
        raise FreezeError(
            f"The loss of a batch is {loss.item()}. Are weights and labels whole? A model in float16 can overflow: "
            "load it in float32 or bfloat16. debug_sample(model, row) looks at one row."
        )
    return loss.reshape(())


def _norm(name: str, gradient: torch.Tensor | None) -> float:
    if gradient is None:
        return 0.0
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm = float(torch.linalg.vector_norm(values.float()))
    if not math.isfinite(norm):
        raise FreezeError(
            f"The gradient of {name!r} is not finite, though the loss is. A model in float16 can overflow: load it in "
            "float32 or bfloat16."
        )
    return norm
