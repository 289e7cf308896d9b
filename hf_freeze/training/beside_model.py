"""The weights that train beside the model, such as the classifier of a loss.

The optimizer holds them, but no Trainer saves them: a resumed run would go on with fresh ones and the old moments. Nor
does DistributedDataParallel, which wraps the model, know them: each process would train its own. And the Trainer clears
the gradients of the model alone: theirs would add up over the run, and be lost when it is resumed.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from hf_freeze.errors import FreezeError
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.checkpoint import read_checked, write_checked
from hf_freeze.training.row_parameters import whole_of

BESIDE_NAME = "beside_model.safetensors"


def share_beside(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[torch.Tensor]:
    """Copy what the optimizer holds beside the model from the main process to all others, and return it."""
    beside = [*_beside(optimizer, model).values()]
    for parameter in beside if dist.is_initialized() else []:
        dist.broadcast(parameter.data, src=0)
    return beside


def clear_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Forget the gradients of the step before."""
    for parameter in parameters:
        parameter.grad = None


def average_gradients(parameters: Sequence[torch.Tensor]) -> None:
    """Replace gradients by their mean over all processes, as DistributedDataParallel does for the model's."""
    if not parameters or not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters]
    # Each of several losses may have its turn on another process; an embedding with sparse=True has sparse ones.
    kinds = [[one is not None, one is not None and one.is_sparse] for one in gradients]
    shared = torch.tensor(kinds, device=parameters[0].device).int()
    dist.all_reduce(shared)
    for parameter, gradient, (count, sparse) in zip(parameters, gradients, shared.tolist(), strict=True):
        if count:
            # Dense for the sum: each process has other rows.
            total = torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
            dist.all_reduce(total)
            total /= dist.get_world_size()
            parameter.grad = total.to_sparse(1) if sparse else total


def save_beside(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Write what the optimizer holds beside the model, whole or not at all."""
    tensors = _beside(optimizer, model)
    if not tensors:
        return
    write_checked(tensors, folder / BESIDE_NAME)


def load_beside(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Put the saved weights back; raise `FreezeError` where the file is missing, unreadable or of other weights."""
    own, path = _beside(optimizer, model), folder / BESIDE_NAME
    if not own:
        return
    if not path.exists():
        raise FreezeError(
            f"{str(path)!r} is missing: {len(own)} tensors train beside the model (those of a loss, say), and only "
            "FreezeCallback and FreezeTrainer save them. Resume from a checkpoint that one of them wrote."
        )
    saved = read_checked(path)
    before, now = ([tuple(tensor.shape) for tensor in tensors.values()] for tensors in (saved, own))
    if before != now:
        raise FreezeError(
            f"{str(path)!r} holds tensors of shapes {before}, but what this run trains beside the model has {now}. "
            "Resume with the loss that the run was begun with."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _beside(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what the optimizer holds beside the model, by position: the optimizer knows no names of a loss."""
    of_model = {id(parameter) for parameter in unwrap(model).parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    others = [parameter for parameter in held if id(whole_of(parameter)) not in of_model]
    return {f"{place:04}": parameter for place, parameter in enumerate(others)}
