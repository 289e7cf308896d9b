"""The features of a set while they are in use, and what happens where a batch needs the frozen part itself."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import CallKey
from hf_freeze.features.replay import Replay
from hf_freeze.features.row_digests import Keys, keys_of, padded_in_front, read_as
from hf_freeze.features.store import Features

logger = logging.getLogger(__name__)

OFF = "No features are cached for %s: %s."
_LEAST_BATCHES = 8


@dataclass
class Kept:
    """Features of the set `name`; how many batches came, how many needed the frozen part, and which was the last.

    They are given up once most batches do.
    """

    name: str
    replay: Replay
    features: Features
    reads_labels: bool
    fixed_widths: bool
    padded_in_front: bool
    batches: int = 0
    missed: int = 0
    last_missed: int = 0
    is_given_up: bool = False
    _said: set[str] = field(default_factory=set)

    def replaying(self, digests: Keys, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Answer for the frozen prefix while these rows go through the model.

        A batch with a row that is not among those whose features are stored goes through the whole model.
        """
        keys = keys_of(read_as(digests, fixed_widths=self.fixed_widths), with_labels=self.reads_labels)
        self.batches += 1
        # Padding is not digested, and moves the positions of some models where it is in front.
        moved = 0 if self.padded_in_front else padded_in_front(digests)
        if not moved and (places := self.features.places(keys)) is not None:
            return self.replay.of(places, Batch(inputs), noticed=self._note_call)
        self._warn_once(
            "Rows of %s change from one reading to the next: %d of %d in this batch are not those that were "
            "cached. Such batches go through the whole model.",
            *(spoken(self.name), moved or self.features.absent(keys), len(keys)),
        )
        self._miss("rows that change were in")
        return nullcontext()

    def _note_call(self, key: CallKey) -> None:
        self._warn_once(
            "For some rows of %s the model reads other outputs of %s than those that were cached, or calls it in "
            "another way. For such batches it is computed.",
            *(spoken(self.name), key),
        )
        self._miss("more was read of the frozen part in")

    def _warn_once(self, message: str, *values: Any) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message, *values)

    def _miss(self, what: str) -> None:
        """Count the present batch as one that needs the frozen part."""
        if self.last_missed == self.batches:
            return
        self.last_missed, self.missed = self.batches, self.missed + 1
        if self.batches >= _LEAST_BATCHES and 2 * self.missed > self.batches:
            logger.warning(OFF, spoken(self.name), f"{what} {self.missed:,} of {self.batches:,} batches")
            self.is_given_up = True


def spoken(name: str) -> str:
    """Name a set in a message.

    >>> spoken("training"), spoken("evaluation easy")
    ('the training set', "the evaluation set 'easy'")
    """
    kind, _, rest = name.partition(" ")
    return f"the {kind} set" + (f" {rest!r}" if rest else "")
