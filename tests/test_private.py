"""What other packages call private is listed, and held against the installed versions where the Trainer is imported."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import Trainer

import hf_freeze
from hf_freeze import FreezeTrainer, UnsupportedSetupError
from hf_freeze.private import of_transformers
from hf_freeze.private.name import PrivateName
from hf_freeze.private.require import LISTED, names_used, require_private
from tests.models import tiny_bert

pytestmark = pytest.mark.smoke
PACKAGE = Path(hf_freeze.__file__).parent
ENFORCED = [pytest.param(one, id=f"{one.owner}.{one.name}") for one in LISTED if one.use != "guarded"]
OF_PYTHON = {"_actions", "_asdict", "_current_frames"}
NO_NAMES = {"_layerwise", "_loss", "_per_second", "_runtime", "_token_id", "_token_index"}  # endings of strings


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for source in PACKAGE.rglob("*.py"):
        if source.parent.name != "private":
            yield source, ast.parse(source.read_text(encoding="utf-8"))


def private_names(tree: ast.Module) -> Iterator[str]:
    """Every name with one leading underscore that is looked up, imported, overridden, or given as a string."""
    # f"{name}_uncalibrated" looks nothing up.
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        found = []
        if id(node) in pieces:
            continue
        if isinstance(node, ast.Attribute):
            found = [node.attr]
        elif isinstance(node, ast.FunctionDef):
            found = [node.name]
        elif isinstance(node, ast.keyword):
            found = [node.arg or ""]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found = [node.value]
        elif isinstance(node, ast.ImportFrom):
            found = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            found = [part for alias in node.names for part in alias.name.split(".")]
        yield from (name for name in found if name.startswith("_") and not name.startswith("__") and name != "_")


def own_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def unlisted(tree: ast.Module, own: set[str]) -> set[str]:
    of_trainer = set(names_used(Trainer)) | set(dir(Trainer))
    foreign = {name for name in private_names(tree) if name not in own or name in of_trainer}
    return foreign - {one.name for one in LISTED} - OF_PYTHON - NO_NAMES


def test_a_name_that_is_looked_up_by_a_string_is_used():
    class Reads:
        def by_string(self):
            return getattr(self, "_hidden", None)

        @property
        def by_comprehension(self):
            return [one._inner for one in self]

    assert {"_hidden", "_inner"} <= {*names_used(Reads)}


def test_every_private_name_of_another_package_is_listed() -> None:
    marks = {"_parameters_frozen_by_hf_freeze", "_rows_frozen_by_hf_freeze", "_frozen_features"}
    own = {name for _, tree in trees() for name in own_names(tree)} | marks
    for source, tree in trees():
        assert unlisted(tree, own) == set(), source


@pytest.mark.parametrize(
    "code",
    [
        "class Mine(Trainer):\n    def _inner_training_loop(self): ...",
        "trainer._nested_gather(x)",
        "getattr(trainer, '_nested_gather')",
        "replaced(trainer, _nested_gather=None)",
        "from torch._tensor import Tensor",
        "import torch._dynamo",
        "self._created_lr_scheduler = 1",
    ],
)
def test_a_private_name_is_seen_however_it_is_used(code: str) -> None:
    assert len(unlisted(ast.parse(code), set(own_names(ast.parse(code))))) == 1


def test_every_listed_name_is_used() -> None:
    text = "\n".join(source.read_text(encoding="utf-8") for source, _ in trees())
    assert [one for one in LISTED if one.name not in text] == []


def test_the_installed_versions_have_what_is_listed() -> None:
    require_private()


@pytest.mark.parametrize("listed", ENFORCED)
def test_a_name_that_is_gone_is_named_with_version_and_purpose(listed: PrivateName) -> None:
    gone = PrivateName(listed.owner, f"{listed.name}_before", listed.use, listed.purpose)
    package = listed.owner.partition(".")[0].partition(":")[0]
    version = sys.modules[package].__version__
    with pytest.raises(UnsupportedSetupError, match=re.escape(f"{package} {version}")) as raised:
        require_private([gone])
    assert gone.name in str(raised.value)
    assert listed.purpose in str(raised.value)


def test_an_owner_that_is_gone_is_named() -> None:
    with pytest.raises(UnsupportedSetupError, match="has no torch.nn.Unit"):
        require_private([PrivateName("torch.nn:Unit", "_buffers", "set", "it works")])
    with pytest.raises(UnsupportedSetupError, match="has no torch.units"):
        require_private([PrivateName("torch.units", "_buffers", "attribute", "it works")])


def test_a_trainer_is_not_built_where_an_override_would_never_be_called(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "_evaluate_now", Trainer._evaluate, raising=False)
    monkeypatch.delattr(Trainer, "_evaluate")
    monkeypatch.syspath_prepend(PACKAGE.parent)  # this copy of it
    with pytest.raises(UnsupportedSetupError, match="transformers .* has no .*_evaluate.* threshold"):
        FreezeTrainer(tiny_bert(), transformers.TrainingArguments(str(tmp_path / "out"), report_to=[]))
    assert not (tmp_path / "out").exists()


def test_an_override_that_exists_but_is_never_called_is_refused(monkeypatch) -> None:
    """`_save_checkpoint` stays for those who call it; training saves by another name."""

    def save_otherwise(self, *args, **kwargs):
        self.save_model()

    monkeypatch.setattr(Trainer, "_maybe_log_save_evaluate", save_otherwise)
    with pytest.raises(UnsupportedSetupError, match="never uses .*_save_checkpoint"):
        require_private(of_transformers.NAMES)


def test_importing_the_package_names_what_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(Trainer, "_evaluate_now", Trainer._evaluate, raising=False)
    monkeypatch.delattr(Trainer, "_evaluate")
    monkeypatch.syspath_prepend(PACKAGE.parent)  # this copy of it
    for name in [name for name in sys.modules if name.partition(".")[0] == "hf_freeze"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="_evaluate"):
        importlib.import_module("hf_freeze")
    monkeypatch.undo()
    assert sys.modules["hf_freeze"] is hf_freeze


def test_kinds_of_torch_modules_are_complete() -> None:
    from hf_freeze import module_types as kinds

    nn = torch.nn
    bases = {
        kinds.BATCH_NORMS: nn.modules.batchnorm._BatchNorm,
        kinds.INSTANCE_NORMS: nn.modules.instancenorm._InstanceNorm,
        kinds.DROPOUTS: nn.modules.dropout._DropoutNd,
        kinds.CONVOLUTIONS: nn.modules.conv._ConvNd,
    }
    for public, base in bases.items():
        listed = {one for one in vars(nn).values() if isinstance(one, type) and issubclass(one, base)}
        listed = {one for one in listed if not issubclass(one, nn.modules.lazy.LazyModuleMixin)}  # become the others
        assert {one for one in listed if not issubclass(one, public)} == set()
