"""The order of the rows within an epoch, which a run that is resumed in the middle of one must draw again.

A sampler such as that of `group_by_length` draws the order when its epoch begins, mostly from torch's global generator.
The Trainer puts the random numbers of a checkpoint back only after it has skipped the rows that were trained on, and so
would skip, and go on with, those of another order.
"""

import base64
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import SequentialSampler
from transformers import TrainerState, TrainingArguments

from hf_freeze.main_process import MainProcessLogger

logger = MainProcessLogger(__name__)


class EpochOrder:
    """Keeps what the order of an epoch is drawn from, for the checkpoints of a run.

    Args:
        batches: The loader of the training set.
        steps_per_epoch: Optimizer steps per epoch; None where the data has no length.
        saved: What `state` returned of the run that goes on; None at the start of one.
    """

    def __init__(self, batches: object = None, *, steps_per_epoch: int | None = None, saved: str | None = None) -> None:
        self._generator = None if steps_per_epoch is None else _generator_of(batches)
        self._steps_per_epoch = steps_per_epoch or 1
        self._saved = saved
        self._at_epoch_begin: torch.Tensor | None = None
        self._steps = 0

    def epoch_begins(self) -> None:
        """Note what the order is about to be drawn from; in a run that was resumed, put it back first."""
        if self._generator is None:
            return
        if self._saved is not None:
            self._generator.set_state(_from_text(self._saved))
            self._saved = None
        self._at_epoch_begin = self._generator.get_state()

    def step_begins(self, step: int) -> None:
        """Note that the step after `step` steps is under way."""
        self._steps = step + 1

    def state(self) -> str | None:
        """Return what a run that goes on from here draws the order of its first epoch from; None if from a seed."""
        if self._generator is None or self._at_epoch_begin is None:
            return None
        ends_epoch = self._steps % self._steps_per_epoch == 0
        return _as_text(self._generator.get_state() if ends_epoch else self._at_epoch_begin)


def resumed_order(
    args: TrainingArguments, state: TrainerState, batches: object, saved: Mapping[str, Any], steps_per_epoch: int | None
) -> EpochOrder:
    """Go on with what an interrupted run `saved`; warn where its place in the data cannot be found again."""
    if steps_per_epoch is None and state.epoch and state.epoch >= 1:
        logger.warning(
            "The interrupted run had begun its data set, which has no length, anew (epoch %.4g), and the Trainer "
            "cannot find its place there: from here on the rows, and so the weights, differ from those of a run "
            "without an interruption. Give the data set a length, or let it not end.",
            state.epoch,
        )
    _draw_no_seed_again(batches, args.seed)
    # The Trainer skips nothing, and draws on from the random numbers of this run.
    order = None if args.ignore_data_skip else saved.get("epoch_order")
    return EpochOrder(batches, steps_per_epoch=steps_per_epoch, saved=order)


def is_generator_state(value: object) -> bool:
    """Tell whether `value` is what `EpochOrder.state` returns."""
    if value is None:
        return True
    try:
        torch.Generator().set_state(_from_text(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _draw_no_seed_again(batches: Any, seed: int) -> None:
    """Give workers that persist a seed that moves no random numbers: the interrupted run drew one when it began."""
    while (inner := getattr(batches, "base_dataloader", None)) is not None:
        batches = inner
    if getattr(batches, "persistent_workers", False):
        batches.generator = torch.Generator().manual_seed(seed)


def _generator_of(batches: Any) -> torch.Generator | None:
    """Return what the order of rows is drawn from; None for one that never changes, or that the seed gives."""
    while (inner := getattr(batches, "batch_sampler", None)) is not None:
        batches = inner
    sampler = getattr(batches, "sampler", None)
    if sampler is None or isinstance(sampler, SeedableRandomSampler | SequentialSampler):
        return None
    own = getattr(sampler, "generator", None)
    return own if isinstance(own, torch.Generator) else torch.default_generator


def _as_text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _from_text(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.uint8)
