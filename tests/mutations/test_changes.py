"""A mechanism without a test shows: each of the small changes to the package makes the tests fail that are named."""

import compileall
import json
import os
import shutil
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

import hf_freeze
from tests.launch import run
from tests.mutations.changes import CHANGES, Change, change
from tests.mutations.runner import BROKEN, NOT_RUN

PACKAGE = Path(hf_freeze.__file__).parent
RUNNER = Path(__file__).with_name("runner.py")
CHECK, OF_CHECK = "def check_head(head: Any) -> None:\n", "binary/margin::the_other_class_may_be_the_positive_one"
BREAKING = {
    change("binary/margin.py", CHECK, f"import missing\n\n{CHECK}", OF_CHECK): NOT_RUN,
    change("binary/margin.py", CHECK, f"{CHECK}    missing\n", OF_CHECK): BROKEN,
}
named = pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.file}: {change.old.strip()[:40]}")


@named
def test_what_a_change_replaces_is_still_there_once(change):
    """A stale entry: point it to where the mechanism is now."""
    assert (PACKAGE / change.file).read_text(encoding="utf-8").count(change.old) == 1


def changed(package: Path, folder: Path, it: Change) -> str:
    """Copy the package into `folder` with the change; return the folder."""
    copy = shutil.copytree(package, folder / "hf_freeze")
    source = copy / it.file
    source.write_text(source.read_text(encoding="utf-8").replace(it.old, it.new), encoding="utf-8")
    Path(cache_from_source(source)).unlink()
    return str(folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(change, test) -> exit code and output of pytest; under (None, None) that of all tests on the package as it is."""
    folder = tmp_path_factory.mktemp("changed")
    compiled = shutil.copytree(PACKAGE, folder / "hf_freeze", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(compiled, quiet=1)  # once, not in each fork
    jobs = {(None, None): [str(PACKAGE.parent), sorted({test for one in CHANGES for test in one.tests})]}
    for number, one in enumerate([*CHANGES, *BREAKING]):
        copy = changed(compiled, folder / str(number), one)
        jobs |= {(one, test): [copy, [test]] for test in one.tests}
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    printed = run([sys.executable, str(RUNNER), str(folder / "jobs.json")], timeout=1500)
    return dict(zip(jobs, json.loads(printed.splitlines()[-1]), strict=True))


slow = pytest.mark.slow
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
timeout = pytest.mark.timeout(1600)


@slow
@forks
@timeout
def test_without_a_change_the_tests_pass(outcomes):
    code, output = outcomes[None, None]
    assert code == 0, output


@slow
@forks
@timeout
@named
def test_a_change_makes_its_tests_fail(outcomes, change):
    for test in change.tests:
        code, output = outcomes[change, test]
        assert code == pytest.ExitCode.TESTS_FAILED, (
            f"{test} ends with {code} and not with a failure where {change.old!r} is {change.new!r}:\n{output}"
        )


@slow
@forks
@timeout
def test_a_change_that_breaks_the_code_does_not_pass_for_one_that_a_test_finds(outcomes):
    assert {one: outcomes[one, one.tests[0]][0] for one in BREAKING} == BREAKING
