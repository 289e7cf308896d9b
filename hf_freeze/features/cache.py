"""The frozen features of a run: found, judged, computed, checked and replayed, stage by stage."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from hf_freeze.features.answers import Frontier
from hf_freeze.features.check import check_replay, check_still, check_stored, reads_labels
from hf_freeze.features.cost import Estimate, in_bytes, net_gain, seconds_per_row, stored_bytes
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.extraction import CHANGING, Work, extract
from hf_freeze.features.fingerprint import fingerprint, short
from hf_freeze.features.frontier import find_frontier, without_checkpointing
from hf_freeze.features.kept import OFF, Kept, spoken
from hf_freeze.features.ranks import Ranks, reason
from hf_freeze.features.replay import Replay
from hf_freeze.features.row_digests import Keys
from hf_freeze.features.sets import FeatureSet, Reading, read_rows
from hf_freeze.features.store import FeatureStore
from hf_freeze.no_trace import random_states_kept, untouched

logger = logging.getLogger(__name__)

_BYTES_PER_SECOND = 2e9  # of reading stored features


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Where features are kept, in which form, and when."""

    folder: Path
    dtype: torch.dtype | None = None
    max_bytes: float = 20e9
    always: bool = False
    show_progress: bool = False


@dataclass(frozen=True)
class Demand:
    """How often a set is passed over in a stage, and what is frozen in that stage."""

    passes: float
    stage: int
    as_in_stage: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class _Cut:
    frontier: Frontier
    reads_labels: bool
    row_seconds: float


@dataclass
class _StoreJob:
    demand: Demand
    work: Work
    estimate: Estimate


