"""Run pytest on changed copies of the package: `runner.py jobs.json`, a list of [folder of the copy, tests].

Each copy is imported in a fork of one process that has the libraries loaded, which saves seconds for each; two run at a
time. Prints in its last line, as JSON, the exit code of each and the end of what it printed.
"""

import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

LIBRARIES = [
    "accelerate",
    "datasets",
    "deepspeed",  # accelerate imports it wherever a Trainer unwraps its model
    "peft",
    "sentence_transformers",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
    "transformers.pipelines",
    "transformers.trainer",
    "trl",
    *("anyio.pytest_plugin", "pytest_cov.plugin", "pytest_timeout", "xdist.plugin"),  # pytest's own plugins
]
OPTIONS = ["-q", "-x", "--no-header", "-p", "no:cacheprovider", "--hypothesis-profile", "first failure"]
IMPORTED = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # the libraries were
NOT_RUN, BROKEN = 99, 98
NOT_READ = (ImportError, NameError, SyntaxError)


# The same examples in each run, and none that is only smaller than the first that fails.
settings.register_profile("first failure", deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


class EndOfFork:
    """Ends the fork when its last test has run: the garbage that pytest collects then, twice, takes as long as a test."""

    def __init__(self) -> None:
        self.broken = False

    def pytest_exception_interact(self, call: pytest.CallInfo) -> None:
        self.broken |= call.excinfo is not None and issubclass(call.excinfo.type, NOT_READ)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.code = BROKEN if self.broken else int(exitstatus)

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self) -> None:
        leave(self.code)


def leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(folder: str, tests: list[str], output: int) -> int:
    """Run pytest in a fork; return its process id.

    It exits with 99 when it did not come to run any test, and with 98 when one ended with an error that says that the
    change cannot be imported or names what does not exist.
    """
    child = os.fork()
    if child:
        return child
    code = NOT_RUN
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, folder)
        import hf_freeze

        assert Path(hf_freeze.__file__).is_relative_to(folder)
        torch.set_num_threads(1)
        code = int(pytest.main([*OPTIONS, *IMPORTED, *tests], plugins=[EndOfFork()]))
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def outcome(job: tuple[str, list[str]]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        code = os.waitstatus_to_exitcode(os.waitpid(start(*job, output.fileno()), 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="replace")[-3000:]


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()  # else each fork goes through the garbage of all libraries
    with ThreadPoolExecutor(2) as two:
        print(json.dumps(list(two.map(outcome, json.loads(Path(sys.argv[1]).read_text())))))
