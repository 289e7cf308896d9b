"""What a caller got wrong is said in a sentence, before any work."""

import pytest
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezeError, FreezePlan, Stage, freeze, param_groups, trainable_summary, unfreeze
from tests.models import text_rows, tiny_bert
from tests.training.runs import AtStep, arguments, freeze_trainer

HEAD = FreezePlan(trainable="head")


@pytest.mark.parametrize(
    "call", [freeze, unfreeze, trainable_summary, HEAD.resolve, lambda model: param_groups(model, lr=0.1)]
)
@pytest.mark.parametrize("model", [None, "bert", 3])
def test_what_is_no_model_is_refused(call, model):
    with pytest.raises(FreezeError, match=r"The model is a torch\.nn\.Module; got"):
        call(model)


@pytest.mark.parametrize("selection", [None, 3, [], [None], {"head"}, nn.Linear(1, 1)])
def test_what_is_no_selection_is_refused(selection):
    with pytest.raises(FreezeError, match="select"):
        freeze(tiny_bert(), selection)


@pytest.mark.parametrize("stages", [3, "x", None, Stage(epoch=1, unfreeze="all"), {"epoch": 1}])
def test_stages_that_are_no_list_are_refused(stages):
    with pytest.raises(FreezeError, match="stages"):
        FreezePlan(trainable="head", stages=stages)


@pytest.mark.parametrize(
    "call", [freeze, unfreeze, trainable_summary, HEAD.resolve, lambda model: param_groups(model, lr=0.1)]
)
def test_a_lazy_module_is_refused_by_name(call):
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.LazyLinear(2)})
    with pytest.raises(FreezeError, match=r"'head\.weight' has no shape yet"):
        call(model)


def trainer(folder, *callbacks):
    return Trainer(
        tiny_bert(), arguments(folder, TrainingArguments), train_dataset=text_rows(), callbacks=list(callbacks)
    )


@pytest.mark.parametrize("second", [FreezePlan(trainable="head"), FreezePlan(trainable="layers[-1]")])
def test_a_second_plan_for_one_trainer_is_refused_with_both_named(tmp_path, second):
    with pytest.raises(FreezeError, match=r"Two plans for one Trainer: .*head.* and .*"):
        trainer(tmp_path, FreezeCallback(HEAD), FreezeCallback(second)).train()


def test_a_second_plan_added_to_a_freeze_trainer_is_refused(tmp_path):
    ours = freeze_trainer(tiny_bert(), tmp_path, trainable="head")
    ours.add_callback(FreezeCallback(FreezePlan(trainable="all")))
    with pytest.raises(FreezeError, match="Two plans for one Trainer"):
        ours.train()


def test_a_group_that_a_callback_adds_to_the_optimizer_is_refused_by_name(tmp_path):
    extra = nn.Linear(2, 2)
    add = AtStep(lambda model, optimizer: optimizer.add_param_group({"params": [*extra.parameters()], "name": "mine"}))
    with pytest.raises(FreezeError, match=r"has 3 groups, and had 2 when training began: 'mine' was added"):
        trainer(tmp_path, FreezeCallback(HEAD), add).train()
