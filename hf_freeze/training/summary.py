"""What is trainable in a model, part by part, to see that freezing did something."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hf_freeze.plan.tables import as_table, part_labels
from hf_freeze.selection.frozen_marks import trainable_size, trained_rows
from hf_freeze.selection.model_map import map_model, unwrap
from hf_freeze.tensor_parts import bytes_of
from hf_freeze.training.backends import is_sharded
from hf_freeze.training.row_parameters import Run, runs


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One part: the parameters in it, how many of them train, their dtypes and their size in bytes."""

    part: str
    parameters: int
    trainable: int
    dtype: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TrainableSummary:
    """Parameters per part and per layer. `str()` is a table with a total, and the remarks below it.

    Attributes:
        rows: One `SummaryRow` per part: its parameters, how many of them train, their dtypes and bytes.
        remarks: Sentences about matrices of which some rows train, and about freezing that has no effect, such as
            `requires_grad` set on a module.
    """

    rows: Sequence[SummaryRow]
    remarks: Sequence[str] = ()

    @property
    def parameters(self) -> int:
        """Parameters in the model, tied ones counted once."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """Parameters that train."""
        return sum(row.trainable for row in self.rows)

    @property
    def bytes(self) -> int:
        """Size of all parameters in bytes."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        total = SummaryRow(
            part="total", parameters=self.parameters, trainable=self.trainable, dtype="", bytes=self.bytes
        )
        cells = [
            (row.part, f"{row.parameters:,}", f"{row.trainable:,}", row.dtype, f"{row.bytes / 2**20:,.1f}")
            for row in (*self.rows, total)
        ]
        table = as_table([("part", "parameters", "trainable", "dtype", "MiB"), *cells])
        return "\n".join([table, *self.remarks])


def trainable_summary(model: nn.Module) -> TrainableSummary:
    """Count parameters and trainable parameters per top-level part and per layer.

    Frozen with `module.requires_grad = False`, a model shows here that nothing was frozen, and a remark says why.

    Args:
        model: Any module, wrapped (DDP, DataParallel, torch.compile) or not.

    Returns:
        Rows with counts of elements and bytes; `str()` of it is a table.

    Raises:
        FreezeError: For anything but a module, and for parameters without a shape yet.
    """
    model = unwrap(model)
    model_map = map_model(model)
    by_name = dict(model.named_parameters())
    grouped: dict[str, list[torch.Tensor]] = {}
    for name, label in part_labels(model_map).items():
        grouped.setdefault(label, []).append(by_name[name])
    return TrainableSummary(
        rows=[_row(label, tensors) for label, tensors in grouped.items()], remarks=tuple(_remarks(model))
    )


def _row(part: str, tensors: list[torch.Tensor]) -> SummaryRow:
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
    return SummaryRow(
        part=part,
        parameters=sum(map(_numel, tensors)),
        trainable=sum(map(_trainable, tensors)),
        dtype=", ".join(dtypes),
        bytes=sum(map(_bytes, tensors)),
    )


def _numel(tensor: torch.Tensor) -> int:
    sharded: int | None = getattr(tensor, "ds_numel", None)  # DeepSpeed ZeRO-3 leaves an empty tensor in place
    return tensor.numel() if sharded is None else sharded


def _bytes(tensor: torch.Tensor) -> int:
    """Count all of a tensor, also where this process holds a piece of it."""
    return _numel(tensor) * tensor.element_size() if is_sharded(tensor) else bytes_of(tensor)


def _trainable(tensor: torch.Tensor) -> int:
    # In shards, rows are not told apart.
    return trainable_size(tensor) if trained_rows(tensor) is not None else _numel(tensor) * tensor.requires_grad


def _remarks(model: nn.Module) -> list[str]:
    mistaken = [path for path, module in model.named_modules() if "requires_grad" in module.__dict__]
    rows = {name: trained_rows(parameter) for name, parameter in model.named_parameters()}
    partly = {name: runs(found) for name, found in rows.items() if found is not None and not found.all()}
    told = [f"{name}: of its rows, {_listed(found)} train." for name, found in partly.items() if found]
    return told + [
        f"{path or 'model'}.requires_grad = ... was set on a module: that is an attribute which torch never reads, and "
        f"freezes nothing. Use hf_freeze.freeze(model, {path or 'all'!r}) or {path or 'model'}.requires_grad_(False)."
        for path in mistaken
    ]


def _listed(found: list[Run]) -> str:
    more = f" and {len(found) - 5} other runs" if len(found) > 5 else ""
    return ", ".join(f"[{start}:{stop}]" for start, stop in found[:5]) + more
