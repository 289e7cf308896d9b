"""The README's code runs, its commands exist, and its files are there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hf_freeze import FreezePlan

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_python_block_runs_after_the_ones_before_it(tmp_path) -> None:
    found = blocks("python")
    assert len(found) >= 6
    script = tmp_path / "readme.py"
    script.write_text("\n".join(found), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_yaml_block_is_the_plan_of_the_python_block(tmp_path) -> None:
    (plan,) = [block for block in blocks("yaml") if "stages:" in block]
    (tmp_path / "plan.yaml").write_text(plan, encoding="utf-8")
    namespace: dict[str, object] = {}
    exec(next(block for block in blocks("python") if "Plateau" in block), namespace)
    assert FreezePlan.load(tmp_path / "plan.yaml") == namespace["plan"]
    assert yaml.safe_load(plan)["trainable"] == "head"


@pytest.mark.parametrize(
    "script", sorted(set(re.findall(r"(?:bash|python|\s)\s+((?:examples|tests)/\S+\.(?:sh|py))", README)))
)
def test_every_script_that_a_command_names_exists(script) -> None:
    assert (ROOT / script).is_file()


def test_every_picture_that_is_shown_exists_and_is_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((\S+)\)", README)
    assert shown
    for picture in shown:
        assert 0 < (ROOT / picture).stat().st_size < 60_000, picture


def test_the_two_commands_are_named() -> None:
    commands = "\n".join(blocks("bash"))
    assert "bash examples/quickstart.sh" in commands
    assert "bash tests/run.sh" in commands


def quickstart_flags() -> list[list[str]]:
    """The flags of every quickstart command in the README, the long lines joined; the plain command has none."""
    commands = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(command, comments=True)[2:] for command in commands if "examples/quickstart.sh" in command]
    return [flags for flags in found if flags]


@pytest.mark.slow
@pytest.mark.parametrize("flags", quickstart_flags(), ids=" ".join)
def test_every_quickstart_command_runs(tmp_path, flags) -> None:
    small = ["--max_rows", "200", "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    done = subprocess.run(
        ["bash", ROOT / "examples" / "quickstart.sh", *flags, *small], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Verified: what is frozen stood still, what is trainable moved.")
