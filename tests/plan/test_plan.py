"""The declaration alone: what a plan accepts, and how it is written down and read back."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_freeze import FreezePlan, PlanError, Plateau, SelectionError, Stage
from tests.models import tiny_bert

FULL = FreezePlan(
    freeze=["backbone", "!norms"],
    stages=[
        Stage(epoch=0.5, unfreeze="layers[-1]"),
        Stage(step=500, unfreeze=["layers[-4:]"], freeze="head"),
        Stage(plateau=Plateau("eval_loss", patience=2, max_epochs=3, restore_best=True), unfreeze="all"),
    ],
)


@pytest.mark.parametrize(
    ("given_", "found"),
    [({}, "neither"), ({"freeze": "backbone", "trainable": ["head"]}, r"freeze='backbone' and trainable=\['head'\]")],
)
def test_a_plan_has_exactly_one_of_freeze_and_trainable(given_, found):
    with pytest.raises(PlanError, match=f"exactly one of freeze= and trainable=.*{found}"):
        FreezePlan(**given_)


@pytest.mark.parametrize("selection", ["layers[", [], "all & !head", 3, ["head", 3], {"head"}])
def test_a_selection_that_cannot_be_read_is_refused_when_it_is_declared(selection):
    with pytest.raises(SelectionError):
        FreezePlan(trainable=selection)
    with pytest.raises(SelectionError):
        FreezePlan(freeze=selection)


def test_stages_are_stages():
    with pytest.raises(PlanError, match=r"stages=.*\{'epoch': 1\}.*FreezePlan.from_dict"):
        FreezePlan(trainable="head", stages=[{"epoch": 1}])


def test_a_plan_cannot_be_rewritten():
    with pytest.raises(AttributeError):
        FULL.freeze = "head"


@pytest.mark.parametrize("plan", [FULL, FreezePlan(trainable="head"), FreezePlan(freeze=("backbone", "!norms"))])
def test_a_plan_survives_its_dict_and_json(plan):
    written = plan.to_dict()
    read = FreezePlan.from_dict(json.loads(json.dumps(written)))
    assert read.to_dict() == written
    assert FreezePlan.from_dict(read.to_dict()) == read


def test_what_is_not_set_is_not_written():
    assert FreezePlan(trainable="head").to_dict() == {"trainable": "head"}
    assert FULL.to_dict()["stages"][1] == {"step": 500, "unfreeze": ["layers[-4:]"], "freeze": "head"}


@pytest.mark.parametrize(
    ("name", "write"), [("plan.json", json.dumps), ("plan.yaml", yaml.safe_dump), ("p.yml", yaml.safe_dump)]
)
def test_a_plan_is_read_from_a_file(tmp_path, name, write):
    (tmp_path / name).write_text(write(FreezePlan.to_dict(FULL)), encoding="utf-8")
    assert FreezePlan.load(tmp_path / name).to_dict() == FULL.to_dict()
    assert FreezePlan.load(str(tmp_path / name)) == FULL


def test_a_plan_written_by_hand_is_read(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        """
        freeze: [backbone, "!norms"]
        stages:
          - epoch: 1
            unfreeze: layers[-1]
          - plateau: eval_loss
            unfreeze: all
        """,
        encoding="utf-8",
    )
    plan = FreezePlan.load(path)
    assert plan.freeze == ["backbone", "!norms"]
    assert plan.stages[1] == Stage(plateau=Plateau("eval_loss"), unfreeze="all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("freeze: [backbone, !norms]", "(?s)cannot be read: .* quote entries with '!'"),
        ("freeze: {", "cannot be read"),
        ("- head", r"A plan is a mapping with the keys freeze, .*; got \['head'\]"),
        ("", "A plan is a mapping with the keys freeze, .*; got None"),
        ("trainable: head\nstage: []", "'stage' is not a key of a plan. The keys are freeze, trainable, stages"),
        ("trainable: head\nstages: [head]", "A stage is a mapping with the keys epoch, .*; got 'head'"),
        ("trainable: head\nstages: [{epochs: 1, unfreeze: all}]", "'epochs' is not a key of a stage"),
        (
            "trainable: head\nstages: [{plateau: {metrics: f1}, unfreeze: all}]",
            "'metrics' is not a key of a plateau. The keys are metric, patience",
        ),
    ],
)
def test_a_file_that_is_no_plan_is_told_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=message):
        FreezePlan.load(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("missing.yaml", None), ("broken.json", b"{'freeze': 'all'}"), ("binary.yaml", b"\xff\xfe\x00")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PlanError, match=f"The plan file '.*{name}' cannot be read"):
        FreezePlan.load(tmp_path / name)


def test_a_folder_is_no_plan_file(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        FreezePlan.load(tmp_path)


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "found"),
    [({}, "none"), ({"epoch": 1, "step": 5}, "epoch and step"), ({"step": 0, "fraction": 0.5}, "step and")],
)
def test_a_stage_has_exactly_one_time(times, found):
    with pytest.raises(PlanError, match=f"exactly one of epoch, step.*this one has {found}"):
        Stage(**times, unfreeze="all")


def test_a_stage_changes_something():
    with pytest.raises(PlanError, match="this one says neither"):
        Stage(epoch=1)


@pytest.mark.parametrize("time", [{"fraction": 0}, {"fraction": 1}, {"fraction": -0.1}, {"epoch": -1}, {"step": -1}])
def test_a_time_outside_the_run_is_refused(time):
    with pytest.raises(PlanError, match="fraction.* 0 and 1"):
        Stage(**time, unfreeze="all")


@pytest.mark.parametrize("field", ["unfreeze", "freeze"])
def test_a_stages_selections_are_read_when_it_is_declared(field):
    with pytest.raises(SelectionError, match=r"layers\["):
        Stage(epoch=1, **{field: "layers["})


@pytest.mark.parametrize(
    "values",
    [
        {"metric": ""},
        {"metric": "f1", "patience": 0},
        {"metric": "f1", "min_delta": -1},
        {"metric": "f1", "max_epochs": 0},
    ],
)
def test_a_plateau_that_never_ends_or_has_no_metric_is_refused(values):
    with pytest.raises(PlanError, match="Plateau"):
        Plateau(**values)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 999))
def test_times_become_steps_as_their_definition_says(max_steps, per_epoch, thousandths):
    def start(**time):
        return Stage(**time, unfreeze="all").start(max_steps=max_steps, steps_per_epoch=per_epoch)

    assert start(step=7) == 7
    assert start(epoch=2) == 2 * per_epoch
    assert start(fraction=thousandths / 1000) == -(-thousandths * max_steps // 1000)
    assert start(plateau=Plateau("f1")) is None


def test_an_epoch_of_data_without_a_length_is_refused():
    with pytest.raises(PlanError, match="the data has no length, so it is unknown"):
        Stage(epoch=1, unfreeze="all").start(max_steps=10, steps_per_epoch=None)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"lr_factors": {"head": -1}}, r"lr_factors\['head'\]=-1.*above 0"),
        ({"lr_factors": {"head": True}}, "above 0"),
        ({"lr_factors": {"head": float("nan")}}, "above 0"),
        ({"lr_factors": ["head"]}, "not a mapping of selections to factors"),
        ({"lr_factors": 10}, "not a mapping of selections to factors"),
        ({"lr_spread": 0}, "lr_spread=0.*at least 1"),
        ({"lr_spread": "100"}, "lr_spread='100'"),
    ],
)
def test_rates_of_a_plan_that_are_none_are_refused(rates, message):
    with pytest.raises(PlanError, match=message):
        FreezePlan(trainable="head", **rates)


@pytest.mark.parametrize("factor", [0, -0.5, float("inf"), "half", True])
def test_a_factor_of_a_stage_that_is_none_is_refused(factor):
    with pytest.raises(PlanError, match="lr_factor must be a finite number above 0"):
        Stage(epoch=1, unfreeze="all", lr_factor=factor)


def test_rates_of_a_plan_survive_its_file(tmp_path):
    stage = Stage(epoch=1, unfreeze="all", lr_factor=0.5)
    plan = FreezePlan(trainable="head", stages=[stage], lr_factors={"head": 10.0}, lr_spread=100.0)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.to_dict()), encoding="utf-8")
    assert FreezePlan.load(path) == plan
    assert isinstance(hash(plan), int)


def test_a_stage_without_a_factor_keeps_that_of_the_stage_before():
    stages = [
        Stage(epoch=1, unfreeze="layers[-1]"),
        Stage(epoch=2, unfreeze="layers[-2]", lr_factor=0.5),
        Stage(epoch=3, unfreeze="all"),
        Stage(epoch=4, freeze="embeddings", lr_factor=1.0),
    ]
    assert FreezePlan(trainable="head", stages=stages).resolve(tiny_bert()).lr_factors == (1.0, 1.0, 0.5, 0.5, 1.0)
