"""How a plan is carried out, whatever the plan."""

from dataclasses import dataclass

from hf_freeze.errors import PlanError
from hf_freeze.training.schedule import warmup_steps


@dataclass(frozen=True, kw_only=True)
class FreezeSettings:
    """How a plan is carried out.

    Args:
        frozen_eval: Keep frozen modules in eval mode while training.
        verify: Prove at each transition, each save and the end that frozen weights did not change, trainable ones did
            and replicas are equal, and raise `FreezeViolation` otherwise.
        unfreeze_warmup: Ramp up the learning rate of what is unfrozen over a number of steps (1 or more) or a fraction
            of the run (below 1).
        log_grad_norms: Log `grad_norm/<group>` beside `grad_norm`, the norm of the gradient before clipping.

    Raises:
        PlanError: For a setting of another type, or a ramp that is neither steps nor a fraction.
    """

    frozen_eval: bool = True
    verify: bool = True
    unfreeze_warmup: float = 0.0
    log_grad_norms: bool = False

    def __post_init__(self) -> None:
        for name in ("frozen_eval", "verify", "log_grad_norms"):
            if not isinstance(getattr(self, name), bool):
                raise PlanError(f"{name}={getattr(self, name)!r}: give True or False.")
        warmup_steps(self.unfreeze_warmup, max_steps=1)
