"""A mechanism without a test shows: each of the small changes to the package makes the tests fail that are named."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import hf_freeze
from tests.launch import run
from tests.mutations.changes import CHANGES

PACKAGE = Path(hf_freeze.__file__).parent
RUNNER = Path(__file__).with_name("runner.py")
named = pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.file}: {change.old.strip()[:40]}")


@named
def test_what_a_change_replaces_is_still_there_once(change):
    """A stale entry: point it to where the mechanism is now."""
    assert (PACKAGE / change.file).read_text(encoding="utf-8").count(change.old) == 1


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(change, test) -> exit code and output of pytest; under (None, None) that of all tests on the package as it is."""
    folder = tmp_path_factory.mktemp("changed")
    jobs = {(None, None): [str(PACKAGE.parent), sorted({test for change in CHANGES for test in change.tests})]}
    for number, change in enumerate(CHANGES):
        copy = folder / str(number) / "hf_freeze"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        source = copy / change.file
        source.write_text(source.read_text(encoding="utf-8").replace(change.old, change.new), encoding="utf-8")
        jobs |= {(change, test): [str(copy.parent), [test]] for test in change.tests}
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
            f"{test} passes although {change.old!r} is {change.new!r}:\n{output}"
        )
