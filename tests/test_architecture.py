"""The package keeps to its own map: which room may import which, and what it offers at the top."""

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_freeze

PACKAGE = Path(hf_freeze.__file__).parent

# room -> rooms that it may import; every room may import these
SHARED = {"errors", "label_columns", "main_process", "module_types", "no_trace", "tensor_parts", "whole_files"}
ARROWS = {
    "selection": set(),
    "plan": {"selection"},
    "binary": set(),
    "private": set(),
    "model_inputs": {"binary"},
    "debugging": {"model_inputs", "binary", "selection"},
    "features": set(),
    "training": {"plan", "selection", "binary", "features", "model_inputs", "private"},
    "reporting": {"training", "plan", "selection", "binary", "debugging", "features", "model_inputs"},
}


def imported_rooms(source: Path) -> set[str]:
    return rooms_in(source.read_text(encoding="utf-8"), ["hf_freeze", *source.relative_to(PACKAGE).parent.parts])


def rooms_in(code: str, package: list[str]) -> set[str]:
    """The rooms that a module of `package` imports: anywhere in it, by a name of the top, or by a string."""
    rooms = set()
    for node in ast.walk(ast.parse(code)):
        for name in _imported(node, package):
            top, _, rest = name.partition(".")
            if top == "hf_freeze":
                first = rest.partition(".")[0] or "hf_freeze"
                rooms.add(HOMES.get(first, first))
    return rooms


