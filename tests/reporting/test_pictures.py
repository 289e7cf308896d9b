"""plot_plan and plot_history draw what training does and did."""

import json
import math
import re
import sys
from itertools import pairwise

import numpy as np
import pytest

from hf_freeze import FreezeError, FreezePlan, Plateau, Stage, plot_history, plot_plan, preview, recipes, tune_threshold
from hf_freeze.reporting.cli import main
from hf_freeze.reporting.comparison.comparison import Comparison
from hf_freeze.reporting.comparison.comparison_plot import plot_comparison
from hf_freeze.reporting.layers.layers_plot import plot_layers
from hf_freeze.reporting.layers.suggestion import DepthScore, ProbeSuggestion
from hf_freeze.reporting.preview.plan_plot import FROZEN, RATE_0
from hf_freeze.reporting.preview.rates import steps_per_epoch
from hf_freeze.reporting.threshold_plot import plot_threshold
from hf_freeze.training.group_names import joined_names
from tests.models import text_rows, tiny_bert
from tests.reporting.compared import evaluation, run
from tests.training.runs import arguments, freeze_trainer, training_logs

PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(epoch=1, unfreeze="layers[-1]"), Stage(fraction=0.75, unfreeze="embeddings", freeze="layers")],
)
RUN = {
    "max_steps": -1,
    "num_train_epochs": 3,
    "warmup_steps": 3,
    "unfreeze_warmup": 2,
    "weight_decay": 0.1,
    "layer_lr_decay": 0.5,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 12 steps in three stages, logged and evaluated."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("run")
    trainer = freeze_trainer(
        tiny_bert(),
        folder,
        rows=text_rows(16),
        eval_dataset=text_rows(8, seed=1),
        eval_strategy="epoch",
        compute_metrics=lambda seen: {"accuracy": 0.25, "f1": 0.75, "count": 8.0},
        freeze_plan=PLAN,
        **{**RUN, "save_strategy": "epoch"},
    )
    trainer.train()
    return trainer


def previewed(folder, plan=PLAN, rows=16, **values):
    return preview(tiny_bert(), arguments(folder, **{**RUN, **values}), plan=plan, rows=rows)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_the_rates_ahead_are_bit_equal_to_those_that_training_logs(tmp_path, kind):
    schedule = previewed(tmp_path, lr_scheduler_type=kind).schedule
    trainer = freeze_trainer(tiny_bert(), tmp_path, freeze_plan=PLAN, **{**RUN, "lr_scheduler_type": kind})
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == schedule.max_steps == 12
    for log in logs:
        logged = {name.removeprefix("lr/"): rate for name, rate in log.items() if name.startswith("lr/")}
        ahead = schedule.rates(log["step"] - 1)
        trains = {name: rate for name, rate in ahead.items() if schedule.trains[name][log["stage"]]}
        assert {shown: trains[name] for shown, name in joined_names(trains).items()} == logged


@pytest.mark.parametrize(
    "values",
    [{"gradient_accumulation_steps": 3}, {"dataloader_drop_last": True}, {"num_train_epochs": 1.5}, {"max_steps": 7}],
)
def test_the_run_is_as_long_as_the_trainer_makes_it(tmp_path, values):
    values = {"lr_scheduler_type": "constant", "per_device_train_batch_size": 3, **values}
    plan = FreezePlan(trainable="head", stages=[Stage(epoch=0.5, unfreeze="layers")])
    schedule = previewed(tmp_path, plan=plan, rows=14, **values).schedule
    trainer = freeze_trainer(tiny_bert(), tmp_path, rows=text_rows(14), freeze_plan=plan, **{**RUN, **values})
    trainer.train()
    assert trainer.state.max_steps == schedule.max_steps
    begins = next(log["step"] for log in training_logs(trainer) if log["stage"] == 1) - 1
    assert begins == schedule.begins[1]


@pytest.mark.parametrize(
    ("processes", "drop_last", "steps"), [(1, False, 4), (1, True, 3), (2, False, 2), (2, True, 1)]
)
def test_an_epoch_is_counted_in_the_share_of_the_rows_that_each_of_several_gets(tmp_path, processes, drop_last, steps):
    args = arguments(tmp_path, per_device_train_batch_size=4, dataloader_drop_last=drop_last)
    args.__class__ = type("Many", (type(args),), {"world_size": processes})
    assert steps_per_epoch(args, 14) == steps


def test_the_picture_of_a_plan_has_the_rates_as_colours_and_grey_where_frozen(tmp_path):
    pytest.importorskip("matplotlib")
    seen = previewed(tmp_path)
    figure = plot_plan(seen, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes[0]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["head", "layers.1", "embeddings"], "groups that differ in weight decay alone share a row"
    idle, learning = [collection.get_array() for collection in axes.collections[:2]]
    for step in range(seen.schedule.max_steps):
        rates = seen.schedule.rates(step)
        for row, name in enumerate(rows):
            stage = np.searchsorted(seen.schedule.begins, step, side="right") - 1
            trains = seen.schedule.trains[name][stage]
            assert shown(learning, row, step) is bool(trains and rates[name])
            assert shown(idle, row, step) is bool(trains and not rates[name])
            if trains and rates[name]:
                assert learning[row, step] == rates[name]
    assert shown(idle, rows.index("head"), 0), "the first step of the warmup"
    assert not shown(idle, rows.index("embeddings"), 0)
    assert axes.get_facecolor()[:3] == pytest.approx(colour(FROZEN))
    lines = [line.get_xdata()[0] for line in axes.lines]
    assert lines == [stage.step for stage in seen.stages[1:]] == [4, 9]
    assert names_above(axes) == ["0: start", "1: epoch 1", "2: fraction 0.75"]


def test_a_layer_whose_turn_it_is_not_is_grey_in_the_picture_of_a_rotation(tmp_path):
    pytest.importorskip("matplotlib")
    plan = recipes.rotate(layers=1, every=2, order="ascending")
    axes = plot_plan(preview(tiny_bert(), arguments(tmp_path, max_steps=6), plan=plan)).axes[0]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    idle, learning = [collection.get_array() for collection in axes.collections[:2]]
    turns = [[shown(learning, rows.index(f"layers.{layer}"), step) for step in range(6)] for layer in range(2)]
    assert turns == [[True, True, False, False, True, True], [False, False, True, True, False, False]]
    assert np.ma.getmaskarray(idle).all()


def shown(cells, row, step):
    return not np.ma.getmaskarray(cells)[row, step]


def colour(code):
    return [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def test_a_group_that_trains_with_rate_0_does_not_look_frozen(tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_plan(previewed(tmp_path, learning_rate=0.0))
    figure.draw_without_rendering()
    (idle,) = [mesh for mesh in figure.axes[0].collections if hasattr(mesh, "get_coordinates")]
    head, layers = idle.get_facecolor().reshape(3, 12, 4)[:2]
    assert np.allclose(head[:9, :3], colour(RATE_0))
    assert np.allclose(head[:9, 3], 1)
    assert (layers[:4, 3] == 0).all(), "frozen: the grey behind shows"
    assert RATE_0 != FROZEN
    assert len(figure.axes) == 1, "no scale of colours without a rate"


def test_a_long_title_is_wrapped_and_stays_within_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    wait = Plateau("eval_average_precision")
    stages = [Stage(plateau=wait, unfreeze="layers"), Stage(plateau=wait, freeze="layers")] * 15
    figure = plot_plan(previewed(tmp_path, FreezePlan(trainable="head", stages=stages), eval_strategy="epoch"))
    assert figure.get_suptitle().startswith("BertForSequenceClassification: learning rates")
    assert_within(figure, figure._suptitle)


def assert_within(figure, artist):
    figure.draw_without_rendering()
    box = artist.get_window_extent()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("count", [1, 7, 20])
def test_the_legend_of_a_comparison_stays_within_the_picture(count):
    pytest.importorskip("matplotlib")
    runs = [run(f"a-plan-that-has-a-long-name-{index}") for index in range(count)]
    figure = plot_comparison(Comparison(runs=runs))
    (legend,) = figure.legends
    assert len(legend.get_texts()) == count
    assert_within(figure, legend)
    labels = [label.get_window_extent() for label in figure.axes[2].get_yticklabels()]
    assert all(above.y0 > below.y1 for above, below in pairwise(labels))


def names_above(axes):
    return [text.get_text() for text in axes.child_axes[0].get_xticklabels()]


def test_long_runs_are_drawn_at_some_steps_and_at_every_transition(tmp_path):
    pytest.importorskip("matplotlib")
    plan = FreezePlan(trainable="head", stages=[Stage(step=12_345, unfreeze="layers")])
    figure = plot_plan(previewed(tmp_path, plan=plan, max_steps=100_000, rows=None))
    edges = figure.axes[0].collections[0].get_coordinates()[0, :, 0]
    assert len(edges) < 2000
    assert 12_345 in edges


def test_a_stage_whose_time_is_not_known_is_named_as_left_out(tmp_path):
    pytest.importorskip("matplotlib")
    plan = FreezePlan(trainable="head", stages=[Stage(plateau=Plateau("eval_loss"), unfreeze="all")])
    figure = plot_plan(previewed(tmp_path, plan=plan, eval_strategy="epoch"))
    assert "not drawn: plateau of eval_loss" in figure.get_suptitle()
    limited = FreezePlan(trainable="head", stages=[Stage(plateau=Plateau("loss", max_epochs=1), unfreeze="all")])
    assert "not drawn" not in plot_plan(previewed(tmp_path, plan=limited, eval_strategy="epoch")).get_suptitle()


def test_a_plan_without_a_length_cannot_be_drawn(tmp_path):
    with pytest.raises(FreezeError, match=r"preview\(\.\.\., rows=\)"):
        plot_plan(previewed(tmp_path, rows=None))


def test_the_picture_of_a_run_has_loss_metrics_rates_and_stages(trained, tmp_path):
    figure = plot_history(trained, tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    loss, metrics, rates = figure.axes
    history = trained.state.log_history
    assert points(loss, "loss") == [(e["step"], e["loss"]) for e in history if "loss" in e]
    assert points(loss, "eval_loss") == [(e["step"], e["eval_loss"]) for e in history if "eval_loss" in e]
    assert [line.get_label() for line in metrics.lines if line.get_label()[0] != "_"] == ["f1", "accuracy"]
    assert points(metrics, "f1") == [(4, 0.75), (8, 0.75), (12, 0.75)]
    for group in ("head", "layers.1", "embeddings"):
        logged = [(e["step"], e[f"lr/{group}"]) for e in history if f"lr/{group}" in e]
        shown = points(rates, group)
        assert [point for point in shown if point[1] == point[1]] == [point for point in logged if point[1]]
    assert names_above(loss) == ["stage 0", "stage 1", "stage 2"]
    for axes in figure.axes:
        assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(0, 4), (4, 5), (9, 3)]
    assert rates.get_yscale() == "log"


def points(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return list(zip(line.get_xdata().tolist(), line.get_ydata().tolist(), strict=True))


def test_a_log_and_a_checkpoint_give_the_same_picture(trained):
    checkpoint = f"{trained.args.output_dir}/checkpoint-12"
    places = (checkpoint, f"{checkpoint}/trainer_state.json", trained.args.output_dir)
    for history in (trained.state.log_history, *places):
        for axes, expected in zip(plot_history(history).axes, plot_history(trained).axes, strict=True):
            labels = [line.get_label() for line in expected.lines if line.get_label()[0] != "_"]
            assert labels
            for label in labels:
                assert str(points(axes, label)) == str(points(expected, label))  # as text, NaN is NaN


def test_metrics_can_be_named_and_a_plain_log_has_its_one_rate(trained):
    named = plot_history(trained, metrics=["count", "eval_accuracy"]).axes[1]
    assert points(named, "count")[0] == (4, 8.0)
    one = plot_history(trained, metrics="f1").axes[1]
    assert [line.get_label() for line in one.lines if line.get_label()[0] != "_"] == ["f1"]
    with pytest.raises(FreezeError, match="'rocket' was not logged. Logged were loss"):
        plot_history(trained, metrics=["rocket"])
    plain = [{"step": 1, "loss": 0.5, "learning_rate": 0.1}, {"step": 2, "loss": 0.4, "learning_rate": 0.05}]
    loss, rates = plot_history(plain).axes
    assert points(loss, "loss") == [(1, 0.5), (2, 0.4)]
    assert points(rates, "learning_rate") == [(1, 0.1), (2, 0.05)]


def test_a_history_without_a_loss_or_a_folder_without_one_is_an_error(tmp_path):
    with pytest.raises(FreezeError, match="no loss"):
        plot_history([{"step": 1, "stage": 0}])
    with pytest.raises(FreezeError, match="has no log_history"):
        plot_history(tmp_path)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (None, "history is a NoneType: None"),
        ({"loss": 1.0}, "history is a dict: {'loss': 1.0}"),
        (("a", "b"), r"history\[0\] is not a log entry with its 'step': 'a'"),
        ([{"step": 1, "loss": 0.5}, {"loss": 0.4}], r"history\[1\] is not a log entry .* {'loss': 0.4}"),
    ],
)
def test_what_is_no_log_is_an_error(history, message):
    with pytest.raises(FreezeError, match=message):
        plot_history(history)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([], "has no log_history, but a list"),
        ({"epoch": 1}, r"has no log_history, but the keys \['epoch'\]"),
        ({"log_history": {"loss": 1}}, "log_history of .* is a dict"),
        ({"log_history": [3]}, r"log_history of .*\[0\] is not a log entry"),
    ],
)
def test_a_state_without_a_log_is_an_error(tmp_path, state, message):
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(FreezeError, match=message):
        plot_history(tmp_path)


def test_what_is_no_preview_or_comparison_is_an_error():
    with pytest.raises(FreezeError, match=r"is not a preview: give what preview\("):
        plot_plan(PLAN)
    with pytest.raises(FreezeError, match=r"is not a comparison: give what compare\("):
        plot_comparison([run()])


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Every function that draws, with something to draw."""
    pytest.importorskip("matplotlib")
    seen = previewed(tmp_path_factory.mktemp("drawn"))
    labels = np.arange(200) % 2
    tuned = tune_threshold(np.random.default_rng(0).normal(3.0 * labels), labels)
    return {
        plot_plan: seen,
        plot_history: [{"step": 1, "loss": 0.5}],
        plot_threshold: tuned,
        plot_comparison: Comparison(runs=[run()]),
        plot_layers: ProbeSuggestion(
            scores=tuple(DepthScore(depth=depth, folds=(0.8, 0.9)) for depth in range(3)),
            layers=2,
            scoring="accuracy",
            reads=("mean",),
            rows=10,
            extraction_seconds=1.0,
            probe_seconds=1.0,
        ),
    }


@pytest.mark.parametrize("draw", [plot_plan, plot_history, plot_threshold, plot_comparison, plot_layers])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/plot.png", "there is no folder '.*none'. Make it first"),
        ("", "is a folder. Give the name of a file"),
        ("plot.xyz", "ends in '.xyz', which is not a picture format. Known are .*[.]png"),
        ("plot", "ends without a suffix"),
        (("a.png", "b.png"), "is a tuple. Give the name of one file"),
    ],
)
def test_a_path_that_holds_no_picture_is_an_error_before_anything_is_drawn(
    drawings, draw, path, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("matplotlib.figure.Figure.subplots", lambda *_: pytest.fail("was drawn"))
    with pytest.raises(FreezeError, match=message):
        draw(drawings[draw], tmp_path / path if isinstance(path, str) else path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["plan", "compare"])
def test_the_shell_knows_before_the_work_that_no_picture_can_be_had(command, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    given = [command, "no/such/model", *(["no.csv"] if command == "compare" else ["--rows", "9", "--use_cpu"])]
    assert main([*given, "--plot", str(tmp_path / "new" / "p.xyz")]) == 2
    assert "ends in '.xyz', which is not a picture format" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*given, "--plot", str(tmp_path / "p.png")]) == 2
    assert capsys.readouterr().err.startswith("hf-freeze: --plot needs matplotlib")


def test_without_matplotlib_the_errors_name_the_extra(monkeypatch, tmp_path):
    seen = previewed(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FreezeError, match=r'plot_plan needs matplotlib: pip install "hf_freeze\[plots\]"'):
        plot_plan(seen)
    with pytest.raises(FreezeError, match=r"plot_history needs matplotlib"):
        plot_history([{"step": 1, "loss": 0.5}])


def test_the_head_stands_above_the_layers_and_layers_in_the_order_of_their_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    plan = FreezePlan(trainable="all")
    args = arguments(tmp_path, **{**RUN, "layer_lr_decay": 0.9}, group_lrs={"head": 1e-2})
    seen = preview(tiny_bert(layers=12), args, plan=plan, rows=16)
    wanted = ["head", "rest", *(f"layers.{index}" for index in reversed(range(12))), "embeddings"]
    axes = plot_plan(seen).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == wanted
    assert axes.yaxis_inverted()
    saved = [{"step": step, "loss": 0.5, **{f"lr/{name}": 1e-3 for name in sorted(wanted)}} for step in (1, 2)]
    legend = plot_history(saved).axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == wanted


def test_a_group_that_is_frozen_in_between_has_no_line_there():
    pytest.importorskip("matplotlib")
    logged = [{"lr/a": 1e-3, "lr/b": 1e-3}, {"lr/a": 1e-3}, {"lr/a": 0.0, "lr/b": 1e-3}]
    figure = plot_history([{"step": step, "loss": 0.5, **entry} for step, entry in enumerate(logged)])
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[-1].lines}
    assert lines["b"] == pytest.approx([1e-3, math.nan, 1e-3], nan_ok=True)
    assert lines["a"] == pytest.approx([1e-3, 1e-3, math.nan], nan_ok=True)


@pytest.mark.parametrize("losses", [(0.69, 0.62), (0.7, 0.3), (0.9, 0.02), (3.0, 1e-5)])
def test_losses_have_ticks_that_are_read_at_a_glance(losses):
    pytest.importorskip("matplotlib")
    stretches = [losses[0], *[losses[1]] * 7]
    ends = (evaluation(0, loss=losses[0]), evaluation(80, loss=losses[1]))
    figure = plot_comparison(Comparison(runs=[run(training_losses=stretches, evaluations=ends)]))
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        low, high = axes.get_ylim()
        shown = [
            text.get_text()
            for text in (*axes.get_yticklabels(), *axes.get_yticklabels(minor=True))
            if text.get_text() and low <= text.get_position()[1] <= high
        ]
        assert len(shown) > 2
        assert all(re.fullmatch(r"[\d.]+(e-\d+)?", text) for text in shown), shown


@pytest.mark.parametrize("depths", [3, 17, 49, 97])
def test_the_names_of_depths_do_not_touch(depths):
    pytest.importorskip("matplotlib")
    scores = tuple(DepthScore(depth=depth, folds=(0.8, 0.9)) for depth in range(depths))
    figure = plot_layers(
        ProbeSuggestion(
            scores=scores,
            layers=depths - 1,
            scoring="accuracy",
            reads=("mean",),
            rows=10,
            extraction_seconds=1.0,
            probe_seconds=1.0,
        )
    )
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) > 2
    assert all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))
