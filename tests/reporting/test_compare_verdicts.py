"""What a comparison says follows from its figures, and it is silent where they do not carry it."""

import dataclasses
import re

import numpy as np
import pytest

from hf_freeze import ThresholdWarning, tune_threshold
from hf_freeze.reporting.comparison.comparison import Comparison, line_of
from hf_freeze.reporting.comparison.verdicts import (
    as_good_for_less,
    freezing_helps,
    interval,
    is_better,
    recall_collapsed,
    wilson_bound,
)
from tests.reporting.compared import evaluation, run

STUCK = {
    "training_losses": (0.7, 0.62, 0.61, 0.6, 0.6, 0.59, 0.6, 0.59),
    "evaluations": (evaluation(), evaluation(8, loss=0.6)),
}
FREER = {"name": "full", "trainable": 1000}
COLLAPSED = {"accuracy": 0.88, "recall": 0.05}
NAN = (evaluation(), evaluation(8, loss=float("nan"), f1=0.0))


def ending(f1=0.9, loss=0.3, average_precision=None, **given):
    last = evaluation(8, loss=loss, f1=f1, average_precision=average_precision)
    return run(evaluations=(evaluation(), last), **given)


def said_by(*runs):
    return Comparison(runs=runs).verdicts


def names(said, *parts):
    """Whether a sentence has these parts, in this order."""
    return re.search(".*".join(map(re.escape, parts)), said, flags=re.DOTALL) is not None


# Freezing helps


def test_freezing_helps_where_validation_loss_falls_and_f1_rises_out_of_its_interval():
    said = freezing_helps([run()], [run(**FREER)])
    assert names(
        said, "Freezing helps", "'probe'", "99 %", "loss", "0.700 to 0.300", "F1", "0.200 to 0.900 [0.850, 0.950]"
    )
    assert names(said, "no worse than 'full' (0.900)")
    assert "(means of 2 seeds)" in freezing_helps([run(), run(seed=2)], [run(**FREER)])


@pytest.mark.parametrize(
    "silent",
    [
        run(trainable=1000),
        run(interval=None),
        run(evaluations=(evaluation(loss=0.3), evaluation(8, loss=0.7, f1=0.9))),
        run(evaluations=(evaluation(loss=0.3), evaluation(8, loss=0.31, f1=0.9))),
        run(evaluations=(evaluation(f1=0.9), evaluation(8, loss=0.3, f1=0.9))),
        run(evaluations=(evaluation(average_precision=0.95), evaluation(8, loss=0.3, f1=0.9))),
        run(evaluations=(evaluation(), evaluation(4, loss=0.2, f1=0.8), evaluation(8, loss=0.3, f1=0.9))),
        run(interval=(0.15, 1.0)),
        run(evaluations=(evaluation(loss=float("nan")), evaluation(8, loss=float("nan"), f1=0.9))),
        run(at_half=COLLAPSED),
    ],
    ids=[
        "all trains",
        "no interval",
        "rises",
        "rises a little",
        "f1 still",
        "precision falls",
        "turned up",
        "wide interval",
        "nan",
        "recall collapsed",
    ],
)
def test_freezing_helps_is_silent_without_the_evidence(silent):
    assert freezing_helps([silent], [run(**FREER)]) is None
    with_another = [silent, dataclasses.replace(silent, seed=2)]
    assert freezing_helps(with_another, [run(**FREER)]) is None


def test_freezing_helps_is_silent_where_training_more_is_better():
    assert freezing_helps([run()], [ending(f1=0.99, **FREER)]) is None
    assert "no worse than 'full' (0.940)" in freezing_helps([run()], [ending(f1=0.94, **FREER)])


def test_freezing_helps_only_against_a_plan_that_trains_more():
    assert freezing_helps([run()], [run("other")]) is None
    assert not said_by(run())
    assert not any("Freezing helps in 'probe'" in text for text in said_by(run(), run("other", trainable=5)))
    for best in ("last", "all"):
        figures = {name: 0.92 if name == best else 0.9 for name in ("last", "all")}
        last = ending(name="last", trainable=500, f1=figures["last"])
        said = said_by(run(), last, ending(name="all", trainable=1000, f1=figures["all"]))[0]
        assert "Freezing helps in 'probe'" in said
        assert f"no worse than {best!r} (0.920)" in said


def test_freezing_helps_where_all_rows_are_told_apart_and_they_are_enough_to_carry_the_rise():
    apart = ending(f1=0.949, interval=(0.949, 0.949), n_pos=12)
    full = run(**FREER)
    assert "and F1 rises from 0.200 to 0.949, no worse" in freezing_helps([apart], [full])
    high = (evaluation(f1=0.7), *apart.evaluations[1:])
    assert freezing_helps([dataclasses.replace(apart, evaluations=high)], [full]) is not None
    assert freezing_helps([dataclasses.replace(apart, evaluations=high, n_pos=5)], [full]) is None


