"""The training loss since it was last logged, which a resumed run must go on with.

The Trainer adds up what `training_step` returns, and begins anew whenever it logs. It keeps the sum in a local variable
or in a private attribute, depending on its version; so the same sum is kept here beside it.
"""

import math
from collections.abc import Mapping, Sequence
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
    """Logs after a resume the mean loss that the uninterrupted run would have logged.

    So for other losses that are noted in a step (`_note_loss`), which are logged beside it in the same way.
    """

    @cached_property
    def _losses_since_logged(self) -> "_LossWindow":
        return _LossWindow()

    @cached_property
    def _others_since_logged(self) -> "dict[str, _LossWindow]":
        return {}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Step as the Trainer does; the loss of a resumed run goes on where it was."""
        return self._add(self._losses_since_logged, super().training_step(*args, **kwargs))

    def _note_loss(self, name: str, loss: torch.Tensor) -> None:
        """Take in another loss of this micro-batch, to be logged as `name` in the way of the training loss."""
        self._add(self._others_since_logged.setdefault(name, _LossWindow()), loss)

    def _add(self, window: "_LossWindow", loss: torch.Tensor) -> torch.Tensor:
        return window.add(
            loss,
            logged=self._globalstep_last_logged,
            step=self.state.global_step,
            skips_nan=self.args.logging_nan_inf_filter,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with what was noted beside the training loss."""
        if "loss" in logs:
            for name, window in self._others_since_logged.items():
                steps = self.state.global_step - window.logged
                if name not in logs and steps > 0:
                    losses = self._of_each_process(window.total)
                    logs[name] = sum(losses) / len(losses) / steps
        super().log(logs, *args, **kwargs)

    def _loss_window(self) -> dict[str, Any]:
        """Return the training loss since it was last logged, per process: what a resumed run must add to."""
        logged = self._globalstep_last_logged
        losses = {
            name: self._of_each_process(window.total if window.logged == logged else 0.0)
            for name, window in {"losses": self._losses_since_logged, **self._others_since_logged}.items()
        }
        return {"step": self.state.global_step, "logged": logged, "losses": losses.pop("losses"), "others": losses}

    def _of_each_process(self, total: torch.Tensor | float) -> list[float]:
        own = torch.as_tensor(total, device=self.args.device).detach().reshape(1).float()
        gathered: torch.Tensor = self.accelerator.gather(own) if self.accelerator.num_processes > 1 else own
        losses: list[float] = gathered.tolist()
        return losses

    def _begin_loss_window(self, saved: Mapping[str, Any]) -> None:
        """Begin at 0, or with what an interrupted run saved; called right after the Trainer begins its own."""
        self._losses_since_logged.begin(self._globalstep_last_logged)
        self._others_since_logged.clear()
        if not saved or saved["step"] != self.state.global_step:
            return
        logged: int = saved["logged"]
        self._globalstep_last_logged = logged
        self._losses_since_logged.begin(logged, self._own_of(saved["losses"]))
        for name, losses in saved.get("others", {}).items():
            self._others_since_logged[name] = _LossWindow()
            self._others_since_logged[name].begin(logged, self._own_of(losses))
        # The mean loss of this call counts its own steps only.
        self._total_loss_scalar -= sum(saved["losses"]) / len(saved["losses"])

    def _own_of(self, losses: Sequence[float]) -> float:
        """Return the loss of this process among those of all; their mean where the number of processes changed."""
        own = self.accelerator.process_index if len(losses) == self.accelerator.num_processes else None
        return sum(losses) / len(losses) if own is None else losses[own]


@dataclass
class _LossWindow:
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
        if skips_nan and not math.isfinite(loss):
            mean = 1 + step - logged
            self.total, self.carried = self.total + self.total / mean, self.carried + self.carried / mean
            return loss
        wide = loss.to(torch.promote_types(loss.dtype, torch.float32))  # as the Trainer's own sum
        self.total = self.total + wide
        carried, self.carried = self.carried, 0.0
        return wide + carried if carried else loss

    def begin(self, logged: int, total: float = 0.0) -> None:
        """Begin again at step `logged`, with the `total` of a run that was interrupted, if there is one."""
        self.logged, self.total, self.carried = logged, total, total
