"""Start a script in several processes, and show what it printed when it fails."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def accelerate_launch(
    script: str | Path, *arguments: object, processes: int = 2, flags: Sequence[str] = (), timeout: float = 240
) -> str:
    """Run `script` under `accelerate launch` with `processes` gloo processes; return what it printed.

    The script's own arguments must have `use_cpu=True`. `flags` are for `accelerate launch` itself. Fails with the whole output when it ends badly or late.
    """
    setup = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    setup += ["--dynamo_backend", "no", "--main_process_port", str(free_port())]
    kind = flags or (["--multi_gpu"] if processes > 1 else [])
    command = [sys.executable, "-m", "accelerate.commands.launch", *kind, *setup, str(script), *map(str, arguments)]
    return run(command, timeout=timeout)


def torchrun(script: str | Path, *arguments: object, processes: int = 2, timeout: float = 240) -> str:
    """Run `script` under torchrun; return what it printed."""
    setup = ["--nproc_per_node", str(processes), "--master_port", str(free_port())]
    return run(
        [sys.executable, "-m", "torch.distributed.run", *setup, str(script), *map(str, arguments)], timeout=timeout
    )


def run(command: list[str], *, timeout: float, expect: int = 0) -> str:
    """Run a command from the repository root; fail with its output unless it exits with `expect`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # Not with SIGKILL at once: torchrun's workers have sessions of their own, and it takes them along on SIGTERM only.
        os.killpg(child.pid, signal.SIGTERM)
        try:
            output, _ = child.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output = "(it could not be ended, and its output is lost)"
        raise AssertionError(f"{' '.join(command)} took longer than {timeout} s:\n{output}") from None
    assert child.returncode == expect, f"{' '.join(command)} exited with {child.returncode}:\n{output}"
    return output


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