def test_a_plan_that_is_blocked_is_not_called_a_help():
    slow = run(training_losses=STUCK["training_losses"])
    full = run(**FREER, evaluations=(evaluation(), evaluation(8, loss=0.2, f1=0.9)))
    assert [text.split(" block")[0] for text in said_by(slow, full)[:-1]] == ["Frozen layers, or too small a rate,"]
    assert freezing_helps([slow], [full]) is not None


# Recall


def test_recall_collapsed_where_accuracy_hides_it():
    said = recall_collapsed([run(at_half=COLLAPSED)])
    assert names(said, "Recall", "'probe'", "0.5", "accuracy 0.880", "recall 0.050", "10 of 200 positives")
    assert names(said, "tuned threshold", "recall is 0.900", "average precision 0.900")


@pytest.mark.parametrize(
    "silent",
    [
        run(),
        run(at_half={}),
        run(at_half={"accuracy": 0.6, "recall": 0.45}),
        run(at_half={"accuracy": 0.9, "recall": 0.48}),
        run(at_half={"accuracy": 0.88, "recall": 0.25}, n_pos=8),
    ],
    ids=["fine", "nan", "accuracy low too", "interval holds a half", "few positives"],
)
def test_recall_collapsed_is_silent_without_the_evidence(silent):
    assert recall_collapsed([silent]) is None
    low = run(at_half=COLLAPSED)
    assert recall_collapsed([low, dataclasses.replace(silent, seed=2)]) is None


def test_positives_found_are_counted_over_seeds():
    few = [run(at_half={"accuracy": 0.9, "recall": found / 16}, n_pos=16, seed=found) for found in (0, 1, 0)]
    assert "recall 0.021, 1 of 48 positives found in 3 seeds together." in recall_collapsed(few)


# Which one


def test_a_plan_is_better_outside_the_interval_and_by_more_than_one_positive_row():
    assert interval([run(), run(interval=(0.8, 0.97))]) == (0.8, 0.97)
    assert is_better([ending(f1=0.96)], [run()])
    assert not is_better([ending(f1=0.94)], [run()])
    assert not is_better([ending(f1=0.96)], [run(n_pos=10)])


def test_nothing_is_better_than_a_plan_that_tells_all_rows_apart():
    apart = ending(f1=0.974, interval=(0.974, 0.974), n_pos=200)
    assert interval([apart]) is None
    assert interval([apart, run()]) == (0.85, 0.974)
    assert not is_better([ending(f1=1.0)], [apart])
    assert is_better([apart], [run()])


def test_the_plan_that_trains_least_is_named_where_f1_cannot_tell_it_from_the_best():
    said = as_good_for_less([[run()], [ending(f1=0.94, **FREER, seconds=50.0)]])
    assert names(said, "'probe' (F1 0.900 [0.850, 0.950])", "'full' (0.940)", "10 ", "1,000 parameters", "2 s", "50 s")
    assert as_good_for_less([[run()]]) is None
    assert as_good_for_less([[run()], [run(interval=None, **FREER)]]) is None


def test_nothing_is_said_of_plans_that_train_less_where_there_are_none():
    best = as_good_for_less([[run()], [ending(f1=0.99, **FREER)]])
    assert names(best, "'full' has the best F1, 0.990")
    for other in (0.9, 0.8):
        said = as_good_for_less([[run()], [ending(f1=other, **FREER)]])
        assert names(said, "'probe', 0.900", "none trains less")


# What diverged


def test_a_run_that_diverged_is_said_and_held_against_nothing():
    nan = run(**FREER, evaluations=NAN, interval=(0.949, 0.949))
    assert said_by(run(**STUCK), nan) == [
        "'full' diverged: its loss or its logits are not numbers at the end. It is not compared with the other plans; give it a "
        "smaller learning rate."
    ]
    stuck, full = run(**STUCK), run(**FREER)
    (said,) = said_by(stuck, dataclasses.replace(full, seed=2), dataclasses.replace(nan, seed=3))
    assert "'full' diverged with seed 3:" in said
    assert interval([nan]) is None


@pytest.mark.parametrize(
    "what",
    [{"evaluations": NAN}, {"at_half": {}}, {"training_losses": (0.7, float("inf"))}],
    ids=["validation loss", "logits", "training loss"],
)
def test_what_diverged_has_no_figures_in_the_table(what):
    text = str(Comparison(runs=(run(**what, tested={"f1": 0.0}, remark="few rows."), run(**FREER, tested={"f1": 0.5}))))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("probe")]
    (header,) = [line.replace("F1 [95 %]", "F1").split("  ") for line in text.splitlines() if line.startswith("plan")]
    shown = dict(zip([name.strip() for name in header if name.strip()], row, strict=True))
    assert [name for name, cell in shown.items() if cell == "-"] == [
        *("train loss", "accuracy", "recall", "F1", "avg. prec.", "test F1")
    ]
    assert "few rows" not in text
    assert "diverged" in line_of(run(**what))


def test_one_seed_that_diverged_leaves_no_mean_of_the_losses():
    row = str(Comparison(runs=(run(evaluations=NAN), run(seed=2)))).splitlines()[1]
    assert "  nan  " in row
    assert "±" not in row


# The table


