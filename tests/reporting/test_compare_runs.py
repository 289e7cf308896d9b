"""A finished run is one file, whole or not there, and is found again under the digest of its settings only."""

import pytest
import torch

from hf_freeze.reporting.comparison.peak_memory import peak_memory
from hf_freeze.reporting.comparison.runs import digest, path_of, read_run, write_run
from tests.reporting.compared import run


def test_what_is_read_is_what_was_written(tmp_path):
    path = path_of(tmp_path / "runs", "my plan/1", 3, "k" * 64)
    assert path.name == f"my_plan_1-seed3-{'k' * 16}.json"
    write_run(path, run(), "k")
    assert read_run(path, "k") == run()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_run_with_another_digest_is_not_read(tmp_path):
    write_run(tmp_path / "run.json", run(), "key")
    assert read_run(tmp_path / "run.json", "other") is None
    assert read_run(tmp_path / "none.json", "key") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "",
        lambda text: text.replace("seconds", "secs"),
    ],
)
def test_a_damaged_file_is_made_again(tmp_path, damage):
    path = tmp_path / "run.json"
    write_run(path, run(), "key")
    path.write_text(damage(path.read_text()))
    assert read_run(path, "key") is None


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path / "run.json", run(), "key")
    assert not list(tmp_path.iterdir())


def test_the_digest_depends_on_every_value_and_not_on_the_order_of_keys_or_sets():
    settings = {"rate": 0.1, "modules": {"a", "b"}, "plan": {"trainable": "head"}}
    assert digest(settings) == digest(dict(reversed(settings.items())))
    assert digest(settings) == digest({**settings, "modules": {"b", "a"}})
    assert digest(settings) != digest({**settings, "rate": 0.2})
    assert digest(settings) != digest({**settings, "plan": {"trainable": "norms"}})


def test_quarters_of_the_training_loss():
    losses = run(training_losses=tuple(float(value) for value in range(8)))
    assert [losses.training_loss(quarter) for quarter in (1, 2, 3, 4)] == [0.5, 2.5, 4.5, 6.5]
    assert losses.training_loss_error == pytest.approx(0.5)
    assert run(training_losses=(0.4,)).training_loss() == 0.4
    assert run(training_losses=(0.4,)).training_loss_error == float("inf")


def test_the_peak_is_seen_also_where_an_earlier_piece_of_work_took_more():
    kept = []

    def work(megabytes):
        with peak_memory(torch.device("cpu")) as peak:
            blocks = [torch.ones(12_500) for _ in range(20 * megabytes)]
            kept.append(blocks[-1])  # on top of the heap, which keeps all below it
        return peak.bytes / 1e6

    assert work(200) == pytest.approx(200, rel=0.15)
    assert work(100) == pytest.approx(100, rel=0.15)
