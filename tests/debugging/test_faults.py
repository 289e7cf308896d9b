"""The matrix of planted faults: each is named by the check meant for it, and by no other."""

import pytest

from hf_freeze import debug_sample
from tests.debugging.faults import FAULTS


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


def test_the_matrix_is_large_and_covers_every_check():
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
