"""Set-up of the tests that train."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from tests.launch import run


@pytest.fixture(scope="session")
def deepspeed_extensions(tmp_path_factory):
    """What DeepSpeed compiles, compiled once in a folder of this session.

    torch's own folder may hold the lock of a run that was killed while it compiled, and every later one waits for it.
    """
    if find_spec("deepspeed") is None:  # not importorskip: importing it takes seconds and warns
        pytest.skip("DeepSpeed does not run on Windows")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "torch_extensions"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        compile_once(folder, lambda: run([sys.executable, "-c", COMPILE], timeout=590))
        yield folder


COMPILE = "from deepspeed.comm.torch import build_shm_op; build_shm_op()"  # all that an engine on CPUs compiles


def compile_once(folder: Path, into_folder: Callable[[], object]) -> None:
    """Compile into `folder`, unless another worker did; what a compilation left that did not come to its end goes."""
    done = folder.with_name(f"{folder.name}.compiled")
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            into_folder()
            done.touch()
