"""Run pytest on changed copies of the package: `runner.py jobs.json`, a list of [folder of the copy, tests].

Each copy is imported in a fork of one process that has the libraries loaded, which saves seconds for each; two run at a
time. Prints in its last line, as JSON, the exit code of each and the end of what it printed.
"""

import json
import os
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import accelerate  # noqa: F401
import datasets  # noqa: F401
import hypothesis  # noqa: F401
import peft  # noqa: F401
import pytest
import sklearn.metrics  # noqa: F401
import torch
from transformers import BertForSequenceClassification, Trainer  # noqa: F401

OPTIONS = ["-q", "-x", "--no-header", "-p", "no:cacheprovider"]
IMPORTED = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # the libraries were, above


def start(folder: str, tests: list[str], output: int) -> int:
    """Run pytest in a fork; return its process id. It exits with 99 when it did not come to run any test."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, folder)
        import hf_freeze

        assert Path(hf_freeze.__file__).is_relative_to(folder)
        torch.set_num_threads(1)
        code = int(pytest.main([*OPTIONS, *IMPORTED, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome(job: tuple[str, list[str]]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        code = os.waitstatus_to_exitcode(os.waitpid(start(*job, output.fileno()), 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="replace")[-3000:]


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as two:
        print(json.dumps(list(two.map(outcome, json.loads(Path(sys.argv[1]).read_text())))))
