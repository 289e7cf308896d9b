"""What a comparison says follows from its figures, and it is silent where they do not carry it."""

import dataclasses

import pytest

from hf_freeze.reporting.comparison import Comparison
from hf_freeze.reporting.verdicts import (
    as_good_for_less,
    freezing_helps,
    frozen_layers_block,
    interval,
    is_better,
    recall_collapsed,
)
from tests.reporting.compared import evaluation, run

STUCK = {
    "training_losses": (0.7, 0.62, 0.61, 0.6, 0.6, 0.59, 0.6, 0.59),
    "evaluations": (evaluation(), evaluation(8, loss=0.6)),
}
FREER = {"name": "full", "trainable": 1000}


def ending(f1=0.9, loss=0.3, **given):
    return run(evaluations=(evaluation(), evaluation(8, loss=loss, f1=f1)), **given)


# Freezing helps


def test_freezing_helps_where_validation_loss_falls_and_f1_rises_out_of_its_interval():
    said = freezing_helps([run()])
    assert said == (
        "Freezing helps in 'probe': with 99 % of the model frozen throughout, validation loss falls from 0.700 to 0.300 "
        "and F1 rises from 0.200 to 0.900 [0.850, 0.950]."
    )
    assert "(means of 2 seeds)" in freezing_helps([run(), run(seed=2)])


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
    ],
)
def test_freezing_helps_is_silent_without_the_evidence(silent):
    assert freezing_helps([silent]) is None
    assert freezing_helps([dataclasses.replace(silent, seed=2), run(trainable=silent.trainable)]) is None


def test_freezing_helps_is_silent_where_training_everything_is_better():
    assert freezing_helps([run()], [ending(f1=0.99, **FREER)]) is None
    assert "no worse than 'full' (0.940)" in freezing_helps([run()], [ending(f1=0.94, **FREER)])


# Frozen layers block learning


def test_frozen_layers_block_where_the_training_loss_stays_far_above():
    said = frozen_layers_block([run(**STUCK)], [run(**FREER)])
    assert said.startswith(
        "Frozen layers block learning in 'probe': its training loss stays at 0.595, 'full' comes to 0.105 "
    )
    assert "validation loss 0.600 against 0.300" in said


@pytest.mark.parametrize(
    ("frozen", "freer"),
    [
        (run(), run(**FREER)),
        (run(**STUCK), run(name="other", trainable=10)),
        (run(**{**STUCK, "training_losses": (2.0, 1.9, 1.4, 1.3, 1.0, 0.9, 0.6, 0.59)}), run(**FREER)),
        (run(**{**STUCK, "training_losses": (0.06,) * 8}), run(**FREER, training_losses=(0.02,) * 8)),
        (run(**{**STUCK, "training_losses": (0.55,) * 8}), run(**FREER, training_losses=(0.3,) * 8)),
        (run(**{**STUCK, "training_losses": (0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.05, 1.2)}), run(**FREER)),
        (run(**{**STUCK, "evaluations": run().evaluations}), run(**FREER)),
        (run(**{**STUCK, "training_losses": (0.6,)}), run(**FREER)),
    ],
    ids=["as low", "no freer", "still falls", "small gap", "not twice", "noise", "learnt by heart", "one loss"],
)
def test_frozen_layers_block_is_silent_without_the_evidence(frozen, freer):
    assert frozen_layers_block([frozen], [freer]) is None


def test_frozen_layers_block_in_every_seed_or_not_at_all():
    assert frozen_layers_block([run(**STUCK), run(**STUCK, seed=2)], [run(**FREER)]) is not None
    assert frozen_layers_block([run(**STUCK), run(seed=2)], [run(**FREER)]) is None


def test_a_plan_is_not_said_to_be_blocked_where_one_that_trains_no_more_learns_better():
    stuck, sparing, full = run("last", **{**STUCK, "trainable": 500}), run("lora", trainable=10), run(**FREER)
    assert any("block learning in 'last'" in said for said in Comparison(runs=(stuck, full)).verdicts)
    assert not any("block" in said for said in Comparison(runs=(stuck, sparing, full)).verdicts)


def test_a_plan_that_is_blocked_is_not_called_a_help():
    slow = run(training_losses=STUCK["training_losses"])
    full = run(**FREER, evaluations=(evaluation(), evaluation(8, loss=0.2, f1=0.9)))
    said = Comparison(runs=(slow, full)).verdicts
    assert [text.split(" in ")[0] for text in said[:-1]] == ["Frozen layers block learning"]
    assert freezing_helps([slow], [full]) is not None


# Recall


def test_recall_collapsed_where_accuracy_hides_it():
    said = recall_collapsed([run(at_half={"accuracy": 0.88, "recall": 0.05})])
    assert said == (
        "Recall collapsed in 'probe': at probability 0.5 it has accuracy 0.880 and recall 0.050, 10 of 200 positives "
        "found. At the tuned threshold recall is 0.900, average precision 0.900."
    )


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
    low = run(at_half={"accuracy": 0.88, "recall": 0.05})
    assert recall_collapsed([low, dataclasses.replace(silent, seed=2)]) is None


# Which one


def test_a_plan_is_better_outside_the_interval_and_by_more_than_one_positive_row():
    assert interval([run(), run(interval=(0.8, 0.97))]) == (0.8, 0.97)
    assert is_better([ending(f1=0.96)], [run()])
    assert not is_better([ending(f1=0.94)], [run()])
    certain = ending(f1=0.974, interval=(0.974, 0.974), n_pos=24)
    assert not is_better([ending(f1=0.98)], [certain])
    assert is_better([ending(f1=1.0)], [dataclasses.replace(certain, n_pos=200)])


def test_the_plan_that_trains_least_is_named_where_f1_cannot_tell_it_from_the_best():
    said = as_good_for_less([[run()], [ending(f1=0.94, **FREER, seconds=50.0)]])
    assert said == (
        "F1 does not tell 'probe', 0.900 [0.850, 0.950], from the best, 'full', 0.940: it trains 10 parameters in place "
        "of 1,000, in 2 s in place of 50."
    )
    assert "'full' has the best F1, 0.990" in as_good_for_less([[run()], [ending(f1=0.99, **FREER)]])
    assert as_good_for_less([[run()]]) is None
    assert as_good_for_less([[run()], [run(interval=None, **FREER)]]) is None


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


def test_the_table_says_how_memory_was_measured_and_what_is_wrong_with_a_threshold():
    text = str(Comparison(runs=(run(remark="few rows."), run(**FREER, remark="few rows."))))
    assert "Peak memory: resident memory of the process" in text
    assert "probe, seed 1: few rows.\nSo in 2 of 2 runs." in text
    assert "allocated by torch" in str(Comparison(runs=(run(device="cuda"),)))
