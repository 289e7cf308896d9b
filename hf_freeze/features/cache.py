"""The frozen features of a run: found, judged, computed, checked and replayed, stage by stage."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.features.batches import Batch
from hf_freeze.features.calls import Call, intercepted
from hf_freeze.features.check import check_replay, check_still, check_stored
from hf_freeze.features.cost import Estimate, in_bytes, saves_time
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.extraction import Work, extract
from hf_freeze.features.fingerprint import fingerprint, short
from hf_freeze.features.frontier import Frontier, find_frontier, without_checkpointing
from hf_freeze.features.ranks import Ranks
from hf_freeze.features.replay import Replay
from hf_freeze.features.sets import SHARED, FeatureSet
from hf_freeze.features.shapes import elements
from hf_freeze.features.store import FeatureStore
from hf_freeze.features.untouched import untouched

logger = logging.getLogger(__name__)

_TIMED_ROWS = 8
_BYTES_PER_SECOND = 2e9  # of reading stored features


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Where features are kept, in which form, and when."""

    folder: Path
    dtype: torch.dtype | None = None
    max_bytes: float = 20e9
    always: bool = False
    batch_size: int = 32
    show_progress: bool = False


@dataclass(frozen=True)
class Demand:
    """How often a set is passed over in a stage, and what is frozen in that stage."""

    passes: float
    stage: int
    as_in_stage: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class _Plan:
    frontier: Frontier
    store: FeatureStore
    demand: Demand
    estimate: Estimate
    missing: list[int] = field(default_factory=list)


