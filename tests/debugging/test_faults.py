"""The matrix of planted faults: each is named by the check meant for it, and by no other."""

from typing import get_args

import pytest

from hf_freeze import debug_sample
from hf_freeze.debugging.sample_check import CheckName
from tests.debugging import data_faults  # noqa: F401 - it adds to FAULTS
from tests.debugging.faults import FAULTS
from tests.debugging.subjects import pooled


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_named_by_its_check_alone(tmp_path, fault):
    what, options = fault.plant(tmp_path)
    report = debug_sample(what, **options, **fault.options, seed=3, quiet=True)
    assert {check.name for check in report.checks if check.status != "ok"} == {fault.check}


@pytest.mark.parametrize("fault", [one for one in FAULTS if not one.options], ids=lambda fault: fault.name)
def test_full_checks_and_a_backward_pass_name_no_other_fault(tmp_path, fault):
    what, options = fault.plant(tmp_path)
    report = debug_sample(what, **options, checks="full", backward=True, seed=3, quiet=True)
    assert {check.name for check in report.checks if check.status != "ok"} == {fault.check} | fault.with_backward


def test_the_matrix_covers_every_check():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.check for fault in FAULTS} == set(get_args(CheckName))


def test_ids_are_held_against_the_embedding_before_it_is_asked():
    """On a GPU the lookup itself would end the process."""
    sample = {"input_ids": [5, 70, 6], "attention_mask": [1, 1, 1], "labels": 1}
    report = debug_sample(pooled(), sample, quiet=True)
    assert "Ids from 5 to 70 index embed, which has 64 rows." in report["vocabulary"].message


def test_a_loss_that_knows_of_the_sigmoid_is_a_warning_and_another_fails():
    plants = {fault.name: fault.plant for fault in FAULTS}
    for name, status in (
        ("sigmoid that the loss knows of and metrics do not", "warning"),
        ("sigmoid inside a model that is frozen", "failed"),
    ):
        model, options = plants[name](None)
        report = debug_sample(model, **options, quiet=True)
        assert report["logits_not_probabilities"].status == status
