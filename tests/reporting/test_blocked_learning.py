"""Frozen layers are said to block learning only where the figures carry it, and without their rate as a suspect."""

import dataclasses

import pytest

from hf_freeze.reporting.comparison.blocked_learning import frozen_layers_block
from tests.reporting.compared import evaluation, run

STUCK = {
    "training_losses": (0.7, 0.62, 0.61, 0.6, 0.6, 0.59, 0.6, 0.59),
    "evaluations": (evaluation(), evaluation(8, loss=0.6)),
}
FREER = {"name": "full", "trainable": 1000}


def at(rate):
    return {"highest_rate": rate}


def test_frozen_layers_block_where_the_training_loss_stays_far_above_at_a_rate_that_is_large():
    said = frozen_layers_block([[run(**STUCK, **at(3e-2))], [run(**FREER, **at(1e-2))]])
    assert list(said) == ["probe"]
    assert said["probe"].startswith(
        "Frozen layers block learning in 'probe': its training loss stays at 0.595 at a rate of 0.03, 'full' comes to "
        "0.105 (standard error of the difference "
    )
    assert said["probe"].endswith("validation loss 0.600 against 0.300. Unfreeze more layers.")


@pytest.mark.parametrize(("own", "other"), [(1e-3, 1e-3), (2.9e-2, 1e-2)])
def test_a_rate_that_is_not_far_larger_is_named_as_the_other_cause(own, other):
    said = frozen_layers_block([[run(**STUCK, **at(own))], [run(**FREER, **at(other))]])["probe"]
    assert said.startswith("Frozen layers, or too small a rate, block learning in 'probe'")
    assert f"at a rate of {own:.3g}" in said
    assert said.endswith(
        "A larger rate may be enough: try one (learning_rate, group_lrs) before you unfreeze more layers."
    )


def test_a_rate_that_is_not_known_is_named_as_the_other_cause():
    for own, other in ((at(1.0), {}), ({}, at(1e-3)), ({}, {})):
        said = frozen_layers_block([[run(**STUCK, **own)], [run(**FREER, **other)]])["probe"]
        assert "or too small a rate" in said


def test_the_rate_is_not_named_where_a_plan_that_trains_as_much_has_tried_a_far_larger_one():
    worse = {**STUCK, "training_losses": (0.7,) * 8}
    stuck, full = run(**STUCK, **at(1e-3)), run(**FREER, **at(1e-3))
    tried = frozen_layers_block([[stuck], [run("fast", **worse, **at(3e-3))], [full]])
    assert list(tried) == ["probe"]
    assert tried["probe"].startswith("Frozen layers block")
    more = run("last", **{**worse, "trainable": 5}, **at(3e-3))
    assert "or too small a rate" in frozen_layers_block([[stuck], [more], [full]])["probe"]


def test_a_loss_that_falls_as_much_as_before_has_not_stopped():
    # a linear probe at 1e-3 that comes to 0.006 at 1e-1
    slow = {**STUCK, "training_losses": (0.76, 0.75, 0.64, 0.63, 0.61, 0.6, 0.565, 0.56)}
    full = run(**FREER, training_losses=(0.3, 0.3, 0.05, 0.05, 0.01, 0.01, 0.01, 0.01))
    assert frozen_layers_block([[run(**slow)], [full]]) == {}
    stopped = {**STUCK, "training_losses": (0.86, 0.85, 0.64, 0.63, 0.61, 0.6, 0.565, 0.56)}
    assert list(frozen_layers_block([[run(**stopped)], [full]])) == ["probe"]


@pytest.mark.parametrize(
    ("frozen", "less_frozen"),
    [
        (run(), run(**FREER)),
        (run(**STUCK), run(name="other", trainable=10)),
        (run(**{**STUCK, "training_losses": (3.0, 2.9, 1.4, 1.3, 1.0, 0.9, 0.6, 0.59)}), run(**FREER)),
        (run(**{**STUCK, "training_losses": (0.06,) * 8}), run(**FREER, training_losses=(0.02,) * 8)),
        (run(**{**STUCK, "training_losses": (0.55,) * 8}), run(**FREER, training_losses=(0.3,) * 8)),
        (run(**{**STUCK, "training_losses": (0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.05, 1.2)}), run(**FREER)),
        (run(**{**STUCK, "evaluations": run().evaluations}), run(**FREER)),
        (run(**{**STUCK, "training_losses": (0.6,)}), run(**FREER)),
    ],
    ids=["as low", "no freer", "still falls", "small gap", "not twice", "noise", "learnt by heart", "one loss"],
)
def test_nothing_is_said_without_the_evidence(frozen, less_frozen):
    assert frozen_layers_block([[frozen], [less_frozen]]) == {}


def test_in_every_seed_or_not_at_all():
    full = [run(**FREER)]
    assert frozen_layers_block([[run(**STUCK), run(**STUCK, seed=2)], full])
    assert not frozen_layers_block([[run(**STUCK), run(seed=2)], full])


def test_a_plan_is_not_said_to_be_blocked_where_one_that_trains_no_more_learns_better():
    stuck, sparing, full = run("last", **{**STUCK, "trainable": 500}), run("lora", trainable=10), run(**FREER)
    assert list(frozen_layers_block([[stuck], [full]])) == ["last"]
    assert not frozen_layers_block([[stuck], [sparing], [full]])
    assert frozen_layers_block([[stuck], [dataclasses.replace(sparing, trainable=600)], [full]])
