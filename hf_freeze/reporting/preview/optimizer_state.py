"""The memory of an optimizer, found by letting it make a step without values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainingArguments

from hf_freeze.reporting.preview.stand_in import stand_in
from hf_freeze.tensor_parts import parts_of
from hf_freeze.training.groups import GroupSpec, with_parameters
from hf_freeze.training.merged_groups import with_groups
from hf_freeze.training.row_parameters import members, whole_of

Pieces = Mapping[object, int]
"""What tells a piece of memory from others -> its bytes; of two parameters it may be the same one."""


@dataclass(frozen=True)
class HeldState:
    """What an optimizer holds of one parameter: from its construction on, and once the parameter has stepped."""

    built: Pieces
    stepped: Pieces


def held_state(specs: Sequence[GroupSpec], model: nn.Module, args: TrainingArguments) -> dict[str, HeldState]:
    """Return what `args.optim` keeps of each parameter of the groups, by name.

    The step is made on the meta device, or where an optimizer asks for values there, on fake tensors of the CPU. Raises
    `UnsupportedSetupError` for an optimizer that takes no groups, and whatever an optimizer raises that cannot step so.
    """
    try:
        return _after_a_step(specs, stand_in(model, "meta"), args)
    except (RuntimeError, NotImplementedError):
        with FakeTensorMode(), _EveryNumberIsOne():  # type: ignore[no-untyped-call]
            return _after_a_step(specs, stand_in(model, "cpu"), args)


class _EveryNumberIsOne(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers `tensor.item()` with 1: the size of an optimizer's state does not depend on what it computes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))


def _after_a_step(specs: Sequence[GroupSpec], model: nn.Module, args: TrainingArguments) -> dict[str, HeldState]:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    optimizer = _optimizer(specs, model, args)
    named = members(dict(model.named_parameters()), (name for spec in specs for name in spec.parameters))
    built = {name: _state_of(parameter, optimizer) for name, parameter in named.items()}
    for whole in map(whole_of, named.values()):  # rows have their matrix's gradient
        whole.grad = torch.empty_like(whole)
    optimizer.step()
    return {name: HeldState(built[name], _state_of(parameter, optimizer)) for name, parameter in named.items()}


def _optimizer(specs: Sequence[GroupSpec], model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    options = with_groups(cls, options, with_parameters(specs, model), model=model, own_rate=())
    # How it steps and where its state lies, neither of which can be had without values; the state is as large.
    options.pop("fused", None)
    if "is_paged" in options:
        options["is_paged"] = False
    optimizer: torch.optim.Optimizer = cls(options.pop("params"), **options)
    if options.get("optim_bits") == 8:
        _keep_embeddings_in_32_bits(optimizer, model)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def _keep_embeddings_in_32_bits(optimizer: Any, model: nn.Module) -> None:
    """Do what the Trainer does with optimizers of bitsandbytes, in a manager apart from the one that all share."""
    manager = object.__new__(type(optimizer.mng))
    manager.initialize()
    optimizer.mng = manager
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def _state_of(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> dict[object, int]:
    """Return what is held under the parameter, by the optimizer or, as GrokAdamW has it, by a group."""
    kept_in_groups = [value for group in optimizer.param_groups for value in group.values() if isinstance(value, dict)]
    return _pieces(held[parameter] for held in (optimizer.state, *kept_in_groups) if parameter in held)


def _pieces(values: Iterable[object]) -> dict[object, int]:
    found: dict[object, int] = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            for part in parts_of(value):
                storage = StorageWeakRef(part.untyped_storage())  # type: ignore[no-untyped-call]
                found[storage, part.storage_offset()] = part.numel() * part.element_size()
        elif isinstance(value, Mapping):
            found |= _pieces(value.values())
        else:
            found |= _pieces(getattr(value, "__dict__", {}).values())  # such as the projector of GaLore
    return found
