"""plot_threshold draws what the result knows, and imports matplotlib only then."""

import subprocess
import sys

import numpy as np
import pytest

from hf_freeze.binary.result import ThresholdResult
from hf_freeze.binary.threshold import tune_threshold
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.plots import plot_threshold


@pytest.fixture(scope="module")
def tuned():
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.1
    return tune_threshold(rng.normal(2.0 * labels), labels)


@pytest.mark.parametrize("n_boot", [0, 200])
@pytest.mark.parametrize("objective", ["f1", "mcc"])
def test_the_picture_shows_the_chosen_point_in_all_three_parts(tmp_path, n_boot, objective):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.1
    result = tune_threshold(rng.normal(2.0 * labels), labels, n_boot=n_boot, objective=objective)
    figure = plot_threshold(result, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    against, roc, precision_recall = figure.axes
    recall, fpr, precision = result.tp / result.n_pos, result.fp / result.n_neg, result.tp / (result.tp + result.fp)
    assert point(roc) == pytest.approx((fpr, recall))
    assert point(precision_recall) == pytest.approx((recall, precision))
    names = [text.get_text() for text in against.get_legend().get_texts()]
    assert names[:3] == ["precision", "recall", objective]
    assert ("out of bag" in names) == ("95 % of re-tunings" in names) == bool(n_boot)
    curve = next(line for line in against.lines if line.get_label() == objective)
    assert curve.get_ydata().max() == pytest.approx(result.value, abs=0.01)


def point(axes):
    (chosen,) = [line for line in axes.lines if line.get_label() == "chosen"]
    return float(chosen.get_xdata()[0]), float(chosen.get_ydata()[0])


def test_a_result_that_was_saved_can_be_drawn(tmp_path, tuned):
    pytest.importorskip("matplotlib")
    tuned.save(tmp_path / "t.json")
    assert len(plot_threshold(ThresholdResult.load(tmp_path / "t.json")).axes) == 3


def test_a_threshold_without_a_curve_cannot_be_drawn():
    with pytest.raises(FreezeError, match="no curve to draw"):
        plot_threshold(ThresholdResult(threshold=0.0))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tuned):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FreezeError, match=r'pip install "hf_freeze\[plots\]"'):
        plot_threshold(tuned)


def test_importing_the_room_imports_neither_matplotlib_nor_evaluate():
    check = (
        "import sys, hf_freeze.reporting.plots, hf_freeze.binary.metrics\n"
        "assert not {'matplotlib', 'evaluate', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
