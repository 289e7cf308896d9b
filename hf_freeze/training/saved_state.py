"""What `FreezeCallback` left in `trainer_state.json`, read with suspicion: a file can be damaged, edited or foreign."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from hf_freeze.errors import FreezeError
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.plan.stages import is_number
from hf_freeze.training.epoch_order import is_generator_state
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.settling import SettlingWatch
from hf_freeze.training.whole import is_count


def require_readable(state: Any, folder: str | Path) -> None:
    """Raise `FreezeError` unless `state` is None or such as `FreezeCallback.state()` returns."""
    if state is None:
        return
    if problem := next(_problems(state), None):
        raise FreezeError(
            f"{str(Path(folder) / TRAINER_STATE_NAME)!r} holds a state of FreezeCallback that cannot be used: "
            f"{problem} Was the file edited or damaged? Go back to another checkpoint."
        )


def require_known_stages(saved: Mapping[str, Any], *, stages: int, folder: str | Path) -> None:
    """Raise `FreezeError` for a stage that the plan, which has stages 0 to `stages`, does not have."""
    run = saved["run"]
    watched = [run["watch"]["stage"]] if run["watch"] else []
    named = [run["stage"], *map(int, run["fired"]), *map(int, run.get("settling", {})), *watched]
    if max(named) > stages:
        raise FreezeError(
            f"{str(Path(folder) / TRAINER_STATE_NAME)!r} names stage {max(named)}, but the plan ends with stage "
            f"{stages}. Was the file edited or damaged? Go back to another checkpoint."
        )


def _problems(state: Any) -> Iterator[str]:
    if isinstance(state, list):
        yield f"it is a list of {len(state)}, from a Trainer with several FreezeCallbacks."
        return
    for path, kind in (("args", dict), ("args.plan", dict), ("attributes", dict), ("attributes.saved", dict)):
        if not isinstance(_at(state, path), kind):
            yield f"{path} is {_at(state, path)!r:.60}."
            return
    if unknown := sorted(state["args"].keys() - {"plan", *(field.name for field in fields(FreezeSettings))}):
        yield f"args has {unknown[0]!r:.40}, which is not an argument of FreezeCallback."
        return
    try:
        FreezePlan.from_dict(state["args"]["plan"])
    except (FreezeError, TypeError, ValueError) as error:
        yield f"args.plan is not a plan ({error})."
    try:
        FreezeSettings(**{name: value for name, value in state["args"].items() if name != "plan"})
    except FreezeError as error:
        yield f"args holds settings that are not valid ({error})."
    saved = state["attributes"]["saved"]
    groups = saved.get("groups")
    if not isinstance(saved.get("fingerprint"), str):
        yield f"fingerprint is {saved.get('fingerprint')!r:.60}, not a text."
    if not isinstance(groups, dict) or not all(isinstance(digest, str) for digest in groups.values()):
        yield f"groups is {groups!r:.60}, not a digest for each group."
    if not is_generator_state(saved.get("epoch_order")):
        yield f"epoch_order is {saved.get('epoch_order')!r:.60}, not the state of a random generator."
    yield from _problems_of_window(saved.get("loss_window"))
    yield from _problems_of_run(saved.get("run"))


def _problems_of_window(window: Any) -> Iterator[str]:
    if not isinstance(window, dict):
        yield f"loss_window is {window!r:.60}."
    elif window:
        losses, others = window.get("losses"), window.get("others", {})
        if not is_count(window.get("step")) or not is_count(window.get("logged")):
            yield f"loss_window has step={window.get('step')!r:.40} and logged={window.get('logged')!r:.40}."
        if not _are_losses(losses):
            yield f"loss_window has losses={losses!r:.60}, not a number for each process."
        if not isinstance(others, dict) or not all(map(_are_losses, others.values())):
            yield f"loss_window has others={others!r:.60}, not a number for each process by the name of each loss."


def _are_losses(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(loss, float | int) for loss in value)


def _problems_of_run(run: Any) -> Iterator[str]:
    if not isinstance(run, dict) or not is_count(run.get("stage")):
        yield f"run is {run!r:.80}, without the number of a stage."
        return
    fired, begins = run.get("fired"), run.get("begins", [])
    if not isinstance(fired, dict) or not all(key.isdecimal() and is_count(step) for key, step in fired.items()):
        yield f"run.fired is {fired!r:.60}, not a step for each stage that a plateau began."
    if not isinstance(begins, list) or not all(map(is_count, begins)):
        yield f"run.begins is {begins!r:.60}, not the steps at which stages begin."
    settling = run.get("settling", {})
    if not isinstance(settling, dict) or not all(key.isdecimal() and _is_watch(seen) for key, seen in settling.items()):
        yield f"run.settling is {settling!r:.60}, not what was seen of each stage that waits for layers to settle."
    watch = run.get("watch")
    if watch is None and "watch" in run:
        return
    if not isinstance(watch, dict) or watch.keys() != {"stage", "best", "best_step", "without_better"}:
        yield f"run.watch is {watch!r:.80}."
        return
    counts = watch["stage"], watch["without_better"], 0 if watch["best_step"] is None else watch["best_step"]
    if not all(map(is_count, counts)) or not watch["stage"]:
        yield f"run.watch is {watch!r:.80}, whose counts are not valid."
    if (watch["best"] is None) != (watch["best_step"] is None):
        yield f"run.watch is {watch!r:.80}: one of best and best_step is missing."
    if (
        watch["best"] is not None
        and not is_number(watch["best"])
        and watch["best"] not in (float("inf"), -float("inf"))
    ):
        yield f"run.watch has best={watch['best']!r:.40}, not a number."


def _is_watch(values: Any) -> bool:
    try:
        watch = SettlingWatch.from_dict(values)
    except (TypeError, ValueError, KeyError):
        return False
    numbers = all(map(is_number, (watch.rate, watch.highest, watch.farthest, watch.last)))
    counts = is_count(watch.below) and is_count(watch.steps) and isinstance(watch.seen, int)
    return numbers and counts and values.keys() == vars(watch).keys()


def _at(state: Any, path: str) -> Any:
    for key in path.split("."):
        state = state.get(key) if isinstance(state, dict) else None
    return state
