"""Which of two classes is the positive one, by id or by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_freeze.binary.result import ThresholdResult, check_class_id, short
from hf_freeze.errors import FreezeError


@dataclass(frozen=True)
class PositiveLabel:
    """The positive class as the user named it, and the names of both classes as far as they are known."""

    positive: int | str = 1
    id2label: Mapping[int, str] | None = None

    def __post_init__(self) -> None:
        """Raise `FreezeError` for what cannot be one of two classes, as soon as that is known."""
        if not isinstance(self.positive, str):
            check_class_id(self.positive)
        if self.id2label is not None:
            if not isinstance(self.id2label, Mapping) or sorted(map(str, self.id2label)) != ["0", "1"]:
                raise FreezeError(f"id2label={short(self.id2label)} does not name two classes, 0 and 1.")
            names = list(self.id2label.values())
            if isinstance(self.positive, str) and self.positive not in names:
                raise FreezeError(f"positive={self.positive!r} is not among {names}.")
            if isinstance(self.positive, str) and names[0] == names[1]:
                raise FreezeError(f"positive={self.positive!r} is the name of both classes. Give its id, 0 or 1.")

    @property
    def id(self) -> int:
        """Id of the positive class. Raises `FreezeError` while only its name is known."""
        known = self.known_id
        if known is None:
            raise FreezeError(
                f"positive={self.positive!r} is a name, and the names of the classes are not known. Give id2label, "
                "or call prepare(model) on a model whose config has them."
            )
        return known

    @property
    def known_id(self) -> int | None:
        """Id of the positive class, or None while only its name is known."""
        if not isinstance(self.positive, str):
            return int(self.positive)
        return None if self.label2id is None else self.label2id[self.positive]

    def check(self, result: ThresholdResult) -> None:
        """Raise `FreezeError` when a threshold was tuned with the other class as the positive one."""
        if self.known_id not in (None, result.positive):
            raise FreezeError(
                f"The threshold was tuned with positive={result.positive!r}, but positive={self.positive!r} was given."
            )

    @property
    def label2id(self) -> dict[str, int] | None:
        """Ids by name, or None while the names are not known."""
        return None if self.id2label is None else {name: int(i) for i, name in self.id2label.items()}

    def with_names_from(self, config: Any) -> PositiveLabel:
        """Return this label with the names in a model's config; names that the user gave stay.

        Raises `FreezeError` when the config has more than two classes, or lacks the name.
        """
        n_labels = getattr(config, "num_labels", None)
        if n_labels is not None and n_labels > 2:
            raise FreezeError(
                f"The model has {n_labels} labels: a threshold is for binary heads, of one or two logits."
            )
        names = getattr(config, "id2label", None)
        if self.id2label is not None or not names or len(names) != 2:
            return self
        return replace(self, id2label={int(i): str(name) for i, name in names.items()})
