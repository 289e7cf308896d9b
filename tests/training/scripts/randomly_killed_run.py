"""Kill a run with SIGKILL at random times until it is through, each time going on from the newest whole checkpoint.

`randomly_killed_run.py OUT_DIR KILLS PROCESSES [trained_only] [rotation]` kills at least KILLS times, of two processes one a
moment before the other, and prints which folders were named as partial; it fails where the last weights are not those of the run
that was never killed. It saves after every step. In a rotation, rows of a tied matrix train throughout; its others must be those
of the start.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState

from hf_freeze import FreezeError, FreezePlan, Stage, recipes
from tests.launch import free_port
from tests.training.scripts import rows_run
from tests.training.staged import trainer, weights_of

ROTATION = recipes.rotate(layers=2, every=3, always=["head", "embeddings[-3:]"])
STAGES = [Stage(fraction=0.3, unfreeze="layers[-1]"), Stage(fraction=0.6, unfreeze="layers[-2]", freeze="head")]
PLAN = FreezePlan(trainable="head", stages=STAGES)
VALUES = {"max_steps": 30, "save_strategy": "steps", "save_steps": 1, "logging_steps": 10, "save_total_limit": 6}


def train(folder: Path) -> None:
    PartialState(cpu=True)
    what = {"plan": PLAN}
    if "rotation" in sys.argv:
        what = {"plan": ROTATION, "model": rows_run.build(layers=5, dropout=0.1), "rows": rows_run.ROWS}
    made = trainer(folder, save_trained_only="trained_only" in sys.argv, **what, **VALUES)
    resume = newest_whole(made, folder)
    begun(folder, os.getpid()).touch()
    made.train(resume_from_checkpoint=resume)
    if made.is_world_process_zero():
        torch.save(weights_of(made.model), folder / "weights.tmp")
        (folder / "weights.tmp").rename(folder / "weights.pt")


def begun(folder: Path, child: int) -> Path:
    """Return the file that a process makes right before it trains: how long it takes to come so far depends on the load."""
    return folder / f"begun-{child}"


def newest_whole(made, folder: Path) -> str | None:
    """Ask to resume from the newest, and go by what is said of it where it is not whole."""
    steps = sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))
    if not steps:
        return None
    newest = str(folder / f"checkpoint-{steps[-1]}")
    try:
        made._check_same_plan(newest)
    except FreezeError as error:
        said = str(error)
        assert f"{newest!r} is not whole" in said, said
        if made.is_world_process_zero():
            print("named", newest, flush=True)
        return said.partition("newest whole one is '")[2].partition("'")[0] or None
    return newest


def start(folder: Path, processes: int) -> list[int]:
    """Train in processes of their own: what autograd has started, a fork of it cannot use."""
    port = str(free_port())
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if not children[-1]:
            setup = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
            if processes > 1:
                os.environ |= {name: str(value) for name, value in setup.items()} | {"MASTER_PORT": port}
                os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
            code = 1
            try:
                train(folder)
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
    return children


def run(folder: Path, processes: int, chance: random.Random | None = None, length: float = 0) -> bool:
    """Return whether it ended by itself: by chance, one process is killed while it trains, and the other soon after."""
    folder.mkdir(exist_ok=True)
    children = start(folder, processes)
    if chance is not None:
        first, *others = chance.sample(children, processes)
        while not begun(folder, first).exists() and not ended(first):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.8) * length)
        os.kill(first, signal.SIGKILL)
        time.sleep(0.3 * len(others))
        for child in others:
            os.kill(child, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * processes


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main() -> None:
    out, kills, processes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance, whole, killed, runs = random.Random(0), out / "whole", 0, 0
    assert run(whole, processes)
    weights = whole / "weights.pt"
    length = weights.stat().st_mtime - min(path.stat().st_mtime for path in whole.glob("begun-*"))
    expected = torch.load(weights)
    if "rotation" in sys.argv:
        start, end = rows_run.build(layers=5).get_parameter(rows_run.MATRIX), expected[rows_run.MATRIX]
        assert [*map(torch.equal, start, end)] == [True] * 61 + [False] * 3
    while killed < kills:
        runs += 1
        folder = out / str(runs)
        tries = 0
        while not run(folder, processes, chance, length * (1 + tries / 4)):  # ever longer: it gets through in the end
            tries += 1
        killed += tries
        found = torch.load(folder / "weights.pt")
        assert all(torch.equal(weight, found[name]) for name, weight in expected.items()), folder
    print("killed", killed, "times in", runs, "runs")


if __name__ == "__main__":
    main()
