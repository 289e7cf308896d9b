"""Damaged checkpoints and odd states, each with what resuming from it gets. `DAMAGES`: name -> (damage, what is said)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]
STATE = "trainer_state.json"


def cut(name: str, share: float = 0.5) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def lost(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def behind(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content + (folder / name).read_bytes())


def a_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def with_field(path: str, value: Any) -> Damage:
    """Set a field of trainer_state.json; `saved.` stands for what FreezeCallback left."""

    def damage(folder: Path) -> None:
        state = json.loads((folder / STATE).read_text())
        *way, last = path.replace("saved.", "stateful_callbacks.FreezeCallback.attributes.saved.").split(".")
        at = state
        for key in way:
            at = at[key]
        at[last] = value
        (folder / STATE).write_text(json.dumps(state))

    return damage


def without_field(path: str) -> Damage:
    def damage(folder: Path) -> None:
        with_field(path, None)(folder)
        text = (folder / STATE).read_text()
        state = json.loads(text)
        *way, last = path.replace("saved.", "stateful_callbacks.FreezeCallback.attributes.saved.").split(".")
        at = state
        for key in way:
            at = at[key]
        del at[last]
        (folder / STATE).write_text(json.dumps(state))

    return damage


OURS = "stateful_callbacks.FreezeCallback"
WATCH = {"stage": 1, "best": 0.5, "best_step": 2, "without_better": 0}
DAMAGES: dict[str, tuple[Damage, str]] = {
    # the newest checkpoint of a killed run
    "no state": (lost(STATE), "not whole.*trainer_state.json.*written last.*missing"),
    "state cut off": (cut(STATE), "trainer_state.json.*not readable as JSON"),
    "state empty": (holding(STATE, b""), "trainer_state.json.*not readable as JSON"),
    "state binary": (holding(STATE, b"\xb7\xff\x00"), "trainer_state.json.*not readable as JSON"),
    "state with a byte order mark": (behind(STATE, b"\xef\xbb\xbf"), "trainer_state.json.*not readable as JSON"),
    "state nested too deep": (holding(STATE, b"[" * 10**5), "trainer_state.json.*not readable as JSON"),
    "state a folder": (a_folder(STATE), "trainer_state.json.*cannot be read"),
    "no weights": (lost("model.safetensors"), "no file of weights"),
    "weights cut off": (cut("model.safetensors"), "model.safetensors.*cannot be read"),
    "weights cut off in the header": (cut("model.safetensors", 0.001), "model.safetensors.*cannot be read"),
    "weights empty": (holding("model.safetensors", b""), "model.safetensors.*cannot be read"),
    "configuration empty": (holding("config.json", b""), "config.json' cannot be read"),
    "configuration a list": (holding("config.json", b"[1]"), "config.json' cannot be read"),
    "configuration of wrong types": (holding("config.json", b'{"id2label": 3}'), "config.json' cannot be read"),
    "no optimizer": (lost("optimizer.pt"), "optimizer.pt.*missing.*ignore_plan_change"),
    "optimizer cut off": (cut("optimizer.pt"), "optimizer.pt.*cannot be read"),
    "optimizer empty": (holding("optimizer.pt", b""), "optimizer.pt.*cannot be read"),
    "optimizer behind three bytes": (behind("optimizer.pt", b"..."), "optimizer.pt' cannot be read"),
    "no scheduler": (lost("scheduler.pt"), "scheduler.pt.*missing"),
    "scheduler cut off": (cut("scheduler.pt"), "scheduler.pt.*cannot be read"),
    "random states cut off": (cut("rng_state.pth"), "rng_state.pth.*cannot be read"),
    "a shard is missing": (
        holding("model.safetensors.index.json", b'{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
        "model-00002-of-00002.safetensors.*is missing",
    ),
    "an index that is a folder": (a_folder("model.safetensors.index.json"), "index.json.*cannot be read"),
    "an index that is none": (holding("model.safetensors.index.json", b"[1]"), "index.json.*cannot be read"),
    # the Trainer's own fields
    "a list": (holding(STATE, b"[]"), "trainer_state.json.*not the fields of a TrainerState"),
    "null": (holding(STATE, b"null"), "trainer_state.json.*holds None"),
    "a field of the future": (with_field("quantum", 1), "trainer_state.json.*'quantum'"),
    "no step": (without_field("global_step"), "trainer_state.json.*no 'global_step'"),
    "no batch size": (without_field("train_batch_size"), "trainer_state.json.*no 'train_batch_size'"),
    "batch size null": (with_field("train_batch_size", None), "trainer_state.json.*train_batch_size=None"),
    "step as text": (with_field("global_step", "2"), "trainer_state.json.*global_step='2'"),
    "step below 0": (with_field("global_step", -1), "trainer_state.json.*global_step=-1"),
    "step NaN": (with_field("global_step", float("nan")), "trainer_state.json.*global_step=nan"),
    "step huge": (with_field("global_step", 10**40), "trainer_state.json.*global_step=1000"),
    "step true": (with_field("global_step", True), "trainer_state.json.*global_step=True"),
    "log as object": (with_field("log_history", {}), "trainer_state.json.*log_history"),
    "log of numbers": (with_field("log_history", [1, "x"]), "trainer_state.json.*1 in log_history"),
    "log of lists": (with_field("log_history", [[{"step": 1}]]), "trainer_state.json.*in log_history"),
    "log at a step as text": (with_field("log_history", [{"step": "1"}]), "trainer_state.json.*in log_history"),
    "epoch NaN": (with_field("epoch", float("nan")), "trainer_state.json.*epoch=nan"),
    "epoch without end": (with_field("epoch", float("inf")), "trainer_state.json.*epoch=inf"),
    "interval as text": (with_field("eval_steps", "1"), "trainer_state.json.*eval_steps='1'"),
    "callbacks as list": (with_field("stateful_callbacks", []), "trainer_state.json.*stateful_callbacks"),
    # what FreezeCallback left
    "no state of ours": (without_field(OURS), "written without a freeze plan"),
    "ours is a list": (with_field(OURS, [{}, {}]), "trainer_state.json.*several FreezeCallbacks"),
    "ours is a text": (with_field(OURS, "x"), "trainer_state.json.*FreezeCallback.*args is None"),
    "ours is a number": (with_field(OURS, 3), "trainer_state.json.*args is None"),
    "no plan": (without_field(f"{OURS}.args.plan"), "trainer_state.json.*args.plan is None"),
    "plan of an unknown key": (with_field(f"{OURS}.args.plan", {"frozen": "x"}), "trainer_state.json.*args.plan is no"),
    "plan of nothing": (with_field(f"{OURS}.args.plan", {}), "trainer_state.json.*args.plan is not a plan"),
    "plan of numbers": (
        with_field(f"{OURS}.args.plan", {"trainable": 3}),
        "trainer_state.json.*args.plan is not a plan",
    ),
    "an argument of the future": (with_field(f"{OURS}.args.speed", 3), "trainer_state.json.*args has 'speed'"),
    "nothing saved": (without_field(f"{OURS}.attributes.saved"), "trainer_state.json.*attributes.saved is None"),
    "fingerprint null": (with_field("saved.fingerprint", None), "trainer_state.json.*fingerprint is None"),
    "fingerprint of another plan": (with_field("saved.fingerprint", "0" * 16), "another plan"),
    "groups as list": (with_field("saved.groups", ["head"]), "trainer_state.json.*groups is"),
    "groups of numbers": (with_field("saved.groups", {"head": 1}), "trainer_state.json.*groups is"),
    "epoch order as a word": (with_field("saved.epoch_order", "x"), "trainer_state.json.*epoch_order is 'x'"),
    "epoch order cut off": (with_field("saved.epoch_order", "AAAA"), "trainer_state.json.*epoch_order is 'AAAA'"),
    "epoch order as a number": (with_field("saved.epoch_order", 3), "trainer_state.json.*epoch_order is 3"),
    "loss window as list": (with_field("saved.loss_window", [1]), "trainer_state.json.*loss_window"),
    "losses empty": (with_field("saved.loss_window.losses", []), "trainer_state.json.*losses=\\[\\]"),
    "losses as text": (with_field("saved.loss_window.losses", ["x"]), "trainer_state.json.*losses"),
    "other losses NaN": (with_field("saved.loss_window.others", float("nan")), "trainer_state.json.*others=nan"),
    "other losses a number": (with_field("saved.loss_window.others", {"x": 1}), "trainer_state.json.*others={'x': 1}"),
    "logged null": (with_field("saved.loss_window.logged", None), "trainer_state.json.*logged=None"),
    "run null": (with_field("saved.run", None), "trainer_state.json.*run is None"),
    "stage as text": (with_field("saved.run.stage", "1"), "trainer_state.json.*number of a stage"),
    "stage below 0": (with_field("saved.run.stage", -1), "trainer_state.json.*number of a stage"),
    "stage beyond the plan": (
        with_field("saved.run.stage", 9),
        "trainer_state.json.*names stage 9.*ends with stage 1",
    ),
    "stage NaN": (with_field("saved.run.stage", float("nan")), "trainer_state.json.*number of a stage"),
    "fired as list": (with_field("saved.run.fired", [1]), "trainer_state.json.*run.fired"),
    "fired for a word": (with_field("saved.run.fired", {"x": 1}), "trainer_state.json.*run.fired"),
    "fired for an unknown stage": (with_field("saved.run.fired", {"7": 1}), "trainer_state.json.*names stage 7"),
    "fired at no step": (with_field("saved.run.fired", {"1": None}), "trainer_state.json.*run.fired"),
    "begins as text": (with_field("saved.run.begins", "x"), "trainer_state.json.*run.begins"),
    "watch as list": (with_field("saved.run.watch", [1]), "trainer_state.json.*run.watch"),
    "no watch": (without_field("saved.run.watch"), "trainer_state.json.*run.watch"),
    "watch lacks a field": (with_field("saved.run.watch", {"stage": 1}), "trainer_state.json.*run.watch"),
    "watch has another field": (with_field("saved.run.watch", {**WATCH, "x": 1}), "trainer_state.json.*run.watch"),
    "watch of a stage as text": (
        with_field("saved.run.watch", {**WATCH, "stage": "1"}),
        "trainer_state.json.*run.watch",
    ),
    "watch of an unknown stage": (with_field("saved.run.watch", {**WATCH, "stage": 5}), "names stage 5"),
    "watch best NaN": (with_field("saved.run.watch", {**WATCH, "best": float("nan")}), "trainer_state.json.*best=nan"),
    "watch best as text": (with_field("saved.run.watch", {**WATCH, "best": "a"}), "trainer_state.json.*best='a'"),
    "watch best lost": (with_field("saved.run.watch", {**WATCH, "best": None}), "best and best_step is missing"),
    # the best weights of the stage
    "no best weights": (lost("stage_best.safetensors"), "stage_best.safetensors' is missing"),
    "best weights cut off": (cut("stage_best.safetensors"), "stage_best.safetensors' cannot be read"),
    "best weights empty": (holding("stage_best.safetensors", b""), "stage_best.safetensors' cannot be read"),
}
