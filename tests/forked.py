"""Start a script in several processes that are forked from one which has imported torch and transformers already.

Each process would take 7 seconds to import them; a test on two processes does next to nothing else. What a launcher does
beside that (its flags, another hash seed in each process) is left to the tests that use `tests.launch`.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.launch import ROOT, free_port

_IMPORTED = ["hf_freeze", "tests.forked", "tests.models", "deepspeed"]  # accelerate imports the last where it trains
_SET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # what has looked for a GPU cannot use it after a fork


def run_ranks(script: str | Path, *arguments: object, processes: int = 2, timeout: float = 240, expect: int = 0) -> str:
    """Run `script` as rank 0, 1, ... of gloo processes; return what they printed, or fail with it when one ends badly or late.

    They see no GPU. With one process there are no ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        codes = _exit_codes(_started(script, arguments, processes, printed), until=time.monotonic() + timeout)
        output = printed.read_text(errors="replace")
    assert codes == [expect] * processes, f"{script} ended with {codes} after at most {timeout} s:\n{output}"
    return output


def _started(script: str | Path, arguments: tuple[object, ...], processes: int, printed: Path) -> list[BaseProcess]:
    given = str(script), [*map(str, arguments)]
    environment = {**os.environ, **_SET}
    if processes == 1:
        return [start(_be_script, *given, environment, str(printed))]
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [
        start(_be_script, *given, {**environment, "RANK": rank, "LOCAL_RANK": rank}, str(printed))
        for rank in map(str, range(processes))
    ]


def _exit_codes(ranks: list[BaseProcess], until: float) -> list[int | None]:
    """Wait for all; when one fails, the others, which wait for it, have five seconds left."""
    try:
        while (alive := [rank.sentinel for rank in ranks if rank.is_alive()]) and time.monotonic() < until:
            wait(alive, timeout=1)
            if any(rank.exitcode for rank in ranks):
                until = min(until, time.monotonic() + 5)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [rank.exitcode for rank in ranks]


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run a function in a process that is forked from the one with the imports, which the first call starts."""
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(_IMPORTED)
    process = forked.Process(target=function, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        for name, value in _SET.items():
            patch.setenv(name, value)
        process.start()
    return process


def _be_script(script: str, arguments: list[str], environment: dict[str, str], printed: str) -> None:
    gc.freeze()  # else each `train()` searches all that was imported for garbage
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    file = os.open(printed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
