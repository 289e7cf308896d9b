"""A plan bound to the one model that it was held against."""

from dataclasses import dataclass

from torch import nn

from hf_freeze.plan.freeze_plan import FreezePlan, ResolvedPlan, resolve, sizes_of
from hf_freeze.selection.model_map import unwrap


@dataclass(frozen=True, eq=False)
class BoundPlan:
    """What a plan means for a model, and that model, without its wrappers."""

    resolved: ResolvedPlan
    model: nn.Module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Canonical name -> tensor, as it is now: FSDP, DeepSpeed and users put others in the place of some."""
        return dict(self.model.named_parameters())

    @property
    def ever_trainable(self) -> dict[str, nn.Parameter]:
        """Those of the parameters that train in some stage."""
        return {name: tensor for name, tensor in self.parameters.items() if name in self.resolved.ever_trainable}

    def fits(self, plan: FreezePlan, model: nn.Module) -> bool:
        """Tell whether this is still that plan on that model, none of whose embeddings was resized since."""
        return self.resolved.plan == plan and self.model is unwrap(model) and self.resolved.sizes == sizes_of(model)


def bind(plan: FreezePlan, model: nn.Module, *, others_train: bool = False) -> BoundPlan:
    """Hold `plan` against `model`, as `FreezePlan.resolve` does.

    With `others_train`, something beside the model has parameters that train, so that all of the model may be frozen.
    """
    return BoundPlan(resolve(plan, model, others_train=others_train), unwrap(model))
