"""Which stage a step belongs to, whatever mixture of times a plan has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze import PlanError, Plateau, Stage
from hf_freeze.plan.timeline import Timeline

MAX_STEPS = 60
PER_EPOCH = 10


def timeline(*stages: Stage, max_steps: int = MAX_STEPS, per_epoch: int | None = PER_EPOCH) -> Timeline:
    return Timeline(stages, max_steps=max_steps, steps_per_epoch=per_epoch)


def at(**time) -> Stage:
    return Stage(unfreeze="norms", **time)


def plateau(**options) -> Stage:
    return at(plateau=Plateau("eval_loss", **options))


WAITS = plateau()


@pytest.mark.parametrize(
    ("stages", "fired", "begins"),
    [
        ([], {}, [0]),
        ([at(step=3), at(epoch=1), at(fraction=0.5)], {}, [0, 3, 10, 30]),
        ([at(epoch=0.25)], {}, [0, 3]),
        ([at(fraction=0.3)], {}, [0, 18]),
        ([at(step=3), WAITS], {}, [0, 3]),
        ([at(step=3), WAITS], {2: 20}, [0, 3, 20]),
        ([WAITS, at(step=30)], {}, [0]),
        ([WAITS, at(step=30)], {1: 20}, [0, 20, 30]),
        ([WAITS, at(step=30)], {1: 40}, [0, 40, 40]),
        ([plateau(max_epochs=2)], {}, [0, 20]),
        ([plateau(max_epochs=2)], {1: 10}, [0, 10]),
        ([plateau(max_epochs=2)], {1: 25}, [0, 20]),
        ([at(epoch=1), plateau(max_epochs=0.25)], {}, [0, 10, 13]),
        ([WAITS, plateau(max_epochs=2)], {1: 7}, [0, 7, 27]),
        ([WAITS, WAITS], {1: 10, 2: 20}, [0, 10, 20]),
        ([WAITS, WAITS], {2: 20}, [0]),
    ],
    ids=str,
)
def test_stages_begin_at_their_times_and_wait_behind_a_plateau(stages, fired, begins):
    assert timeline(*stages).begins(fired=fired) == begins


def test_a_stage_that_waited_behind_a_plateau_begins_with_it():
    waited = timeline(WAITS, at(step=5), at(step=30))
    assert [waited.stage_at(step, fired={1: 20}) for step in (19, 20, 29, 30)] == [0, 2, 2, 3]


def test_without_patience_left_a_plateau_stage_begins_at_its_deadline():
    """max_epochs counts from the start of the stage before, not from the start of the run."""
    deadline = timeline(at(step=5), plateau(max_epochs=1.5))
    assert [deadline.stage_at(step, fired={}) for step in (4, 5, 19, 20)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("step", "fired", "expected"), [(0, {}, None), (3, {}, 2), (40, {}, 2), (19, {2: 20}, 2), (20, {2: 20}, None)]
)
def test_a_plateau_is_awaited_from_the_stage_before_it_until_it_is_found(step, fired, expected):
    assert timeline(at(step=3), WAITS).awaited(step, fired=fired) == expected


@st.composite
def plans(draw):
    """Times in order, with plateaus between them, and where some of the plateaus were found."""
    steps = draw(st.lists(st.integers(1, MAX_STEPS + 10), unique=True, max_size=5).map(sorted))
    stages: list[Stage] = []
    for step in steps:
        stages += draw(st.lists(st.builds(plateau, max_epochs=st.sampled_from([None, 0.5, 2])), max_size=2))
        stages.append(at(step=step))
    waiting = [index for index, stage in enumerate(stages, start=1) if stage.plateau]
    found = draw(st.sets(st.sampled_from(waiting))) if waiting else set()
    return timeline(*stages), {stage: draw(st.integers(1, MAX_STEPS)) for stage in found}


@given(plans())
def test_begins_are_monotone_and_every_step_has_the_stage_that_began_last(plan):
    laid_out, fired = plan
    begins = laid_out.begins(fired=fired)
    assert begins[0] == 0
    assert begins == sorted(begins)
    stages = [laid_out.stage_at(step, fired=fired) for step in range(MAX_STEPS + 20)]
    for step, stage in enumerate(stages):
        assert begins[stage] <= step
        assert all(begin > step for begin in begins[stage + 1 :])


@given(plans(), st.integers(0, MAX_STEPS))
def test_what_is_found_later_changes_nothing_before(plan, now):
    """A resumed run knows the plateaus up to its step; the stages up to there are those of the whole run."""
    laid_out, fired = plan
    known = {stage: step for stage, step in fired.items() if step <= now}
    for step in range(now + 1):
        assert laid_out.stage_at(step, fired=known) == laid_out.stage_at(step, fired=fired)


@given(plans(), st.integers(0, MAX_STEPS))
def test_what_is_awaited_is_a_plateau_that_has_not_begun(plan, step):
    laid_out, fired = plan
    awaited = laid_out.awaited(step, fired=fired)
    begins = laid_out.begins(fired=fired)
    if awaited is not None:
        assert awaited == laid_out.stage_at(step, fired=fired) + 1
        assert awaited >= len(begins) or begins[awaited] > step


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([at(epoch=1), at(step=10)], r"epoch 1 \(step 10\) starts at the same step as .* step 10"),
        ([at(step=11), at(epoch=1)], r"step 11 \(step 11\) starts after the next one"),
        ([at(step=11), WAITS, at(epoch=1)], r"step 11 \(step 11\) starts after the next one"),
    ],
)
def test_stages_out_of_order_or_at_one_time_are_refused(stages, message):
    with pytest.raises(PlanError, match=message):
        timeline(*stages)


@pytest.mark.parametrize(("stage", "message"), [(at(epoch=1), "Use step="), (plateau(max_epochs=1), "max_epochs")])
def test_epochs_of_data_without_a_length_are_refused(stage, message):
    with pytest.raises(PlanError, match=message):
        timeline(stage, per_epoch=None)


def test_stages_past_the_end_are_warned_of(caplog):
    timeline(at(step=5), at(step=60), at(epoch=9))
    assert "ends after 60 steps, before these stages start: step 60, epoch 9" in caplog.text
