"""Subclasses that a user writes of FreezeTrainer and FreezeCallback, and copies of them."""

import copy
import pickle

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_freeze import (
    FreezeCallback,
    FreezePlan,
    FreezeTrainer,
    FreezeTrainerMixin,
    PlanError,
    Stage,
    UnsupportedSetupError,
)
from tests.models import text_rows, tiny_bert
from tests.training.runs import AtStep, arguments, freeze_trainer, moved, weights

HEAD = {"classifier.weight", "classifier.bias"}
STAGED = FreezePlan(trainable="head", stages=[Stage(step=1, unfreeze="layers[-1]")])


def test_a_mixin_behind_the_trainer_is_refused_when_the_class_is_written():
    with pytest.raises(UnsupportedSetupError, match=r"class Wrong\(Trainer, FreezeTrainerMixin\).*first"):
        type("Wrong", (Trainer, FreezeTrainerMixin), {})


def test_a_class_of_ones_own_may_stand_before_a_freeze_trainer():
    class Mine(Trainer):
        pass

    class InFront(Mine, FreezeTrainer):
        pass

    assert issubclass(InFront, FreezeTrainerMixin)


def test_a_mixin_without_a_trainer_is_refused(tmp_path):
    class Alone(FreezeTrainerMixin):
        pass

    with pytest.raises(
        UnsupportedSetupError, match=r"Alone is not a transformers\.Trainer.*FreezeTrainerMixin, Trainer"
    ):
        Alone(tiny_bert(), arguments(tmp_path))


class DecaysByItsOwnList(FreezeTrainer):
    """As in the Trainer, what decays may be told by what a subclass sets after the Trainer's constructor."""

    def __init__(self, *args, decays=("weight",), **kwargs):
        super().__init__(*args, **kwargs)
        self.decays = decays

    def get_decay_parameter_names(self, model):
        return [name for name, _ in self.model.named_parameters() if name.endswith(self.decays)]


@pytest.mark.parametrize("by_model_init", [False, True], ids=["model", "model_init"])
def test_what_decays_may_depend_on_what_the_constructor_sets(tmp_path, by_model_init):
    given = {"trainer": DecaysByItsOwnList, "trainable": ["head"], "weight_decay": 0.1}
    trainer = freeze_trainer(None if by_model_init else tiny_bert(), tmp_path, **given, **init(by_model_init))
    trainer.train()
    decays = [(len(group["params"]), group["weight_decay"]) for group in trainer.optimizer.param_groups]
    assert decays == [(1, 0.1), (1, 0.0)]


def init(by_model_init):
    return {"model_init": lambda: tiny_bert()} if by_model_init else {}


class OwnOptimizer(FreezeTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.0)
        return self.optimizer


@pytest.mark.parametrize("by_model_init", [False, True], ids=["model", "model_init"])
def test_a_run_with_an_optimizer_of_its_own_resumes_bit_equal(tmp_path, by_model_init):
    given = {"trainer": OwnOptimizer, "freeze_plan": STAGED, "save_strategy": "steps", "save_steps": 1}
    model = None if by_model_init else tiny_bert()
    whole = freeze_trainer(model, tmp_path, **given, **init(by_model_init))
    whole.train()
    resumed = freeze_trainer(None if by_model_init else tiny_bert(seed=1), tmp_path, **given, **init(by_model_init))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert moved(weights(whole.model), resumed.model) == set()


def plain(folder, *callbacks):
    args = arguments(folder, TrainingArguments)
    return Trainer(tiny_bert(), args, train_dataset=text_rows(), callbacks=[*callbacks])


class Named(FreezeCallback):
    """A callback with something of its own."""

    def __init__(self, name):
        super().__init__("linear-probe", verify=False)
        self.name = name


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_copy_of_a_callback_declares_the_same_and_has_neither_model_nor_run(tmp_path, copied, when):
    callback, copies = Named("mine"), []
    take = AtStep(lambda model, optimizer: copies.append(copied(callback)), step=1 if when == "while" else -1)
    if when == "before":
        copies.append(copied(callback))
    plain(tmp_path, callback, take).train()
    if when == "after":
        copies.append(copied(callback))
    (twin,) = copies
    assert (twin.name, twin.plan, twin.settings) == ("mine", callback.plan, callback.settings)
    assert (twin.resolved, twin.stage) == (None, None)
    trainer = plain(tmp_path, twin)
    before = weights(trainer.model)
    trainer.train()
    assert moved(before, trainer.model) == HEAD


def test_a_copy_of_a_freeze_trainer_that_trains_has_no_run(tmp_path):
    trainer = freeze_trainer(tiny_bert(), tmp_path, trainable=["head"])
    stages = []
    trainer.add_callback(AtStep(lambda model, optimizer: stages.append(copy.deepcopy(trainer).freeze_stage)))
    trainer.train()
    assert stages == [None]


# Nobody begins a run


class ForgetsSuper(FreezeCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        pass


def test_a_subclass_that_forgets_super_when_training_begins_is_refused_before_the_first_step(tmp_path):
    trainer = plain(tmp_path, ForgetsSuper(STAGED))
    before = weights(trainer.model)
    with pytest.raises(PlanError, match=r"no run was begun under the plan.*super\(\)\.on_train_begin"):
        trainer.train()
    assert moved(before, trainer.model) == set()


class Act(TrainerCallback):
    """Calls `act()` after the first step, once."""

    def __init__(self, act):
        self.act = act

    def on_step_end(self, args, state, control, **kwargs):
        act, self.act = self.act, None
        if act:
            act()


def test_a_callback_added_while_the_trainer_trains_is_refused(tmp_path):
    trainer = plain(tmp_path)
    trainer.add_callback(Act(lambda: trainer.add_callback(FreezeCallback(STAGED))))
    with pytest.raises(PlanError, match="added while the Trainer trains"):
        trainer.train()


def test_a_callback_that_another_trainer_inside_took_is_refused_in_the_outer_one(tmp_path):
    callback = FreezeCallback(STAGED)
    inner = plain(tmp_path, callback)
    outer = plain(tmp_path, callback, Act(inner.train))
    with pytest.raises(PlanError, match="given to two Trainers"):
        outer.train()
    assert inner.state.global_step == 3


def test_a_freeze_trainer_without_its_callback_is_refused(tmp_path):
    trainer = freeze_trainer(tiny_bert(), tmp_path, trainable=["head"])
    trainer.remove_callback(FreezeCallback)
    with pytest.raises(PlanError, match="FreezeTrainer has lost its FreezeCallback"):
        trainer.train()
