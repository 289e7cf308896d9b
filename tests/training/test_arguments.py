"""Freezing as arguments: Python, command-line flags, YAML, JSON and dicts say the same."""

import json
from dataclasses import dataclass

import pytest
import yaml
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_freeze import (
    FreezeArguments,
    FreezePlan,
    FreezeTrainingArguments,
    PlanError,
    Plateau,
    SelectionError,
    Stage,
    recipes,
)

PARSER = HfArgumentParser(FreezeTrainingArguments)
STAGES = [{"epoch": 1, "unfreeze": "layers[-1]"}, {"step": 9, "freeze": ["head", "!classifier.bias"]}]
VALUES = {
    "output_dir": "never-written",
    "use_cpu": True,
    "freeze": ["backbone", "!norms"],
    "group_lrs": {"head": 1e-3, "norms": {"lr": 1e-4, "weight_decay": 0.1}},
    "layer_lr_decay": 0.9,
    "unfreeze_stages": STAGES,
    "frozen_eval": False,
    "verify_freeze": False,
}
PLAN = FreezePlan.from_dict({"freeze": ["backbone", "!norms"], "stages": STAGES})


def declare(**values):
    return FreezeTrainingArguments(output_dir="never-written", use_cpu=True, **values)


def assert_is_what_was_meant(args):
    assert args.freeze_plan() == PLAN
    assert args.trainable is None
    assert args.group_lrs == args.rates_by_selection == VALUES["group_lrs"]
    assert (args.layer_lr_decay, args.frozen_eval, args.verify_freeze) == (0.9, False, False)


def test_in_python():
    assert_is_what_was_meant(FreezeTrainingArguments(**VALUES))


@pytest.mark.parametrize("no_verify", [["--no_verify_freeze"], ["--verify_freeze", "false"]])
def test_as_flags(no_verify):
    flags = ["--output_dir", "never-written", "--use_cpu", "--freeze", "backbone", "!norms", "--layer_lr_decay", "0.9"]
    flags += ["--group_lrs", json.dumps(VALUES["group_lrs"]), "--unfreeze_stages", json.dumps(STAGES)]
    (args,) = PARSER.parse_args_into_dataclasses([*flags, "--frozen_eval", "false", *no_verify])
    assert_is_what_was_meant(args)


def test_from_a_yaml_file(tmp_path):
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    (args,) = PARSER.parse_yaml_file(tmp_path / "args.yaml")
    assert_is_what_was_meant(args)


def test_from_a_json_file(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps(VALUES), encoding="utf-8")
    (args,) = PARSER.parse_json_file(tmp_path / "args.json")
    assert_is_what_was_meant(args)


def test_from_a_dict():
    (args,) = PARSER.parse_dict(VALUES)
    assert_is_what_was_meant(args)


@pytest.mark.parametrize("name", ["stages.yaml", "stages.json"])
def test_stages_from_a_file_of_their_own(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(STAGES), encoding="utf-8")
    assert declare(freeze=["backbone", "!norms"], unfreeze_stages=str(tmp_path / name)).freeze_plan() == PLAN


def test_stage_objects_are_stages_too():
    stages = [Stage(epoch=1, unfreeze="layers[-1]"), STAGES[1]]
    assert declare(freeze=["backbone", "!norms"], unfreeze_stages=stages).freeze_plan() == PLAN


def test_without_any_flag_there_is_no_plan():
    args = declare()
    assert args.freeze_plan() is None
    assert args.rates_by_selection == {}
    assert (args.layer_lr_decay, args.frozen_eval, args.verify_freeze) == (1.0, True, True)


def test_one_string_is_a_selection_as_well():
    assert declare(trainable="head").freeze_plan() == FreezePlan(trainable="head")


def test_a_recipe_names_a_whole_plan():
    assert declare(freeze_recipe="linear-probe").freeze_plan() == FreezePlan(trainable="head")
    with pytest.raises(
        PlanError, match="freeze_recipe='linear-probe' is a whole plan; drop trainable. For a plan that has both, give"
    ):
        declare(freeze_recipe="linear-probe", trainable=["head"]).freeze_plan()


def test_both_freeze_and_trainable_are_refused():
    with pytest.raises(PlanError, match=r"freeze=\['backbone'\] and trainable=\['head'\]"):
        declare(freeze=["backbone"], trainable=["head"]).freeze_plan()


def test_a_selection_that_cannot_be_read_is_refused():
    with pytest.raises(SelectionError, match="cannot be read"):
        declare(trainable=["head, norms"]).freeze_plan()


