"""When a metric counts as having stopped improving."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from hf_freeze import PlanError, Plateau
from hf_freeze.plan.plateau import PlateauWatch, metric_value, require_metric

NAN, INFINITY = math.nan, math.inf


def watched(values: list[float], plateau: Plateau) -> PlateauWatch:
    """The watch after these evaluations, at steps 1, 2, ..., or as soon as it is over."""
    watch = PlateauWatch(stage=1)
    for step, value in enumerate(values, start=1):
        watch = watch.see(value, step=step, plateau=plateau)
        if watch.is_over(plateau):
            break
    return watch


def over_at(values: list[float], **options) -> int | None:
    """After how many evaluations the plateau is there; None when it is not."""
    plateau = Plateau(options.pop("metric", "eval_loss"), **options)
    seen = range(1, len(values) + 1)
    return next((count for count in seen if watched(values[:count], plateau).is_over(plateau)), None)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3, 2, 1], {}, None),
        ([3, 2, 2], {}, 3),
        ([3, 2, 2.5, 1, 1], {"patience": 2}, None),
        ([3, 2, 2.5, 1, 1, 4], {"patience": 2}, 6),
        ([1, 2, 3], {"metric": "eval_f1"}, None),
        ([1, 2, 3], {"metric": "eval_f1", "greater_is_better": False}, 2),
        ([3, 2, 1], {"greater_is_better": True}, 2),
        ([3.0, 2.9, 2.8, 2.7], {"min_delta": 0.15, "patience": 3}, None),
        ([3.0, 2.9, 2.8, 2.7], {"min_delta": 0.25, "patience": 3}, None),
        ([3.0, 2.9, 2.8, 2.7], {"min_delta": 0.35, "patience": 3}, 4),
    ],
    ids=str,
)
def test_patience_evaluations_without_a_better_one_end_the_wait(values, options, expected):
    assert over_at(values, **options) == expected


def test_small_gains_add_up_against_the_best_and_not_against_the_last():
    """A metric that creeps by less than min_delta each time improves all the same, measured from its best."""
    assert over_at([1.0, 0.94, 0.88, 0.82], min_delta=0.1, patience=2) is None
    assert over_at([1.0, 0.99, 0.98, 0.97], min_delta=0.1, patience=2) == 3


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "eval_val_loss", "eval_f1", "eval_lossless", "LOSS"])
def test_the_direction_is_inferred_as_the_trainer_infers_it(tmp_path, metric):
    args = TrainingArguments(str(tmp_path), metric_for_best_model=metric, use_cpu=True)
    assert Plateau(metric).rises == args.greater_is_better


def test_not_a_number_is_no_improvement_and_is_never_the_best():
    plateau = Plateau("eval_loss", patience=3)
    watch = watched([NAN, 2.0, NAN, 1.0, NAN, NAN], plateau)
    assert (watch.best, watch.best_step, watch.without_better) == (1.0, 4, 2)
    assert over_at([NAN, NAN, NAN], patience=3) == 3


@pytest.mark.parametrize(("metric", "worst"), [("eval_loss", INFINITY), ("eval_f1", -INFINITY)])
def test_a_finite_value_is_better_than_the_worst_infinite_one(metric, worst):
    watch = watched([worst, worst, 1.0], Plateau(metric, patience=5))
    assert (watch.best, watch.best_step) == (1.0, 3)


@given(
    st.lists(st.one_of(st.floats(-5, 5), st.just(NAN)), max_size=30),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)
def test_the_watch_agrees_with_its_definition(values, patience, min_delta, rises):
    plateau = Plateau("metric", patience=patience, min_delta=min_delta, greater_is_better=rises)
    watch = watched(values, plateau)
    best, best_at, last = None, 0, 0
    for last, value in enumerate(values, start=1):
        if not math.isnan(value) and (best is None or (value - best if rises else best - value) > min_delta):
            best, best_at = value, last
        if last - best_at >= patience:
            break
    assert (watch.best, watch.best_step or 0) == (best, best_at)
    assert watch.is_over(plateau) == (last - best_at >= patience)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_a_watch_survives_json_between_any_two_evaluations(values):
    plateau = Plateau("eval_loss", patience=20)
    watch = PlateauWatch(stage=2)
    for step, value in enumerate(values):
        watch = PlateauWatch(**json.loads(json.dumps(watch.to_dict()))).see(value, step=step, plateau=plateau)
    assert watch.best == min(values)
    assert watch.stage == 2


@pytest.mark.parametrize("metric", ["f1", "eval_f1"])
def test_the_metric_is_found_with_and_without_its_prefix(metric):
    assert metric_value(Plateau(metric), {"eval_loss": 1.0, "eval_f1": 0.5}) == 0.5


def test_the_metric_of_another_data_set_is_not_taken():
    assert metric_value(Plateau("eval_val_loss"), {"eval_test_loss": 1.0}) is None


def test_a_metric_that_is_missing_is_an_error_that_names_those_there_are():
    with pytest.raises(PlanError, match=r"metric='eval_f2'.*It logs eval_f1, eval_loss"):
        require_metric(Plateau("eval_f2"), {"eval_loss": 1.0, "eval_f1": 0.5})
