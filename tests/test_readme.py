"""The code of README and of the guide runs, their commands exist, and their files are there."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_freeze import FreezePlan, FreezeTrainingArguments, Stage
from tests.forked import run_ranks
from tests.models import tiny_bert

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
BOTH = pytest.mark.parametrize("text", [README, GUIDE], ids=["readme", "guide"])


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@BOTH
def test_every_python_block_runs_after_the_ones_before_it(tmp_path, text) -> None:
    found = blocks("python", text)
    assert len(found) >= 6
    found = [block for block in found if "from trl" not in block or find_spec("trl")]
    script = tmp_path / "readme.py"
    script.write_text("\n".join([f"import os\nos.chdir({str(tmp_path)!r})", *found]), encoding="utf-8")
    run_ranks(script, processes=1)


def test_readme_is_a_front_page() -> None:
    assert len(README.splitlines()) <= 250


def test_the_map_has_every_room_and_no_file_that_is_gone() -> None:
    package, table = ROOT / "hf_freeze", README.split("## Where things are")[1]
    assert {path.parent.name for path in package.glob("*/__init__.py")} <= set(re.findall(r"`(\w+)/`", table))
    files = set(re.findall(r"`(\w+\.py)`", table))
    assert files
    assert files <= {path.name for path in package.rglob("*.py")}


def migrations() -> list[str]:
    """What the table "From your code to hf_freeze" tells people to write: the arguments of each row."""
    table = README.split("## From your code to hf_freeze")[1].split("##")[0]
    rows = [line.split(" | ")[-1] for line in table.splitlines() if line.startswith("| ")][1:]
    found = [fragment for row in rows for fragment in re.findall(r"`((?:\w+=|FreezePlan\().+?)`", row)]
    return found


@pytest.mark.parametrize("written", migrations())
def test_what_the_table_of_other_tools_says_is_understood(tmp_path, written) -> None:
    if written.startswith("FreezePlan("):
        written = f"freeze_plan={written}"
    given = eval(f"dict({written})", {"FreezePlan": FreezePlan, "Stage": Stage})
    plan = given.pop("freeze_plan", None) or FreezeTrainingArguments(tmp_path, **given).freeze_plan()
    assert plan is None or plan.resolve(model_for(written)).ever_trainable


def model_for(written: str) -> torch.nn.Module:
    """A small model of the kind that a row of the table speaks of."""
    if "lm_head" in written:
        shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=34, **shape))
    model = tiny_bert(layers=12)
    return get_peft_model(model, LoraConfig(target_modules=["query"])) if "adapters" in written else model


def test_the_yaml_block_is_the_plan_of_the_python_block(tmp_path) -> None:
    (plan,) = [block for block in blocks("yaml", GUIDE) if "stages:" in block]
    (tmp_path / "plan.yaml").write_text(plan, encoding="utf-8")
    namespace: dict[str, object] = {}
    exec(next(block for block in blocks("python", GUIDE) if "Plateau" in block), namespace)
    assert FreezePlan.load(tmp_path / "plan.yaml") == namespace["plan"]
    assert yaml.safe_load(plan)["trainable"] == "head"


@BOTH
def test_every_link_into_the_repository_leads_somewhere(text) -> None:
    folder = ROOT if text is README else ROOT / "examples"
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)
    assert targets
    for target in targets:
        path, _, section = target.partition("#")
        page = (folder / path).read_text(encoding="utf-8") if section and path else text
        assert not path or (folder / path).is_file(), target
        assert not section or section in map(anchor, re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)), target


def anchor(heading: str) -> str:
    """The name that a heading has in a link."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "script",
    sorted(set(re.findall(r"(?:bash|python|\s)\s+((?:examples|tests)/\S+\.(?:sh|py))", README + GUIDE))),
)
def test_every_script_that_a_command_names_exists(script) -> None:
    assert (ROOT / script).is_file()


def test_every_picture_that_is_shown_exists_and_is_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\((\S+)\)", GUIDE)
    assert shown
    for picture in shown:
        assert 0 < (ROOT / "examples" / picture).stat().st_size < 60_000, picture


def test_the_two_commands_are_named() -> None:
    commands = "\n".join(blocks("bash"))
    assert "bash examples/quickstart.sh" in commands
    assert "bash tests/run.sh" in commands


def quickstart_flags() -> list[list[str]]:
    """The flags of every quickstart command in README and guide, the long lines joined; the plain command has none."""
    commands = "\n".join(blocks("bash", README + GUIDE)).replace("\\\n", " ").splitlines()
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
    assert done.stdout.rstrip().endswith("Verified: frozen weights did not change, trainable ones did.")
