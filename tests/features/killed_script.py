"""Kill a run with SIGKILL at each thing that it does in the folder of its features, and run it again on what is left.

`killed_script.py OUT_DIR` prints a line per kill; it fails where the run that follows does not end, bit by bit, where an
undisturbed one does.
"""

import gc
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from hf_freeze.features import store
from tests.features.runs import CASES, kept_sets, logged, run

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove")
write_arrow = store._write_arrow


def cached(folder: Path):
    """Train in `folder`, on features that are kept there."""
    given = {"trainable": "head", "num_train_epochs": 1, "eval_strategy": "no"}
    with kept_sets() as kept:
        trainer = run(CASES["bert"], folder / "out", cache=str(folder / "kept"), **given)
    assert kept == [["training"]], kept
    return trainer


def kill_at(place: int) -> None:
    """End this process at the `place`-th event in the folder of features."""
    seen = 0

    def note(event: str, args: tuple) -> None:
        nonlocal seen
        if event in EVENTS and "/kept/" in str(args[:2]):
            seen += 1
            if seen == place:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def kill_in_mid_file(number: int) -> None:
    """End this process when half of the `number`-th part is written, which Arrow does without an event."""
    parts = 0

    def write_half(path: Path, *given) -> None:
        nonlocal parts
        write_arrow(path, *given)
        parts += 1
        if parts == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    store._write_arrow = write_half


def killed(folder: Path, prepare, place: int) -> bool:
    """Train in a process of its own; tell whether it was killed."""
    child = os.fork()
    if not child:
        prepare(place)
        cached(folder)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL), ended
    return ended == -signal.SIGKILL


def main() -> None:
    with suppress(ImportError):
        import_module("deepspeed")  # else each child does: accelerate imports it where it trains
    gc.freeze()  # else each `train()` searches all that was imported for garbage
    store.PART_ROWS = 13  # here: the test imports this file, and other tests follow it
    out = Path(sys.argv[1])
    # Before anything is trained here: a child cannot use the threads of autograd that its parent has started.
    folders = []
    for how, prepare in (("event", kill_at), ("half", kill_in_mid_file)):
        place = 1
        while killed(out / f"{how}-{place}", prepare, place):
            folders.append(out / f"{how}-{place}")
            place += 1
    whole = cached(out / "whole")
    expected = whole.model.state_dict()
    files = sorted(path.relative_to(out / "whole") for path in (out / "whole" / "kept").rglob("*"))
    for folder in folders:
        again = cached(folder)
        weights = again.model.state_dict()
        assert all(torch.equal(weight, weights[name]) for name, weight in expected.items()), folder
        assert logged(again) == logged(whole), folder
        assert sorted(path.relative_to(folder) for path in (folder / "kept").rglob("*")) == files, folder
        print("killed at", folder.name)


if __name__ == "__main__":
    main()