def _imported(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = (
            ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])]) if node.level else ""
        )
        return [f"{start or node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        # A name that is put together while running could be anything.
        name, *rest = [one.value if isinstance(one, ast.Constant) else "hf_freeze" for one in given]
        return [f"{rest[0]}{name}" if str(name).startswith(".") and rest else str(name)]
    return []


def _homes() -> dict[str, str]:
    """The room of each name that the package offers at the top."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [
        node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_freeze.")
    ]
    return {alias.asname or alias.name: node.module.split(".")[1] for node in imports for alias in node.names}


HOMES = _homes()


@pytest.mark.parametrize(
    "code",
    [
        "import hf_freeze.training.trainer",
        "import hf_freeze.training as rooms",
        "from hf_freeze.training.trainer import FreezeTrainer",
        "from hf_freeze import FreezeTrainer",
        "from hf_freeze import training",
        "from ..training import trainer",
        "from .. import training",
        "from .. import FreezeTrainer",
        "def late():\n    from hf_freeze import FreezeTrainer",
        "if TYPE_CHECKING:\n    from hf_freeze.training.trainer import FreezeTrainer",
        "import importlib\nimportlib.import_module('hf_freeze.training.trainer')",
        "from importlib import import_module\nimport_module('.training.trainer', 'hf_freeze')",
        "from importlib import import_module\nimport_module('.training', package='hf_freeze')",
        "__import__('hf_freeze.training')",
    ],
)
def test_an_import_is_seen_however_it_is_written(code):
    assert rooms_in(code, ["hf_freeze", "debugging"]) == {"training"}


@pytest.mark.parametrize("code", ["import hf_freeze", "from hf_freeze import *", "importlib.import_module(name)"])
def test_what_could_be_any_room_is_allowed_to_none(code):
    (seen,) = rooms_in(code, ["hf_freeze", "debugging"])
    assert seen not in {"errors", *ARROWS}


def test_rooms_import_only_what_the_design_allows() -> None:
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(rooms) == sorted(ARROWS)
    for room, allowed in ARROWS.items():
        for source in (PACKAGE / room).rglob("*.py"):
            assert imported_rooms(source) <= {*allowed, room, *SHARED}, source


def test_only_the_training_room_meets_both_freezing_and_thresholds() -> None:
    meeting = [path.name for path in (PACKAGE / "training").glob("*.py") if "binary" in imported_rooms(path)]
    assert sorted(meeting) == ["model_card.py", "thresholds.py"]


def test_the_selection_language_and_the_plan_know_no_torch() -> None:
    pure = [PACKAGE / "selection" / f"{name}.py" for name in ("language", "vocabulary")]
    for source in [*pure, *(PACKAGE / "plan").glob("*.py")]:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "torch" for name in names), source


# Each list below holds what still goes against its rule. None of them may grow.

SAME_FILE_NAMES = {"errors.py"}
PRIVATE_NAMES_OF_ANOTHER_ROOM = {
    # of torch and datasets
    ("reporting", "_dataset"),
}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    return ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")


def imported_modules() -> dict[str, set[str]]:
    """Module of the package -> those that it imports, anywhere in it, for types alone as well."""
    modules = {module_of(path): (path, tree) for path, tree in sources()}
    imports: dict[str, set[str]] = {}
    for module, (path, tree) in modules.items():
        package = ["hf_freeze", *path.relative_to(PACKAGE).parent.parts]
        full = (name for node in ast.walk(tree) for name in _imported(node, package))
        names = [name.removeprefix("hf_freeze.") for name in full if name.startswith("hf_freeze.")]
        imports[module] = {found for name in names for found in (name, name.rpartition(".")[0]) if found in modules}
    return imports


def reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    seen, ahead = set(), [start]
    while ahead:
        for following in imports[ahead.pop()] - seen:
            seen.add(following)
            ahead.append(following)
    return seen


def test_no_modules_import_each_other_in_a_circle() -> None:
    imports = imported_modules()
    assert len(imports["training.trainer"]) > 5
    beyond = {module: reached(module, imports) for module in imports if module}  # "" is the package, which has all
    circles = {
        frozenset({other for other in beyond[module] if module in beyond.get(other, ())})
        for module in beyond
        if module in beyond[module]
    }
    assert circles == set()


def test_no_file_is_long() -> None:
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines()) for path, _ in sources()}
    assert not {name for name, lines in lengths.items() if lines > 400}


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.name for path, _ in sources())
    assert {name for name, times in names.items() if times > 1} - {"__init__.py"} <= SAME_FILE_NAMES


def private_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The names with a leading underscore that a module defines, and those that it reads, also as a string."""
    defined, read = set(), set()
    # f"{prefix}_loss" reads no attribute.
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if id(node) in pieces:
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            (defined if isinstance(node.ctx, ast.Store) else read).add(name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)
        elif isinstance(node, ast.ImportFrom):
            read.update(alias.name for alias in node.names)
    return tuple({name for name in names if name[:1] == "_" != name[1:2]} for names in (defined, read))


def test_a_private_name_is_seen_in_every_form() -> None:
    code = (
        "from a import _one\nb._two\ngetattr(c, '_three')\n_four()\n__all__ = [b.__dict__]\nself._five = 0\nf'{d}_six'"
    )
    assert private_names(ast.parse(code)) == ({"_five"}, {"_one", "_two", "_three", "_four"})


# The command line, and names that stand among others of their kind.
OFFERED = {
    "main",
    "specificity",
    *("Everything", "DottedPath", "Regex", "Layers"),
    *("gradual", "fine_tune", "auto_freeze", "rotate", "norms_only", "biases_only"),
}


def test_what_only_its_own_file_uses_is_private() -> None:
    """Apart from types: others may hold an object without naming its class."""
    tests = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.rglob("*.py"))
    by_tests = set(re.findall(r"\w+", tests))
    trees = [tree for _, tree in sources()]
    users = Counter(name for tree in trees for name in names_of_others(tree))
    lonely = {
        name
        for tree in trees
        for name in public_definitions(tree) - by_tests - offered_types(tree)
        if not users[name] - (name in names_of_others(tree))
    }
    assert lonely <= OFFERED


def names_of_others(tree: ast.Module) -> set[str]:
    """The names that a module imports, or reads as attributes."""
    nodes = list(ast.walk(tree))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return imported | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def public_definitions(tree: ast.Module) -> set[str]:
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [
        target for node in assigned for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") and name != "logger"}


def offered_types(tree: ast.Module) -> set[str]:
    """The names in annotations of fields, of public functions and of constructors, in type aliases and in bases."""
    parts: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            parts += [node.args, *filter(None, [node.returns])]
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation, *filter(None, [node.value])]
        elif isinstance(node, ast.ClassDef):
            parts += node.bases
    return {name.id for part in parts for name in ast.walk(part) if isinstance(name, ast.Name)}


def test_no_room_reads_the_private_names_of_another() -> None:
    homes: dict[str, set[str]] = {}
    reads = set()
    for path, tree in sources():
        room = module_of(path).partition(".")[0]
        defined, read = private_names(tree)
        for name in defined:
            homes.setdefault(name, set()).add(room)
        reads |= {(room, name) for name in read}
    assert "_freezing" in homes
    # The room `private` lists names of the dependencies, some of which a class of ours overrides.
    across = {(room, name) for room, name in reads if room != "private" and room not in homes.get(name, {room})}
    assert across <= PRIVATE_NAMES_OF_ANOTHER_ROOM


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
