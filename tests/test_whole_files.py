"""A file is whole or not there, whenever the process ends; and there is one way to see to that."""

import os
import re
import signal
from pathlib import Path

import pytest

import hf_freeze
from hf_freeze.whole_files import whole_file, whole_folder, write_text
from tests.forked import start


@pytest.mark.parametrize("before", [None, "old"])
def test_after_an_error_the_file_is_as_it_was_and_nothing_is_left(tmp_path, before):
    path = tmp_path / "file.json"
    if before is not None:
        path.write_text(before)

    def write_half():
        with whole_file(path) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    with whole_file(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    write_text(tmp_path / "other.json", "é")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "file.json": b"new",
        "other.json": "é".encode(),
    }


def _half_written(path: Path) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_the_old_file_and_a_hidden_one_that_bears_its_number(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    killed = start(_half_written, path)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "file.json": "old",
        f".file.json.{killed.pid}.tmp": "half",
    }


def test_no_two_processes_write_to_one_temporary_file(tmp_path):
    with whole_file(tmp_path / "file") as unfinished:
        unfinished.touch()
        assert str(os.getpid()) in unfinished.name


def test_a_folder_is_there_once_it_is_whole_and_after_an_error_nothing_is(tmp_path):
    def write(*, fails):
        with whole_folder(tmp_path / "new") as unfinished:
            (unfinished / "one").write_text("1")
            assert not (tmp_path / "new").exists()
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(fails=True)
    assert list(tmp_path.iterdir()) == []
    write(fails=False)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["new", "new/one"]


def test_there_is_one_way_to_write_whole_files():
    package = Path(hf_freeze.__file__).parent
    renames = re.compile(r"os\.replace|os\.rename|getpid|\.rename\(|\.replace\(path|mkstemp|NamedTemporaryFile")
    found = [path.name for path in package.rglob("*.py") if renames.search(path.read_text(encoding="utf-8"))]
    assert found == ["whole_files.py"]
