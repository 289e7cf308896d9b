"""The classes of rows as numbers, whether their labels are numbers, bools or texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_freeze.errors import FreezeError, UnsupportedSetupError
from hf_freeze.label_columns import LABEL_COLUMNS


def label_column(row: Mapping[str, Any], names: Sequence[str] = LABEL_COLUMNS) -> str:
    """Return the column that holds the label. Raises `FreezeError` where there is none."""
    named = [name for name in names if name in row]
    filled = [name for name in named if row[name] is not None]
    if filled:
        return filled[0]
    if named:
        raise FreezeError(f"A row has {named[0]}=None. Leave rows without a label out.")
    raise FreezeError(f"A row holds {sorted(map(str, row))}, and no labels to learn: name the column 'label'.")


def class_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of these label columns that may hold a class; the position where an answer begins is not one."""
    return tuple(name for name in names if name not in ("start_positions", "end_positions"))


class Classes:
    """Gives each label its number. Texts are numbered as they come."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._met_a_number = False

    def number(self, label: Any) -> int:
        """Return the number of a label. Raises `UnsupportedSetupError` for anything but a class."""
        label = _single(label)
        if isinstance(label, str):
            number = self._texts.setdefault(label, len(self._texts))
        elif _is_class(label):
            self._met_a_number = True
            number = int(label)
        else:
            raise UnsupportedSetupError(
                f"The label {label!r:.80}: a probe at every depth needs one class per row, that is 0, 1, 2, ..., a "
                f"bool or a text. {_advice(label)}"
            )
        if self._texts and self._met_a_number:
            raise UnsupportedSetupError(
                f"The label {label!r:.80}: some labels are texts, and some numbers. Use one or the other."
            )
        return number

    def named(self, numbers: Sequence[int]) -> "Labels":
        """Return these rows' classes in the order of their names: 0 to k - 1."""
        texts = {number: text for text, number in self._texts.items()}
        found = sorted(set(numbers), key=lambda number: (texts.get(number, ""), number))
        place = {number: index for index, number in enumerate(found)}
        ids = np.array([place[number] for number in numbers], dtype=np.int64)
        return Labels(ids, tuple(str(texts.get(number, number)) for number in found))


class Labels:
    """The class of each row, `ids` (row,) from 0 to k - 1, and the `names` of the classes: as the labels had them."""

    def __init__(self, ids: NDArray[np.int64], names: tuple[str, ...]) -> None:
        self.ids = ids
        self.names = names

    def refuse_rare(self, folds: int) -> None:
        """Raise `FreezeError` for less than two classes, or fewer than `folds` rows of one."""
        counts = np.bincount(self.ids, minlength=len(self.names))
        if len(counts) < 2 or counts.min() < folds:
            found = ", ".join(f"{count} of class {name}" for name, count in zip(self.names, counts, strict=True))
            raise FreezeError(
                f"A probe in {folds} folds needs two classes, and {folds} rows of each; found {found:.200}. Give more "
                "rows (max_rows=), or fewer folds (folds=)."
            )


def _single(label: Any) -> Any:
    """Unpack what holds a single value."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic):
        return label.item() if getattr(label, "size", None) == 1 or _count(label) == 1 else label.tolist()
    if isinstance(label, list | tuple) and len(label) == 1:
        return _single(label[0])
    return label


def _count(label: Any) -> int:
    return int(label.numel()) if isinstance(label, torch.Tensor) else int(np.size(label))


def _is_class(label: Any) -> bool:
    return isinstance(label, int | float) and label >= 0 and label == label // 1


def _advice(label: Any) -> str:
    if isinstance(label, list | tuple | dict):
        return "Several labels in a row, of its tokens or of many classes at once, are not probed."
    if isinstance(label, int | float) and label < 0 and label == label // 1:
        return "Leave rows with such a label out: -100 and -1 stand for none."
    return "For a regression, give classes: the quarter of the range that the value lies in, say."