class FeatureCache:
    """Keeps the features of the frozen prefix of one model."""

    def __init__(self, model: nn.Module, settings: CacheSettings) -> None:
        self._model = model
        self._settings = settings
        self._ranks = Ranks.now()
        self._kept: dict[str, Kept] = {}
        self._cuts: dict[tuple[str, int], _Cut] = {}
        self._readings: dict[str, Reading] = {}

    def enter(
        self, sets: Sequence[tuple[FeatureSet, Sequence[Demand]]], refused: Mapping[str, str] | None = None
    ) -> None:
        """Prepare the features that the first of each set's demands needs, and in the same pass those of later stages.

        Demands of earlier stages are among them if what was frozen then still is. Where their features are at hand and
        cost less in all than computing those of the first, they stay in use.

        Where a set is refused, its rows go through the whole model, and the reason is logged; `refused` has the reasons
        for sets that were refused before.
        """
        self.leave()
        plans: dict[str, _StoreJob] = {}
        refused = dict(refused or {})
        for feature_set, demands in sets:
            try:
                with random_states_kept(feature_set.source.dataset, feature_set.source.held):
                    kept, plans[feature_set.name] = self._prepared(feature_set, demands)
            except Exception as error:  # nothing that is looked for here may end a run that needs none of it
                refused[feature_set.name] = reason(error)
                continue
            if kept is not None:
                self._kept[feature_set.name] = kept
        self._report(plans, refused)

    def leave(self) -> None:
        """Stop using stored features."""
        for kept in reversed(self._kept.values()):
            kept.replay.remove()
        self._kept = {}

    def replaying(self, name: str, digests: Keys, inputs: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Answer for the frozen prefix while rows of the set `name` go through the model, where features are kept."""
        kept = self._kept.get(name)
        return nullcontext() if kept is None or kept.is_given_up else kept.replaying(digests, inputs)

    @property
    def kept(self) -> list[str]:
        """The names of the sets whose features are in use."""
        return [name for name, kept in self._kept.items() if not kept.is_given_up]

    def _prepared(self, feature_set: FeatureSet, demands: Sequence[Demand]) -> tuple[Kept | None, _StoreJob]:
        first, *others = demands
        plan = self._planned(feature_set, first)
        planned = [plan, *filter(None, (self._planned_otherwise(feature_set, demand) for demand in others))]
        plans = [each for each in planned if each.demand.stage >= first.stage]
        for each in planned:
            logger.debug("Stage %d, %s: %s.", each.demand.stage, spoken(feature_set.name), each.estimate)
        gain = net_gain([each.estimate for each in plans])
        saved = [each.estimate.saved_seconds for each in planned]
        stored = [i for i, each in enumerate(planned) if each.demand.stage < first.stage and each.estimate.stored]
        before = max(stored, key=saved.__getitem__, default=None)
        keeps_old = before is not None and saved[before] > max(gain, 0.0) and not self._settings.always
        # The main process says which: the seconds are measured, and differ from process to process.
        if (before := self._ranks.of_main(before if keeps_old else None)) is not None:
            plan, plans, gain = planned[before], [planned[before]], saved[before]
        if not (self._ranks.of_main(gain > 0) or self._settings.always):
            return None, plan
        plans = plans[: self._ranks.of_main(self._ranks.together(lambda: self._number_that_fits(plans)))]
        self._compute(feature_set, plans)
        kept: Kept = self._ranks.together(lambda: self._checked(feature_set, plans[0].work))
        return kept, plan

    def _planned(self, feature_set: FeatureSet, demand: Demand) -> _StoreJob:
        cut: _Cut = self._ranks.together(lambda: self._cut(feature_set, demand))
        name = feature_set.name
        if name not in self._readings:
            self._readings[name] = read_rows(feature_set, self._ranks)
        plan: _StoreJob = self._ranks.together(lambda: self._plan(feature_set, demand, cut, self._readings[name]))
        return plan

    def _cut(self, feature_set: FeatureSet, demand: Demand) -> _Cut:
        """Find the frontier of a stage, and the seconds that its prefix takes for a row; once."""
        key = feature_set.name, demand.stage
        if key in self._cuts:
            return self._cuts[key]
        forward, probes = feature_set.forward, feature_set.probes
        with demand.as_in_stage(), _mode(self._model, training=feature_set.training):
            frontier = find_frontier(self._model, probes, feature_set.roots)
            _refuse_train_mode(self._model, frontier)
            how: dict[str, Any] = {"shared": feature_set.shared, "computed_in": feature_set.computed_in}
            captured = check_still(self._model, frontier, forward, batches=probes, **how)
            labels = feature_set.labels
            read = reads_labels(self._model, frontier, forward, batch=probes[0], labels=labels, captured=captured)
            self._cuts[key] = _Cut(frontier, read, seconds_per_row(self._model, frontier, feature_set))
        return self._cuts[key]

    def _plan(self, feature_set: FeatureSet, demand: Demand, cut: _Cut, reading: Reading) -> _StoreJob:
        form = {
            "dtype": str(self._settings.dtype),
            "autocast": str(feature_set.computed_in),
            "training": feature_set.training,
            "labels": cut.reads_labels,
            "padded on the left": _padded_on_the_left(feature_set),
        }
        with demand.as_in_stage(), _mode(self._model, training=feature_set.training):
            parts = fingerprint(self._model, cut.frontier, form=form)
        store = FeatureStore(self._settings.folder / short(parts), {**parts, "stores": cut.frontier.describe()})
        keys = reading.keys(with_labels=cut.reads_labels)
        size, rows = stored_bytes(cut.frontier, feature_set, reading, self._settings.dtype), len(keys)
        estimate = Estimate(
            rows=rows,
            passes=demand.passes,
            row_seconds=cut.row_seconds,
            cached_row_seconds=size / rows / _BYTES_PER_SECOND,
            size=size,
            stored=store.holds(keys),
        )
        return _StoreJob(demand, Work(cut.frontier, store, keys, cut.reads_labels, self._settings.dtype), estimate)

    def _planned_otherwise(self, feature_set: FeatureSet, demand: Demand) -> _StoreJob | None:
        try:
            return self._planned(feature_set, demand)
        except CacheRefused:
            return None  # said when the stage comes

    def _report(self, plans: Mapping[str, _StoreJob], refused: Mapping[str, str]) -> None:
        """Warn of what is refused; log what is cached, how large it is and what it saves, and what is not, and why."""
        for why, names in _grouped(refused).items():
            self._say(logging.WARNING, OFF, names, why)
        kept = [plan.estimate for name, plan in plans.items() if name in self._kept]
        said = []
        if kept:
            saved = sum(estimate.saved_seconds - estimate.extraction_seconds for estimate in kept)
            gain = f", saves about {saved:.2g} s" if saved > 0 else ""
            what = _cached_for({name: plan for name, plan in plans.items() if name in self._kept})
            said.append(f"Caching {what}: {in_bytes(sum(estimate.size for estimate in kept))}{gain}.")
        if slow := {name: plan for name, plan in plans.items() if name not in self._kept}:
            said.append(f"Caching {_cached_for(slow)} takes longer than it saves.")
        if said:
            self._say(logging.INFO, "%s", " ".join(said))

    def _number_that_fits(self, plans: Sequence[_StoreJob]) -> int:
        """Return how many plans can be stored together. Raises `CacheRefused` where even the first cannot."""
        size = 0
        for number, plan in enumerate(plans):
            size += 0 if plan.estimate.stored else plan.estimate.size
            try:
                self._refuse_size(size, plan.work.store)
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

    def _compute(self, feature_set: FeatureSet, plans: Sequence[_StoreJob]) -> None:
        with ExitStack() as locks:
            works = [plan.work for plan in plans]
            self._ranks.together(lambda: self._lock(works, locks))
            found = self._ranks.together(lambda: self._missing(works))
            for work, (missing, first_part) in zip(works, self._ranks.of_leader(found), strict=True):
                work.missing, work.first_part = missing, first_part
            if any(self._ranks.gather(any(work.missing for work in works))):
                self._ranks.together(lambda: self._extract(feature_set, [work for work in works if work.missing]))

    def _lock(self, works: Sequence[Work], locks: ExitStack) -> None:
        if self._ranks.local == 0:
            # In one order in every run, so that no two wait for each other.
            for _, store in sorted({work.store.folder: work.store for work in works}.items()):
                locks.enter_context(store.locked())

    def _missing(self, works: Sequence[Work]) -> list[tuple[list[int], int]]:
        if self._ranks.local > 0:
            return []
        return [(work.store.missing(work.keys), work.store.next_part) for work in works]

    def _extract(self, feature_set: FeatureSet, works: Sequence[Work]) -> None:
        if not works:
            return
        with _mode(self._model, training=feature_set.training), without_checkpointing(self._model):
            extract(
                self._model,
                feature_set.source,
                works,
                feature_set.forward,
                lengths=self._readings[feature_set.name].lengths,
                batch_size=feature_set.batch_size,
                share=(self._ranks.local, self._ranks.local_count),
                show_progress=self._settings.show_progress and self._ranks.index == 0,
            )

    def _checked(self, feature_set: FeatureSet, work: Work) -> Kept:
        features = work.store.read(work.keys, feature_set.device)
        batch = feature_set.source.batch(feature_set.sample(self._readings[feature_set.name].lengths))
        keys = batch.keys(with_labels=work.reads_labels)
        places = None if keys is None else features.places(keys)
        if places is None:
            raise CacheRefused(CHANGING)
        how: dict[str, Any] = {"batch": batch, "places": places, "computed_in": self._coarsest(feature_set)}
        replay = Replay(self._model, work.frontier, features)
        try:
            with _mode(self._model, training=feature_set.training), without_checkpointing(self._model):
                difference = check_stored(self._model, work.frontier, features, forward=feature_set.forward, **how)
                check_replay(self._model, replay, roots=feature_set.roots, **how)
        except BaseException:
            replay.remove()
            raise
        if self._settings.dtype is not None:
            self._say(
                logging.INFO,
                "What is cached for %s is stored as %s: off by at most %.2g of the largest value, in %d rows.",
                *(spoken(feature_set.name), str(self._settings.dtype)[6:], difference, batch.rows),
            )
        left = _padded_on_the_left(feature_set)
        return Kept(feature_set.name, replay, features, work.reads_labels, feature_set.source.fixed_widths, left)

    def _coarsest(self, feature_set: FeatureSet) -> torch.dtype | None:
        """The coarser of the types that features are stored and computed in."""
        types = [dtype for dtype in (self._settings.dtype, feature_set.computed_in) if dtype is not None]
        return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    def _say(self, level: int, message: str, *values: Any) -> None:
        if self._ranks.index > 0:
            return
        if self._settings.show_progress and not logger.isEnabledFor(level):
            tqdm.write(message % values)
        logger.log(level, message, *values)


def _cached_for(plans: Mapping[str, _StoreJob]) -> str:
    sets = _grouped({name: plan.work.frontier.describe() for name, plan in plans.items()})
    return ", and ".join(f"{what} for {names}" for what, names in sets.items())


def _grouped(said: Mapping[str, str]) -> dict[str, str]:
    """Turn set -> message into message -> the sets that share it."""
    sets: dict[str, list[str]] = {}
    for name, text in said.items():
        sets.setdefault(text, []).append(spoken(name))
    return {text: " and ".join([", ".join(names[:-1]), names[-1]][-len(names) :]) for text, names in sets.items()}


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    with untouched(model):
        model.train(training)
        yield


def _padded_on_the_left(feature_set: FeatureSet) -> bool:
    return any(probe.padded_on_the_left for probe in feature_set.probes)


def _refuse_train_mode(model: nn.Module, frontier: Frontier) -> None:
    modules = frontier.watched(model)
    for key in frontier.answers:
        moving = [name for name, part in modules[key.name].named_modules() if part.training]
        if moving:
            raise CacheRefused(f"the frozen {key.name!r} is in train mode (frozen_eval=False): its dropout is on")