class FeatureCache:
    """Keeps the features of the frozen prefix of one model."""

    def __init__(self, model: nn.Module, settings: CacheSettings) -> None:
        self._model = model
        self._settings = settings
        self._ranks = Ranks.now()
        self._replays: dict[str, Replay] = {}
        self._seen: dict[tuple[str, int], tuple[Frontier, float]] = {}

    def enter(self, sets: Sequence[tuple[FeatureSet, Sequence[Demand]]]) -> None:
        """Make the features ready that the first of each set's demands needs, and on the way those of the others.

        Where a set is refused, its rows go through the whole model, and the reason is logged.
        Raises `FreezeViolation` where what is stored is not what the model computes.
        """
        self.leave()
        for feature_set, demands in sets:
            try:
                self._replays |= self._prepared(feature_set, demands)
            except CacheRefused as refusal:
                self._say(logging.WARNING, "No features are kept of the %s rows: %s.", feature_set.name, refusal)

    def leave(self) -> None:
        """Stand in for nothing any more."""
        for replay in reversed(self._replays.values()):
            replay.remove()
        self._replays = {}

    def replaying(self, name: str, rows: torch.Tensor, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Answer for the frozen prefix while rows of the set `name` go through the model, where features are kept."""
        replay = self._replays.get(name)
        return nullcontext() if replay is None else replay.of(rows, Batch(inputs))

    @property
    def kept(self) -> list[str]:
        """The names of the sets whose features are in use."""
        return list(self._replays)

    def _prepared(self, feature_set: FeatureSet, demands: Sequence[Demand]) -> dict[str, Replay]:
        first, *later = demands
        plan: _Plan = self._ranks.together(lambda: self._planned(feature_set, first))
        plans = [plan, *filter(None, (self._planned_ahead(feature_set, demand) for demand in later))]
        estimates = [plan.estimate for plan in plans]
        worth_it = self._ranks.of_main(saves_time(estimates)) or self._settings.always
        verdict = "features are kept of" if worth_it else "not worth it to keep features of"
        for plan in plans:
            where = plan.demand.stage, feature_set.name, verdict, plan.frontier.describe(), plan.estimate
            self._say(logging.INFO, "Stage %d, %s rows: %s %s (%s).", *where)
        if not worth_it:
            return {}
        plans = plans[: self._ranks.of_main(self._ranks.together(lambda: self._number_that_fits(plans)))]
        self._compute(feature_set, plans)
        return {feature_set.name: self._ranks.together(lambda: self._checked(feature_set, plans[0]))}

    def _planned(self, feature_set: FeatureSet, demand: Demand) -> _Plan:
        with demand.as_in_stage(), _mode(self._model, training=feature_set.training):
            frontier, seconds = self._looked_at(feature_set, demand.stage)
            form = {"dtype": str(self._settings.dtype), "autocast": str(feature_set.computed_in)}
            parts = fingerprint(self._model, frontier, feature_set.source, form=form)
        description = {**parts, "stores": frontier.describe(), "rows": len(feature_set.source)}
        store = FeatureStore(self._settings.folder / short(parts), feature_set.order, description)
        size = _size(frontier, feature_set, self._settings)
        estimate = Estimate(
            rows=len(feature_set.source),
            passes=demand.passes,
            row_seconds=seconds,
            cached_row_seconds=size / len(feature_set.source) / _BYTES_PER_SECOND,
            size=size,
            stored=store.seems_complete,
        )
        return _Plan(frontier, store, demand, estimate)

    def _looked_at(self, feature_set: FeatureSet, stage: int) -> tuple[Frontier, float]:
        """Find the frontier of a stage, and the seconds that its prefix takes for a row; once."""
        key = feature_set.name, stage
        if key not in self._seen:
            frontier = find_frontier(self._model, feature_set.probes, feature_set.roots)
            _refuse_train_mode(self._model, frontier)
            check_still(
                self._model,
                frontier,
                feature_set.forward,
                batches=feature_set.probes,
                shared=SHARED,
                computed_in=feature_set.computed_in,
            )
            self._seen[key] = frontier, _seconds_per_row(self._model, frontier, feature_set, self._settings.batch_size)
        return self._seen[key]

    def _planned_ahead(self, feature_set: FeatureSet, demand: Demand) -> _Plan | None:
        try:
            plan: _Plan = self._ranks.together(lambda: self._planned(feature_set, demand))
        except CacheRefused:
            return None  # said when the stage comes
        return plan

    def _number_that_fits(self, plans: Sequence[_Plan]) -> int:
        """How many plans can be stored together. Raises `CacheRefused` where even the first cannot."""
        size = 0
        for number, plan in enumerate(plans):
            size += 0 if plan.store.seems_complete else plan.estimate.size
            try:
                self._refuse_size(size, plan.store)
            except CacheRefused:
                if number == 0:
                    raise
                return number
        return len(plans)

    def _refuse_size(self, size: int, store: FeatureStore) -> None:
        if size > self._settings.max_bytes:
            raise CacheRefused(
                f"they would take {in_bytes(size)}, and the limit is {in_bytes(self._settings.max_bytes)} "
                "(cache_frozen_max_gb)"
            )
        folder = next(parent for parent in store.folder.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free
        if size > free:
            raise CacheRefused(f"they would take {in_bytes(size)}, and {in_bytes(free)} are free in {str(folder)!r}")

    def _compute(self, feature_set: FeatureSet, plans: Sequence[_Plan]) -> None:
        with ExitStack() as locks:
            self._ranks.together(lambda: self._lock(plans, locks))
            for plan in plans:
                found = plan.store.missing() if self._ranks.local == 0 else []
                plan.missing = self._ranks.of_leader(found)
            if any(self._ranks.gather(any(plan.missing for plan in plans))):
                self._ranks.together(lambda: self._extract(feature_set, [plan for plan in plans if plan.missing]))

    def _lock(self, plans: Sequence[_Plan], locks: ExitStack) -> None:
        if self._ranks.local == 0:
            # In one order in every run, so that no two wait for each other.
            for store in sorted({plan.store.folder: plan.store for plan in plans}.items()):
                locks.enter_context(store[1].locked())

    def _extract(self, feature_set: FeatureSet, plans: Sequence[_Plan]) -> None:
        if not plans:
            return
        with _mode(self._model, training=feature_set.training), without_checkpointing(self._model):
            extract(
                self._model,
                feature_set.source,
                [Work(plan.frontier, plan.store, plan.missing, self._settings.dtype) for plan in plans],
                feature_set.forward,
                batch_size=self._settings.batch_size,
                share=(self._ranks.local, self._ranks.local_count),
                show_progress=self._settings.show_progress and self._ranks.index == 0,
            )

    def _checked(self, feature_set: FeatureSet, plan: _Plan) -> Replay:
        features = plan.store.read(feature_set.device)
        rows = feature_set.sample()
        with _mode(self._model, training=feature_set.training):
            how: dict[str, Any] = {"rows": rows, "computed_in": self._coarsest(feature_set)}
            difference = check_stored(
                self._model, feature_set.source, plan.frontier, features, forward=feature_set.forward, **how
            )
            if self._settings.dtype is not None:
                self._say(
                    logging.INFO,
                    "Features of the %s rows are stored as %s: off by at most %.2g of the largest value, in %d rows.",
                    feature_set.name,
                    str(self._settings.dtype)[6:],
                    difference,
                    len(rows),
                )
            replay = Replay(self._model, plan.frontier, features)
            try:
                with without_checkpointing(self._model):
                    check_replay(self._model, feature_set.source, replay, roots=feature_set.roots, **how)
            except BaseException:
                replay.remove()
                raise
        return replay

    def _coarsest(self, feature_set: FeatureSet) -> torch.dtype | None:
        """The type that blurs the loss most: of storage, or of computation."""
        types = [dtype for dtype in (self._settings.dtype, feature_set.computed_in) if dtype is not None]
        return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    def _say(self, level: int, message: str, *values: Any) -> None:
        if self._ranks.index > 0:
            return
        if self._settings.show_progress and not logger.isEnabledFor(level):
            tqdm.write(message % values)
        logger.log(level, message, *values)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    with untouched(model):
        model.train(training)
        yield


def _refuse_train_mode(model: nn.Module, frontier: Frontier) -> None:
    modules = frontier.watched(model)
    for key in frontier.answers:
        moving = [name for name, part in modules[key.name].named_modules() if part.training]
        if moving:
            raise CacheRefused(f"the frozen {key.name!r} is in train mode (frozen_eval=False): its dropout is on")


def _seconds_per_row(model: nn.Module, frontier: Frontier, feature_set: FeatureSet, batch_size: int) -> float:
    """Time the calls that would be stood in for, over random rows."""
    count = min(batch_size, len(feature_set.source), _TIMED_ROWS)
    rows = np.random.default_rng(0).choice(len(feature_set.source), count, replace=False)
    batch = feature_set.source.batch(rows.tolist())
    seconds = 0.0

    def timed(call: Call) -> Any:
        nonlocal seconds
        if call.key not in frontier.answers or frontier.answers[call.key].is_computed:
            return call.run()
        began = _clock(feature_set.device)
        output = call.run()
        seconds += _clock(feature_set.device) - began
        return output

    with torch.no_grad(), intercepted(model, frontier.watched(model), timed):
        feature_set.roots(batch.inputs())
        seconds = 0.0  # the first pass warms caches up
        feature_set.roots(batch.inputs())
    return seconds / len(rows)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _size(frontier: Frontier, feature_set: FeatureSet, settings: CacheSettings) -> int:
    rows = len(feature_set.source)
    positions = sum(feature_set.lengths) or rows * max(feature_set.probes[0].sizes.values())
    size = 0
    for leaf in frontier.leaves.values():
        dtype = settings.dtype if settings.dtype is not None and leaf.dtype.is_floating_point else leaf.dtype
        size += elements(leaf.layout, rows=rows, positions=positions) * dtype.itemsize
    return size
