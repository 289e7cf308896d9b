"""The training loss since it was last logged, which a resumed run must go on with.

The Trainer adds up what `training_step` returns, and begins anew whenever it logs. It keeps the sum in a local variable
or in a private attribute, depending on its version; so the same sum is kept here beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class LossWindowTrainerMixin(_Base):
    """Logs, after a resume, the mean loss that the uninterrupted run would have logged."""

    @cached_property
    def _losses_since_logged(self) -> "LossWindow":
        return LossWindow()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the Trainer does; the loss of a resumed run goes on where it was."""
        loss = super().training_step(*args, **kwargs)
        return self._losses_since_logged.add(
            loss,
            logged=self._globalstep_last_logged,
            step=self.state.global_step,
            skips_nan=self.args.logging_nan_inf_filter,
        )

    def _loss_window(self) -> dict[str, Any]:
        """The training loss since it was last logged, per process: what a resumed run must add to."""
        window = self._losses_since_logged
        total = window.total if window.logged == self._globalstep_last_logged else 0.0
        losses = torch.as_tensor(total, device=self.args.device).detach().reshape(1).float()
        gathered = self.accelerator.gather(losses) if self.accelerator.num_processes > 1 else losses
        return {"step": self.state.global_step, "logged": self._globalstep_last_logged, "losses": gathered.tolist()}

    def _begin_loss_window(self, saved: Mapping[str, Any]) -> None:
        """Begin at nought, or with what an interrupted run saved; comes right after the Trainer begins its own."""
        self._losses_since_logged.begin(self._globalstep_last_logged)
        if not saved or saved["step"] != self.state.global_step:
            return
        losses: list[float] = saved["losses"]
        mean = sum(losses) / len(losses)
        same_processes = len(losses) == self.accelerator.num_processes
        own = losses[self.accelerator.process_index] if same_processes else mean
        self._globalstep_last_logged = saved["logged"]
        self._losses_since_logged.begin(saved["logged"], own)
        self._total_loss_scalar -= mean  # the mean loss of this call counts its own steps only


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
