"""Train in two processes at once on one folder of features, which know nothing of each other.

`two_runs_script.py OUT_DIR` fails where one of them hangs, or does not end where a run without features does.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hf_freeze.features import store
from hf_freeze.features.store import FeatureStore
from tests.features.killed_script import kill_in_mid_file
from tests.features.runs import CASES, run, texts
from tests.nearness import assert_near

ROWS = {"the same": (texts(), texts()), "others": (texts(18), texts()[8:])}
LAGS = {"the lock": "lock", "half a part": "part-*.arrow", "two parts": "part-00001.json"}
"""When the second run begins: once the first has made a file like this."""
Act = Callable[[], object]


def trained(folder: Path, rows: list, cache: object, first: Act = lambda: None) -> int:
    """Train in a process of its own, which does `first` first, and leave the weights in `folder`."""
    child = os.fork()
    if child:
        return child
    signal.alarm(120)
    first()
    given = {"trainable": "head", "num_train_epochs": 2}
    torch.save(run(CASES["bert"], folder, rows=rows, cache=cache, **given).model.state_dict(), folder / "weights")
    os._exit(0)


def ended(child: int) -> int:
    """Return the exit code of a process, once it has one."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_slowly() -> None:
    """Let writing a part take as long as the other run needs to come to it."""
    write = FeatureStore.write

    def slowly(self: FeatureStore, *given) -> None:
        time.sleep(0.5)
        write(self, *given)
        time.sleep(0.5)

    FeatureStore.write = slowly


def die_in_mid_file() -> None:
    """Write slowly, and be killed when half of the second part is written."""
    write_slowly()
    kill_in_mid_file(2)


def wait_for(folder: Path, pattern: str) -> Act:
    """Make a function that waits until there is such a file."""

    def wait() -> None:
        write_slowly()
        while not any(folder.rglob(pattern)):
            time.sleep(0.01)

    return wait


def check(out: Path, rows: str, first: Act, second: Act, *, killed: bool = False) -> None:
    """Train twice at once; hold the weights of each against those of a run without features."""
    each = ROWS[rows]
    children = [trained(out / str(n), each[n], str(out / "kept"), act) for n, act in enumerate((first, second))]
    assert [ended(child) for child in children] == [-signal.SIGKILL if killed else 0, 0], out
    for number in range(killed, 2):
        assert not ended(trained(out / f"plain{number}", each[number], False))
        found, expected = (torch.load(out / f"{name}{number}" / "weights") for name in ("", "plain"))
        assert_near(found, expected, rtol=1e-5)
    assert not list((out / "kept").rglob(".*.tmp")), out
    print("both ended well:", out.name)


def main() -> None:
    store.PART_ROWS = 9  # here: the test imports this file, and other tests follow it
    out = Path(sys.argv[1])
    for rows in ROWS:
        check(out / f"together, {rows}", rows, write_slowly, write_slowly)
        for lag, pattern in LAGS.items():
            folder = out / f"after {lag}, {rows}"
            check(folder, rows, write_slowly, wait_for(folder / "kept", pattern))
        folder = out / f"killed, {rows}"
        check(folder, rows, die_in_mid_file, wait_for(folder / "kept", "part-00000.json"), killed=True)


if __name__ == "__main__":
    main()
