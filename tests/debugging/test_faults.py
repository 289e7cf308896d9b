"""The matrix of planted faults: each is named by the check meant for it, and by no other."""

import ast
from pathlib import Path

import pytest

import hf_freeze.debugging
from hf_freeze import debug_sample
from tests.debugging.faults import FAULTS
from tests.debugging.subjects import pooled

ROOM = Path(hf_freeze.debugging.__file__).parent


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
    assert {fault.check for fault in FAULTS} == set().union(*map(complaints, ROOM.glob("*.py")))


def complaints(source):
    """The names of the checks that `source` can find wanting: first arguments of failed() and warning()."""
    found = set()
    for function in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            nodes = list(ast.walk(function))
            texts = {}  # name = "length" ... failed(name, ...)
            for node in nodes:
                if isinstance(node, ast.Assign):
                    targets, values = (getattr(side, "elts", [side]) for side in (node.targets[0], node.value))
                    texts |= {
                        ast.unparse(target): value.value
                        for target, value in zip(targets, values, strict=False)
                        if isinstance(value, ast.Constant)
                    }
            for node in nodes:
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("failed", "warning") and node.args:
                    first = node.args[0]
                    found.add(first.value if isinstance(first, ast.Constant) else texts.get(ast.unparse(first)))
    return found - {None}


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
