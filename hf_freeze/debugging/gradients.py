"""One backward pass: which parameters get a gradient, which do not, and which of these should."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import nn

from hf_freeze.debugging.passes import all_finite, uses_fsdp2
from hf_freeze.debugging.sample_check import Check, CheckName, failed, ok, warning

GradientStatus: TypeAlias = Literal["ok", "zero", "missing", "not finite", "frozen", "unused"]
_MOST_PARTS = 4


def gradient_statuses(loss: torch.Tensor, model: nn.Module) -> dict[str, GradientStatus]:
    """Differentiate `loss` and return the status of each parameter's gradient; `.grad` is left alone."""
    statuses: dict[str, GradientStatus] = {name: "frozen" for name, _ in model.named_parameters()}
    training = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not training:
        return statuses
    found: Sequence[torch.Tensor | None] = [None] * len(training)
    if loss.requires_grad:
        found = _differentiated(loss, model, training)
    for name, gradient in zip(training, found, strict=True):
        statuses[name] = _status(gradient)
    return statuses


def _differentiated(
    loss: torch.Tensor, model: nn.Module, training: Mapping[str, nn.Parameter]
) -> Sequence[torch.Tensor | None]:
    if not uses_fsdp2(model):
        try:
            # Unlike backward(), this fires no hook that reduces gradients or steps an optimizer.
            return torch.autograd.grad(loss, list(training.values()), allow_unused=True, retain_graph=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
    loss.backward()  # type: ignore[no-untyped-call]
    own = dict(model.named_parameters())  # FSDP2 has other parameters in place before than after
    return [own[name].grad for name in training]


def _status(gradient: torch.Tensor | None) -> GradientStatus:
    if gradient is None:
        return "missing"
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    values = local.coalesce().values() if local.is_sparse else local
    if not all_finite(values):
        return "not finite"
    return "ok" if bool(values.sum() != 0) or bool(values.any()) else "zero"


def tell_unused(
    statuses: dict[str, GradientStatus], model: nn.Module, moves: Callable[[], bool], *, passes: int = _MOST_PARTS
) -> dict[str, GradientStatus]:
    """Tell parameters that this row does not use ("unused") from those that it uses but that get no gradient
    ("missing").

    Those without a gradient are moved a little, all together and then part by part; `moves` says whether the output
    follows; part by part only if `passes` are left for that. Their values are swapped,
    not overwritten: what comes back is the very tensor that was there.
    """
    missing = [name for name, status in statuses.items() if status == "missing"]
    if not missing:
        return statuses
    own = dict(model.named_parameters())
    if uses_fsdp2(model) or any(hasattr(own[name], "ds_tensor") for name in missing):
        return statuses
    guilty: set[str] = set()
    with _moved([own[name] for name in missing]):
        influential = moves()
    if influential:
        parts = _parts(missing)
        parts = parts if len(parts) <= passes else {"": missing}
        for names in parts.values():
            with _moved([own[name] for name in names]):
                guilty |= set(names) if len(parts) == 1 or moves() else set()
        guilty = guilty or set(missing)
    return {name: "unused" if name in missing and name not in guilty else status for name, status in statuses.items()}


def _parts(names: Sequence[str]) -> dict[str, list[str]]:
    """Divide names by the module that they are in, at a depth that gives a few parts."""
    best: dict[str, list[str]] = {"": list(names)}
    for depth in range(1, 12):
        parts: dict[str, list[str]] = {}
        for name in names:
            parts.setdefault(".".join(name.split(".")[:depth]), []).append(name)
        if len(parts) > _MOST_PARTS:
            break
        best = parts
    return best


@contextmanager
def _moved(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    generator = torch.Generator().manual_seed(1)
    before = [parameter.data for parameter in parameters]
    try:
        for parameter, data in zip(parameters, before, strict=True):
            size = 0.1 * (float(data.float().abs().mean()) + 0.01)
            random = torch.randn(data.shape, generator=generator).to(data.device, data.dtype)
            parameter.data = data + size * random
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


def check_gradients(statuses: Mapping[str, GradientStatus], model: nn.Module) -> Check:
    """Judge the gradients, and explain those that are rightly zero or missing."""
    name: CheckName = "gradients"
    counts = Counter(statuses.values())
    training = len(statuses) - counts["frozen"]
    if not training:
        return warning(name, "No parameter requires a gradient: nothing trains.")
    if bad := _named(statuses, "not finite"):
        return failed(
            name,
            f"The gradient of {bad} is NaN or infinite. Look for a root or log of 0, or overflow in half precision.",
        )
    if missing := _named(statuses, "missing"):
        cut = (
            "The loss has no graph"
            if counts["missing"] == training
            else "The output depends on it, but its gradient is cut off"
        )
        return failed(
            name,
            f"No gradient reaches {missing}. {cut}: look for detach(), no_grad(), .data, .item() or argmax on the way.",
        )
    if counts["zero"] and counts["zero"] + counts["unused"] == training:
        return warning(name, "Every gradient is zero. Is the loss saturated, or is the head's weight zero?")
    return ok(name, f"{counts['ok']} of {training} trainable parameters get a gradient.{_explained(statuses, model)}")


def _named(statuses: Mapping[str, GradientStatus], status: GradientStatus) -> str:
    found = [name for name, one in statuses.items() if one == status]
    return (f"{found[0]} and {len(found) - 1} more" if len(found) > 1 else found[0]) if found else ""


def _explained(statuses: Mapping[str, GradientStatus], model: nn.Module) -> str:
    zero = [name for name, status in statuses.items() if status == "zero"]
    adapters = [name for name in zero if "lora_" in name]
    said = ""
    if adapters:
        said += f" {len(adapters)} of LoRA are zero, as its other factor is still zero: expected before the first step."
    if others := len(zero) - len(adapters):
        said += f" {others} are zero for this row, such as {next(n for n in zero if n not in adapters)}."
    if unused := _named(statuses, "unused"):
        said += f" Without influence on this row: {unused}."
    return said


def by_part(statuses: Mapping[str, GradientStatus]) -> dict[str, Counter[str]]:
    """Count statuses per part of the model: one line each in the report."""
    names = [name.removeprefix("base_model.model.") for name in statuses]
    first = {name.split(".")[0] for name in names}
    depth = 2 if len(first) <= 2 else 1
    parts: dict[str, Counter[str]] = {}
    for name, status in zip(names, statuses.values(), strict=True):
        pieces = name.split(".")[:-1] or [name]
        at = 1 if sum(other.startswith(pieces[0] + ".") for other in names) <= 2 else depth
        parts.setdefault(".".join(pieces[:at]), Counter())[status] += 1
    return parts
