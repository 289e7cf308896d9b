"""The training loss since it was last logged, which a resumed run must go on with.

The Trainer adds up what `training_step` returns, and begins anew whenever it logs. It keeps the sum in a local variable
or in a private attribute, depending on its version; so the same sum is kept here beside it.
"""

from dataclasses import dataclass

import torch


@dataclass
class LossWindow:
    """The sum of the losses of this process since step `logged`; `carried` of it the Trainer does not have yet."""

    logged: int = 0
    total: torch.Tensor | float = 0.0
    carried: float = 0.0

    def add(self, loss: torch.Tensor, *, logged: int, step: int, skips_nan: bool) -> torch.Tensor:
        """Take in the loss of a micro-batch; return what the Trainer should add to its own sum.

        `step` is the Trainer's global step, `logged` the one at which it last logged. With `skips_nan`
        (`logging_nan_inf_filter`) a loss that is not finite counts as the mean of those before it.
        """
        if logged != self.logged:
            self.begin(logged)
        if skips_nan and not bool(loss.isfinite()):
            mean = 1 + step - logged
            self.total, self.carried = self.total + self.total / mean, self.carried + self.carried / mean
            return loss
        self.total = self.total + loss
        seen, self.carried = loss + self.carried, 0.0
        return seen

    def begin(self, logged: int, total: float = 0.0) -> None:
        """Begin anew at step `logged`, or go on with the `total` of a run that was interrupted."""
        self.logged, self.total, self.carried = logged, total, total
