"""Load what trained into the base that it belongs to, all of it or nothing, after a check of both."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from hf_freeze.errors import FreezeError
from hf_freeze.training.base_model import saved_tensors, set_base
from hf_freeze.training.digests import typed_digests
from hf_freeze.training.saved_rows import as_held
from hf_freeze.training.trained_file import Trained, read_trained


def load_trained(model: nn.Module, folder: str | os.PathLike[str]) -> list[str]:
    """Load a folder that holds only what trained into its base.

    Args:
        model: The model that training began with, loaded as it was then: same class, same `dtype`, on any device. What
            trained may have any values, so a new head is fine.
        folder: What a Trainer with `save_trained_only=True` saved.

    Returns:
        The names of the tensors that were loaded.

    Raises:
        FreezeError: Where the file is damaged or belongs to another model; it names the first tensor that differs. The
            model is then as it was.
    """
    trained = read_trained(folder)
    copy_into(model, trained, base_values_to_restore(model, trained, folder, base_values={}))
    return list(trained.tensors)


def base_values_to_restore(
    model: nn.Module, trained: Trained, folder: str | os.PathLike[str], *, base_values: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Check the model against what was read; return, out of `base_values`, those that it must have again.

    Raises `FreezeError` where the model is not the base in everything else.
    """
    own = as_held(saved_tensors(model), [*trained.tensors, *trained.base.digests], folder)
    if empty := next((name for name, tensor in own.items() if tensor.is_meta), None):
        raise FreezeError(f"{empty!r} has no values: the model is on the meta device. Load the base with its weights.")
    _refuse_other_names(trained, own, folder)
    base = trained.base.digests
    now = typed_digests({name: tensor for name, tensor in own.items() if name not in trained.tensors})
    differing = [name for name, digest in now.items() if digest != base[name]]
    values = {name: base_values[name] for name in differing if name in base_values}
    kept = typed_digests(values)
    if lost := [name for name in differing if kept.get(name) != base[name]]:
        raise FreezeError(_another_base(lost, trained, own[lost[0]].dtype, folder))
    return values


def copy_into(model: nn.Module, trained: Trained, base_values: Mapping[str, torch.Tensor]) -> None:
    """Copy what was read, and what `base_values_to_restore` returned for this model, into it."""
    own = as_held(saved_tensors(model), [*trained.tensors, *trained.base.digests], "the folder")
    with torch.no_grad():
        for name, tensor in {**trained.tensors, **base_values}.items():
            if own[name].dtype == tensor.dtype:
                own[name].copy_(tensor)
            else:
                own[name].data = tensor.to(own[name].device)
    set_base(model, trained.base)


def _refuse_other_names(trained: Trained, own: Mapping[str, torch.Tensor], folder: str | os.PathLike[str]) -> None:
    expected = f"Load the base of {trained.base.model_class.rpartition('.')[2]} as it was when training began."
    held = trained.tensors
    for name in [*held, *(name for name in trained.base.digests if name not in held)]:
        if name not in own:
            raise FreezeError(f"{str(folder)!r} belongs to a model with {name!r}, which this one lacks. {expected}")
        if name in held and own[name].shape != held[name].shape:
            raise FreezeError(
                f"{str(folder)!r} holds {name!r} of shape {tuple(held[name].shape)}, and this model has it as "
                f"{tuple(own[name].shape)}. {expected}"
            )
    if unknown := next((name for name in own if name not in held and name not in trained.base.digests), None):
        raise FreezeError(f"{str(folder)!r} belongs to a model without {unknown!r}, which this one has. {expected}")


def _another_base(
    differing: Sequence[str], trained: Trained, dtype: torch.dtype, folder: str | os.PathLike[str]
) -> str:
    base, now = trained.base, str(dtype).removeprefix("torch.")
    more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    other = f" It was {base.dtype} and is {now}: load the base with dtype={base.dtype!r}." if now != base.dtype else ""
    source = repr(base.name) if base.name else "a model without a name"
    return (
        f"{str(Path(folder))!r} belongs to {source} as it was when training began, and {differing[0]!r}{more} of this "
        f"model differs.{other} Was the base updated, replaced or trained since? Load the version that it was then."
    )
