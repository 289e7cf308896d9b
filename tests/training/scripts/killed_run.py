"""Kill a run with SIGKILL at each thing that it does in the folder of its second checkpoint, and resume what is left.

`killed_run.py OUT_DIR [trained_only]` prints a line per kill: `refused` where resuming named the first checkpoint as the newest whole
one, `resumed` where the second was whole or not there; it fails where the weights are then not those of the whole run.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from hf_freeze import FreezeError, FreezePlan, Plateau, Stage
from tests.training.staged import trainer, weights_of

PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(plateau=Plateau("eval_loss", min_delta=9, patience=2, restore_best=True), unfreeze="layers[-1]")],
)
VALUES = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}


def run(folder: Path, resume: str | bool | None = None):
    made = trainer(folder, plan=PLAN, save_trained_only="trained_only" in sys.argv, **VALUES)
    made.train(resume_from_checkpoint=resume)
    return made


def kill_at(place: int) -> None:
    """End this process at the `place`-th event in the folder of the second checkpoint."""
    seen = 0

    def note(event: str, args: tuple) -> None:
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and "checkpoint-4" in str(args[:2]):
            seen += 1
            if seen == place:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def killed(folder: Path, place: int) -> bool:
    """Train in a process of its own; tell whether it was killed."""
    child = os.fork()
    if not child:
        kill_at(place)
        run(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def resumed(folder: Path):
    try:
        return "resumed", run(folder, resume=True)
    except FreezeError as error:
        said = str(error)
    assert "checkpoint-4' is not whole" in said, said
    assert f"newest whole one is {str(folder / 'checkpoint-2')!r}" in said, said
    return "refused", run(folder, resume=str(folder / "checkpoint-2"))


def main() -> None:
    out = Path(sys.argv[1])
    # Before anything is trained here: a child cannot use the threads of autograd that its parent has started.
    places = 0
    while killed(out / str(places), places + 1):
        places += 1
    whole = weights_of(run(out / "whole").model)
    for place in range(places):
        how, made = resumed(out / str(place))
        after = weights_of(made.model)
        assert all(torch.equal(weight, after[name]) for name, weight in whole.items()), place
        print("killed at", place, how)


if __name__ == "__main__":
    main()
