"""A plan bound to the one model that it was resolved for."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from torch import nn

from hf_freeze.errors import UnsupportedSetupError
from hf_freeze.plan.freeze_plan import FreezePlan, ResolvedPlan, resolve
from hf_freeze.selection.cuts import sizes_of
from hf_freeze.selection.language import Selection
from hf_freeze.selection.model_map import unwrap
from hf_freeze.training.backends import is_sharded
from hf_freeze.training.row_parameters import members


@dataclass(frozen=True, eq=False)
class BoundPlan:
    """What a plan means for a model, and that model, without its wrappers."""

    resolved: ResolvedPlan
    model: nn.Module
    rates: tuple[Selection, ...] = ()
    """The selections that have learning rates of their own."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Canonical name -> member, as it is now: FSDP, DeepSpeed and users replace some tensors."""
        named, cuts = dict(self.model.named_parameters()), self.resolved.model_map.cuts
        names = [[rows.name for rows in cuts[name]] if name in cuts else [name] for name in named]
        return members(named, chain.from_iterable(names)) if cuts else named

    @property
    def ever_trainable(self) -> dict[str, nn.Parameter]:
        """The members that train in some stage."""
        return {name: tensor for name, tensor in self.parameters.items() if name in self.resolved.ever_trainable}

    def refuse_resized(self) -> None:
        """Raise `UnsupportedSetupError` where a matrix has other rows now than when the plan was held against it.

        An optimizer that has moments of it reads beyond the end of memory, or torch speaks of shapes.
        """
        for name, tensor in self._resizable:
            before, now = self.resolved.model_map.shapes[name][0], tensor.shape[0]
            if now != before:
                raise UnsupportedSetupError(
                    f"{name!r} had {before} rows at the start, and has {now} now. Resize embeddings before the "
                    "Trainer, or the optimizer and the FreezeRun, are built."
                )

    @cached_property
    def _resizable(self) -> list[tuple[str, nn.Parameter]]:
        """The matrices outside of layers, which have a row for each token or class, but for those in shards."""
        model_map = self.resolved.model_map
        of_layers = frozenset(name for stack in model_map.stacks for layer in stack.layers for name in layer)
        known = model_map.shapes.keys() - of_layers  # a model may have got a module since
        outside = ((name, p) for name, p in self.model.named_parameters() if name in known)
        return [(name, p) for name, p in outside if p.ndim == 2 and p.is_floating_point() and not is_sharded(p)]

    def fits(self, plan: FreezePlan, model: nn.Module, *, rates: Iterable[Selection] = ()) -> bool:
        """Tell whether this is still that plan on that model, none of whose embeddings was resized since."""
        resolved = self.resolved
        same = resolved.plan == plan and self.model is unwrap(model) and self.rates == (*rates,)
        return same and resolved.sizes == sizes_of(model, resolved.model_map)


def bind(
    plan: FreezePlan, model: nn.Module, *, others_train: bool = False, rates: Iterable[Selection] = ()
) -> BoundPlan:
    """Resolve `plan` for `model`, and keep both together."""
    rates = (*rates,)
    return BoundPlan(resolve(plan, model, others_train=others_train, rates=rates), unwrap(model), rates)