@pytest.mark.parametrize(
    ("group_lrs", "message"),
    [
        ("{head: 1e-3}", r"group_lrs='\{head: 1e-3\}' is not JSON"),
        ("rates.json", "is not JSON"),
        ("[1, 2]", r"group_lrs=\[1, 2\] is not a mapping of selections to learning rates, such as \{'head': 1e-3\}"),
        (0.1, "group_lrs=0.1 is not a mapping"),
    ],
)
def test_rates_that_are_no_mapping_are_refused_at_once(group_lrs, message):
    with pytest.raises(PlanError, match=message):
        declare(group_lrs=group_lrs)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{epoch: 1}]", "unfreeze_stages='.*' is not JSON"),
        ("missing.yaml", "The plan file 'missing.yaml' cannot be read"),
        ({"epoch": 1, "unfreeze": "all"}, "is not a list of stages"),
        ([{"epoch": 1}], "this one says neither"),
        (["head"], "A stage is a mapping with the keys"),
    ],
)
def test_stages_that_are_no_list_of_stages_are_refused(stages, message):
    with pytest.raises(PlanError, match=message):
        declare(trainable=["head"], unfreeze_stages=stages).freeze_plan()


def test_arguments_are_written_and_read_back():
    args = FreezeTrainingArguments(**VALUES)
    written = json.loads(args.to_json_string())
    assert {name: written[name] for name in VALUES} == {**VALUES, "output_dir": "never-written"}
    known = {name: value for name, value in args.to_dict().items() if name in VALUES}
    assert_is_what_was_meant(FreezeTrainingArguments(**known))


WAITS = {"plateau": Plateau("f1", patience=2), "freeze": "head"}
OBJECTS = [
    [Stage(epoch=1, unfreeze=("layers[-1]", "!norms"))],
    [Stage(**WAITS), {"step": 9, "unfreeze": "all"}],
    [{**WAITS}],
    recipes.gradual().stages,
]


@pytest.mark.parametrize("stages", OBJECTS, ids=["stage", "plateau", "plateau in a dict", "top down"])
def test_stages_given_as_objects_are_written_and_read_back(stages):
    args = declare(trainable=["head"], unfreeze_stages=stages)
    written = json.loads(args.to_json_string())
    assert declare(trainable=["head"], unfreeze_stages=written["unfreeze_stages"]).freeze_plan() == args.freeze_plan()
    assert args.to_dict()["unfreeze_stages"] == written["unfreeze_stages"]


def test_stages_given_as_json_text_are_written_as_the_list_that_they_are():
    assert declare(trainable=["head"], unfreeze_stages=json.dumps(STAGES)).to_dict()["unfreeze_stages"] == STAGES


def test_stages_that_are_set_later_are_read_as_well():
    args = declare(trainable=["head"])
    args.unfreeze_stages = [Stage(epoch=1, unfreeze="all")]
    assert args.freeze_plan() == FreezePlan(trainable=["head"], stages=args.unfreeze_stages)


def test_arguments_survive_to_a_tracker():
    clean = FreezeTrainingArguments(**VALUES).to_sanitized_dict()
    assert all(isinstance(value, bool | int | float | str) for value in clean.values())


@dataclass
class Seq2SeqFreezeArguments(FreezeArguments, Seq2SeqTrainingArguments):
    pass


def test_they_mix_into_any_training_arguments():
    parser = HfArgumentParser(Seq2SeqFreezeArguments)
    flags = ["--output_dir", "never-written", "--use_cpu", "--trainable", "head", "--predict_with_generate"]
    (args,) = parser.parse_args_into_dataclasses([*flags, "--group_lrs", '{"head": 0.1}'])
    assert args.freeze_plan() == FreezePlan(trainable=["head"])
    assert args.rates_by_selection == {"head": 0.1}
    assert args.predict_with_generate


def test_the_trainers_own_set_up_runs_once_for_each_arguments():
    class Counting(TrainingArguments):
        calls = 0

        def __post_init__(self):
            type(self).calls += 1
            super().__post_init__()

    @dataclass
    class Both(FreezeArguments, Counting):
        pass

    Both(output_dir="never-written", use_cpu=True, group_lrs='{"head": 0.1}')
    assert Both.calls == 1


def test_they_stand_alone_as_well():
    assert FreezeArguments(trainable=["head"]).freeze_plan() == FreezePlan(trainable=["head"])


def test_every_flag_has_a_help_text():
    text = PARSER.format_help()
    own = FreezeArguments.__dataclass_fields__.values()
    assert all(field.metadata["help"] for field in own)
    assert all(f"--{field.name}" in text for field in own)
