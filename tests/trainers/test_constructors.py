"""Constructors of any shape keep the plan, and `freezing` finds the classes that belong together."""

import copy

import pytest
import transformers as hf

from hf_freeze import (
    FreezeCallback,
    FreezePlan,
    FreezeTrainer,
    FreezeTrainingArguments,
    SelectionError,
    UnsupportedSetupError,
    freezing,
)
from tests.models import tiny_bert
from tests.quiet import quiet_arguments
from tests.trainers.kinds import KINDS, ROWS, TeacherTrainer, distillation, sequence_to_sequence
from tests.trainers.runs import moved, weights

pytestmark = pytest.mark.filterwarnings("ignore")


def test_arguments_reach_the_parameter_of_their_name_by_position_too(tmp_path):
    mine, declared = freezing(TeacherTrainer)
    args = declared(str(tmp_path), trainable=["head"], learning_rate=0.123, use_cpu=True, report_to=[])
    given = distillation()
    by_name = mine(given["model"], args=args, teacher=given["teacher"], train_dataset=given["train_dataset"])
    by_place = mine(given["model"], given["teacher"], args, train_dataset=given["train_dataset"])
    assert by_name.args is args is by_place.args
    assert by_name.teacher is given["teacher"] is by_place.teacher


class PositionalTrainer(hf.Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class NamedTrainer(hf.Trainer):
    def __init__(self, *, model, args, reward_funcs=None, **kwargs):
        self.reward_funcs = reward_funcs
        super().__init__(model, args, **kwargs)


class ReplacingTrainer(hf.Trainer):
    """Ends up with another model than it was given, as after `peft_config=`."""

    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(model, args, **kwargs)
        self.model = self.model_wrapped = tiny_bert(layers=4, seed=7)


class LowerTrainer(hf.Trainer):
    """Ends up with fewer layers than it was given."""

    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(model, args, **kwargs)
        self.model = self.model_wrapped = tiny_bert(layers=2)


def test_a_mistake_that_only_the_model_at_the_end_shows_is_named_by_the_constructor(tmp_path):
    mine, declared = freezing(LowerTrainer)
    args = short(tmp_path / "out", declared, trainable=["layers[3]"])
    with pytest.raises(SelectionError, match=r"layers\[3\]"):
        mine(tiny_bert(layers=4), args, train_dataset=ROWS)
    made = mine(tiny_bert(layers=4), short(tmp_path / "b", declared, trainable=["layers[-1]"]), train_dataset=ROWS)
    assert made.resolved_plan.ever_trainable == FreezePlan(trainable="layers[1]").resolve(tiny_bert(layers=2)).names[0]


class FreezingTrainer(hf.Trainer):
    """Freezes something itself while it is constructed."""

    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(model, args, **kwargs)
        self.model.bert.embeddings.requires_grad_(False)


def test_what_a_trainer_freezes_in_its_constructor_stays_frozen_under_all(tmp_path):
    mine, declared = freezing(FreezingTrainer)
    made = mine(tiny_bert(), short(tmp_path, declared, trainable=["all"]), train_dataset=ROWS)
    before = weights(made)
    made.train()
    changed = moved(before, weights(made))
    assert changed
    assert not any("embeddings" in name for name in changed)


class CopyingTrainer(hf.Trainer):
    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(model, copy.deepcopy(args), **kwargs)


class ArgumentlessTrainer(hf.Trainer):
    def train(self):
        return super().train()


HOSTILE = [PositionalTrainer, NamedTrainer, ReplacingTrainer, CopyingTrainer, ArgumentlessTrainer]


@pytest.mark.parametrize("base", HOSTILE)
def test_constructors_of_any_shape_keep_the_plan(tmp_path, base):
    mine, declared = freezing(base)
    args = declared(str(tmp_path), trainable=["head"], max_steps=2, use_cpu=True, report_to=[], learning_rate=0.01)
    made = mine(model=tiny_bert(layers=4), args=args, train_dataset=ROWS)
    assert made.args is args or base is CopyingTrainer
    expected = FreezePlan(trainable="head").resolve(made.model).ever_trainable
    before = weights(made)
    made.train()
    assert moved(before, weights(made)) == expected


@pytest.mark.parametrize("base", [PositionalTrainer, hf.Trainer])
def test_a_model_init_is_held_against_the_plan_at_once(tmp_path, base):
    mine, declared = freezing(base)
    args = declared(str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
    given = {"args": args, "model_init": lambda: tiny_bert(layers=4), "train_dataset": ROWS}
    mine(None, freeze_plan="linear-probe", **given).train()
    with pytest.raises(SelectionError, match="hed"):
        mine(None, freeze_plan=FreezePlan(trainable="hed"), **given)


def test_arguments_given_by_place_without_names_are_the_trainers_own(tmp_path):
    mine, declared = freezing(PositionalTrainer)
    args = declared(str(tmp_path), trainable=["head"], max_steps=1, use_cpu=True, report_to=[])
    made = mine(tiny_bert(layers=4), args, train_dataset=ROWS)
    assert made.args is args
    with pytest.raises(SelectionError, match="hed"):
        mine(tiny_bert(layers=4), declared(str(tmp_path / "b"), trainable=["hed"]), train_dataset=ROWS)
    assert not (tmp_path / "b").exists()


class RenamedTrainer(hf.Trainer):
    def __init__(self, model=None, training_args=None, **kwargs):
        super().__init__(model=model, args=training_args, **kwargs)


class ConfiguredTrainer(hf.Trainer):
    def __init__(self, config, **kwargs):
        super().__init__(**config, **kwargs)


def short(folder, cls, **given):
    return quiet_arguments(folder, cls=cls, max_steps=2, learning_rate=0.01, save_strategy="no", **given)


def renamed(cls, model, args):
    return cls(model, training_args=args, train_dataset=ROWS)


def configured(cls, model, args):
    return cls({"model": model, "args": args}, train_dataset=ROWS)


@pytest.mark.parametrize(("base", "build"), [(RenamedTrainer, renamed), (ConfiguredTrainer, configured)])
def test_a_plan_in_arguments_that_arrive_by_another_name_is_kept(tmp_path, base, build):
    mine, declared = freezing(base)
    args = short(tmp_path, declared, trainable=["layers[-1]"])
    made = build(mine, tiny_bert(layers=4), args)
    before = weights(made)
    made.train()
    assert moved(before, weights(made)) == FreezePlan(trainable="layers[-1]").resolve(made.model).ever_trainable
    with pytest.raises(SelectionError, match="hed"):
        build(mine, tiny_bert(), short(tmp_path, declared, trainable=["hed"]))


class OwnArgumentsTrainer(hf.Trainer):
    """Makes its arguments itself where none are given, as TRL's Trainers do."""

    def __init__(self, model, reward_funcs=None, args=None, *, folder, **kwargs):
        args = short(folder, hf.TrainingArguments) if args is None else args
        super().__init__(model=model, args=args, **kwargs)


@pytest.mark.parametrize("way", ["callback", "mixin"])
def test_a_trainer_that_makes_its_own_arguments_keeps_the_plan(tmp_path, way):
    plan, given = FreezePlan(trainable="layers[-1]"), {"train_dataset": ROWS, "folder": tmp_path}
    if way == "mixin":
        made = freezing(OwnArgumentsTrainer)[0](tiny_bert(), None, freeze_plan=plan, **given)
    else:
        made = OwnArgumentsTrainer(tiny_bert(), callbacks=[FreezeCallback(plan)], **given)
    before = weights(made)
    made.train()
    assert moved(before, weights(made)) == plan.resolve(made.model).ever_trainable


class NearTrainer(hf.Seq2SeqTrainer):
    pass


class FarTrainer(NearTrainer):
    pass


@pytest.mark.parametrize(
    ("trainer", "arguments"),
    [
        (PositionalTrainer, hf.TrainingArguments),
        (RenamedTrainer, hf.TrainingArguments),
        (FarTrainer, hf.Seq2SeqTrainingArguments),
    ],
)
def test_freezing_finds_the_arguments_class_of_the_nearest_base(trainer, arguments):
    mine, declared = freezing(trainer)
    assert issubclass(mine, trainer)
    assert declared.__bases__[1] is arguments
    assert freezing(mine) == (mine, declared) == freezing(trainer)


@pytest.mark.parametrize("kind", [kind.param for kind in KINDS if kind.needs == "trl"])
def test_freezing_finds_the_config_of_every_trainer_of_trl(kind):
    _, declared = freezing(kind.trainer())
    assert declared.__name__ == f"Freeze{kind.name}Config"


def test_what_has_a_plan_already_is_returned_as_it_is():
    assert freezing(FreezeTrainer) == (FreezeTrainer, FreezeTrainingArguments)


@pytest.mark.parametrize("given", [int, 7, "SFTTrainer", None, hf.TrainingArguments, FreezeCallback])
def test_freezing_what_is_no_trainer_is_refused(given):
    with pytest.raises(UnsupportedSetupError, match=r"freezing\(.*\): give a subclass of transformers.Trainer"):
        freezing(given)


def other_arguments():
    yield pytest.param(hf.Seq2SeqTrainer, sequence_to_sequence, "Seq2SeqTrainingArguments", id="Seq2Seq")
    for kind in KINDS:
        if kind.name in ("SFT", "DPO", "SentenceTransformer"):
            wanted = "SentenceTransformerTrainingArguments" if kind.needs != "trl" else f"{kind.name}Config"
            yield pytest.param(kind.trainer, kind.build, wanted, id=kind.name, marks=kind.param.marks)


@pytest.mark.parametrize(("base", "build", "wanted"), [*other_arguments()])
def test_arguments_of_another_library_are_refused_with_the_right_class(tmp_path, base, build, wanted):
    mine, _ = freezing(base if isinstance(base, type) else base())
    args = quiet_arguments(tmp_path / "out", trainable=["all"])
    with pytest.raises(UnsupportedSetupError, match=f"FreezeTrainingArguments as args, and failed .* is {wanted}:"):
        mine(args=args, **build())
