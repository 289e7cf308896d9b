"""The package keeps to its own map: which room may import which, and what it offers at the top."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import hf_freeze

PACKAGE = Path(hf_freeze.__file__).parent

# room -> rooms that it may import; every room may import these
SHARED = {"errors", "label_columns"}
ARROWS = {
    "selection": set(),
    "plan": {"selection"},
    "binary": set(),
    "debugging": {"binary"},
    "features": set(),
    "training": {"plan", "selection", "binary", "features"},
    "reporting": {"training", "plan", "selection", "binary", "debugging", "features"},
}


def imported_rooms(source: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("hf_freeze.")}
    return rooms


def test_rooms_import_only_what_the_design_allows() -> None:
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(rooms) == sorted(ARROWS)
    for room, allowed in ARROWS.items():
        for source in (PACKAGE / room).rglob("*.py"):
            assert imported_rooms(source) <= {*allowed, room, *SHARED}, source


def test_only_the_training_room_meets_both_freezing_and_thresholds() -> None:
    meeting = [path.name for path in (PACKAGE / "training").glob("*.py") if "binary" in imported_rooms(path)]
    assert meeting == ["thresholds.py"]


def test_the_selection_language_and_the_plan_know_no_torch() -> None:
    pure = [PACKAGE / "selection" / "language.py", *(PACKAGE / "plan").glob("*.py")]
    for source in pure:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "torch" for name in names), source


def test_all_is_sorted_and_complete() -> None:
    public = [name for name, value in vars(hf_freeze).items() if not name.startswith("_") and not _is_room(value)]
    assert hf_freeze.__all__ == sorted(hf_freeze.__all__)
    assert set(hf_freeze.__all__) == {*public, "recipes"}


def _is_room(value: object) -> bool:
    return inspect.ismodule(value)


def test_every_public_name_has_a_docstring() -> None:
    bare = [name for name in hf_freeze.__all__ if not (getattr(hf_freeze, name).__doc__ or "").strip()]
    assert not bare


def test_importing_the_package_sets_nothing_up() -> None:
    code = (
        "import logging, warnings\n"
        "import sys, datasets, torch, transformers, peft, accelerate\n"
        "handlers, filters = list(logging.root.handlers), list(warnings.filters)\n"
        "import hf_freeze\n"
        "assert list(logging.root.handlers) == handlers and list(warnings.filters) == filters\n"
        "assert not logging.getLogger('hf_freeze').handlers\n"
        "assert not {'matplotlib', 'evaluate', 'deepspeed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