def test_the_table_has_a_row_for_each_plan_and_means_over_seeds():
    runs = (
        run(),
        run(seed=2, evaluations=(evaluation(), evaluation(8, loss=0.5, f1=0.8))),
        run(**FREER),
        run(**FREER, seed=2),
    )
    text = str(Comparison(runs=runs))
    (probe,) = [line for line in text.splitlines() if line.startswith("probe")]
    assert "0.400 ± 0.141" in probe
    assert "0.850 ± 0.071 [0.850, 0.950]" in probe
    assert "test F1" not in text
    assert "seeds [1, 2]" in text
    tested = tuple(dataclasses.replace(one, tested={"f1": 0.77}) for one in runs)
    assert "0.770 ± 0.000" in str(Comparison(runs=tested))


def test_the_table_says_how_memory_was_measured_and_what_trained_on_stored_features():
    text = str(Comparison(runs=(run(), run(**FREER))))
    assert "Peak memory: resident memory of the process" in text
    assert "without evaluations.\n" in text
    assert "allocated by torch" in str(Comparison(runs=(run(device="cuda"),)))
    text = str(Comparison(runs=(run(stored_features=True), run(**FREER))))
    assert "probe on features computed once" in text


def test_without_a_finished_run_there_is_no_table():
    assert str(Comparison(runs=(), failures=(("full", 1, "no memory"),))) == "full, seed 1, failed: no memory"


def test_an_f1_without_a_spread_has_no_interval_and_the_reason_is_said():
    with pytest.warns(ThresholdWarning, match="12 positive rows"):
        tuned = tune_threshold([1.0 + i for i in range(12)] + [-1.0 - i for i in range(20)], [1] * 12 + [0] * 20)
    low, high = tuned.interval
    assert low == high
    apart = ending(f1=low, interval=(low, high), n_pos=12, remark=tuned.message)
    text = str(Comparison(runs=(apart, run(**FREER))))
    assert f"[{low:.3f}" not in text
    assert f"{low:.3f} to {low:.3f}" not in text
    assert f"expect {low:.3f} on fresh rows." in text
    assert names(text, "probe", "12 positives", "no interval")


def test_an_f1_that_cannot_be_told_is_a_dash_and_the_reason_is_said():
    untold = ending(f1=0.0, average_precision=1.0, interval=None, n_pos=1)
    text = str(Comparison(runs=(untold,)))
    assert "0.000" not in text.splitlines()[1]
    assert names(text, "unknown: probe", "1 positive", "too few")
    assert "F1 -, average precision" in line_of(untold)


def test_remarks_are_put_together_where_they_say_the_same():
    same = str(Comparison(runs=(run(remark="few rows."), run(**FREER, remark="few rows."))))
    assert "In 2 of 2 runs: few rows." in same
    other = str(Comparison(runs=(run(remark="AUROC is low: reversed?"), run(**FREER, remark="few rows."))))
    assert "probe, seed 1: AUROC is low: reversed?\nfull, seed 1: few rows." in other
    runs = (run(remark="few rows: F1 is 0.5."), run(**FREER, remark="few rows: F1 is 0.6."), run("last"))
    assert "In 2 of 3 runs: few rows. probe, seed 1: F1 is 0.5." in str(Comparison(runs=runs))


def test_plans_of_like_names_have_rows_of_their_own():
    text = str(Comparison(runs=(run("a/b"), run("a_b"), run("a b"))))
    assert [line.split("  ")[0] for line in text.splitlines()[1:4]] == ["a/b", "a_b", "a b"]


def test_a_low_recall_of_a_short_run_is_put_down_to_its_length():
    def of(steps, name="probe"):
        last = (evaluation(), evaluation(steps, loss=0.6, f1=0.3))
        return run(name, at_half=COLLAPSED, evaluations=last)

    short = Comparison(runs=[of(14), of(14, "full"), run("good")]).verdicts
    assert not any("collapsed" in sentence for sentence in short)
    (said,) = [sentence for sentence in short if "short" in sentence]
    assert said.startswith("The run was short, 14 steps: 'probe', 'full' find few of the positives")
    assert "at least 50 steps" in said
    one_of_two = Comparison(runs=[of(50), dataclasses.replace(of(14), seed=2), run("good")]).verdicts
    assert not any("collapsed" in sentence for sentence in one_of_two)
    long = Comparison(runs=[of(50), run("good")]).verdicts
    assert any(sentence.startswith("Recall collapsed in 'probe'") for sentence in long)
    assert not any("short" in sentence for sentence in [*long, *Comparison(runs=[run()]).verdicts])


def test_wilson_bounds_are_those_of_the_literature():
    nine_of_ten, ten, z = np.array([9.0]), np.array([10.0]), 1.959964
    assert wilson_bound(nine_of_ten, ten, z=-z)[0] == pytest.approx(0.59585, abs=1e-5)
    assert wilson_bound(nine_of_ten, ten, z=z)[0] == pytest.approx(0.98212, abs=1e-5)
    assert wilson_bound(np.zeros(1), np.zeros(1), z=-z)[0] == 0.0
    assert wilson_bound(np.zeros(1), np.zeros(1), z=z)[0] == 1.0
