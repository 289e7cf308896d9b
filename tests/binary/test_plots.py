"""plot_threshold draws what the result knows, and imports matplotlib only then."""

import sys

import numpy as np
import pytest

from hf_freeze import FreezeError, ThresholdResult, tune_threshold
from hf_freeze.reporting.threshold_plot import plot_threshold


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


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")  # few rows
@pytest.mark.parametrize("rows", [2, 5000])
@pytest.mark.parametrize("select", ["exact", "bagged"])
def test_at_the_chosen_threshold_every_line_has_the_chosen_figures(rows, select):
    cbook = pytest.importorskip("matplotlib.cbook")
    rng = np.random.default_rng(1)
    labels = np.arange(rows) % 2 == 1
    result = tune_threshold(rng.normal(size=rows) + 5.0 * labels, labels, select=select)
    axes = plot_threshold(result).axes[0]
    precision = result.tp / (result.tp + result.fp)
    figures = {"precision": precision, "recall": result.tp / result.n_pos, "f1": result.value}
    for name, value in figures.items():
        (line,) = [line for line in axes.lines if line.get_label() == name]
        corners = cbook.STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())
        assert np.interp(np.nextafter(result.threshold, -np.inf), *corners) == pytest.approx(value, abs=1e-12), name


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")  # few rows
def test_a_threshold_that_lets_nothing_through_has_no_precision_to_draw():
    pytest.importorskip("matplotlib")
    labels = np.arange(40) % 10 == 5
    result = tune_threshold(np.arange(40.0), labels, objective="accuracy", n_boot=0)
    assert result.status == "predict_none"
    figure = plot_threshold(result)
    (precision,) = [line for line in figure.axes[0].lines if line.get_label() == "precision"]
    drawn = precision.get_ydata()
    assert np.isnan(drawn[-2:]).all()
    assert np.isfinite(drawn[:-2]).all()


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")  # few rows
def test_without_re_tunings_no_legend_names_them():
    pytest.importorskip("matplotlib")
    labels = np.arange(40) % 2 == 1
    for n_boot, named in ((0, False), (50, True)):
        result = tune_threshold(np.arange(40) + 7.0 * labels, labels, n_boot=n_boot)
        for axes in plot_threshold(result).axes:
            names = [text.get_text() for text in axes.get_legend().get_texts()]
            assert ("95 % of re-tunings" in names) is named


def test_what_is_no_result_cannot_be_drawn():
    with pytest.raises(FreezeError, match="0.5 is not a ThresholdResult: give what tune_threshold"):
        plot_threshold(0.5)


def test_a_threshold_without_a_curve_cannot_be_drawn():
    with pytest.raises(FreezeError, match="no curve to draw"):
        plot_threshold(ThresholdResult(threshold=0.0))


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, tuned):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FreezeError, match=r'pip install "hf_freeze\[plots\]"'):
        plot_threshold(tuned)
