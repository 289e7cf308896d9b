"""One finished run of a comparison, and the file in which it is kept under a key."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_freeze.whole_files import write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The validation rows after `step` steps; accuracy and recall at the threshold tuned there, F1 as on fresh rows."""

    step: int
    loss: float
    average_precision: float
    f1: float
    accuracy: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One plan, trained with one seed.

    `trainable` counts what trained in a stage that began. `training_losses` are means over equal stretches of the run,
    NaN where it diverged. `interval` is the 95 % interval of F1 on fresh rows at the end, None where the last
    evaluation could tune no threshold; `remark` then says why. `at_half` has accuracy and recall at probability 0.5,
    `tested` the metrics of the test set at the tuned threshold. `seconds` are those of training: features computed once
    are among them, evaluations are not. `stored_features` says whether every training step went over features computed
    once. `highest_rate` is the peak learning rate of the fastest group.
    """

    name: str
    seed: int
    parameters: int
    trainable: int
    training_losses: Sequence[float]
    evaluations: Sequence[Evaluation]
    interval: tuple[float, float] | None
    at_half: Mapping[str, float]
    n_pos: int
    seconds: float
    peak_bytes: int
    device: str = "cpu"
    tested: Mapping[str, float] | None = None
    stored_features: bool = False
    remark: str = ""
    highest_rate: float | None = None

    @property
    def last(self) -> Evaluation:
        """The evaluation at the end."""
        return self.evaluations[-1]

    def training_loss(self, quarter: int = 4) -> float:
        """Return the mean training loss over a quarter of the run, the last one without a number."""
        return fmean(self._quarter(quarter))

    @property
    def training_loss_error(self) -> float:
        """Standard error of the training loss over the last quarter; infinite where it is unknown."""
        losses = self._quarter(4)
        is_known = len(losses) > 1 and all(map(math.isfinite, losses))
        return _deviation(losses) / len(losses) ** 0.5 if is_known else math.inf

    def _quarter(self, number: int) -> list[float]:
        losses = list(self.training_losses)
        size = max(len(losses) // 4, 1)
        end = len(losses) - (4 - number) * size
        return losses[max(end - size, 0) : max(end, 1)] or [float("nan")]


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation; NaN where a value is not finite, as after a run that diverged."""
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def digest(settings: Any) -> str:
    """Digest JSON-able values: if any of them changes, it is another run."""
    text = json.dumps(settings, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def path_of(folder: Path, name: str, seed: int, key: str) -> Path:
    """Return where a run is kept."""
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}-seed{seed}-{key[:16]}.json"


def write_run(path: Path, run: Run, key: str) -> None:
    """Write a finished run, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"digest": key, **asdict(run)}, indent=1, default=_plain) + "\n")


def read_run(path: Path, key: str) -> Run | None:
    """Return the run that is kept there under this key; None where there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("digest") != key or values.keys() != {entry.name for entry in fields(Run)}:
            return None
        interval = values.pop("interval")
        evaluations = tuple(Evaluation(**evaluation) for evaluation in values.pop("evaluations"))
        values["training_losses"] = tuple(values["training_losses"])
        return Run(**values, evaluations=evaluations, interval=None if interval is None else tuple(interval))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("%s cannot be read (%s): the run is made again.", path, error)
        return None
