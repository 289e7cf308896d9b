"""What a caller got wrong is said in a sentence, before any work."""

import pytest
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze import (
    FreezeCallback,
    FreezeError,
    FreezePlan,
    FreezeSettings,
    Plateau,
    Stage,
    freeze,
    param_groups,
    trainable_summary,
    unfreeze,
)
from tests.models import text_rows, tiny_bert
from tests.training.runs import AtStep, arguments, freeze_trainer

HEAD = FreezePlan(trainable="head")


@pytest.mark.parametrize(
    "call", [freeze, unfreeze, trainable_summary, HEAD.resolve, lambda model: param_groups(model, lr=0.1)]
)
@pytest.mark.parametrize("model", [None, "bert", 3])
def test_what_is_no_model_is_refused(call, model):
    with pytest.raises(FreezeError, match=r"The model must be a torch\.nn\.Module; got"):
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
    with pytest.raises(FreezeError, match=r"3 groups.* 2 when training began.*'mine' was added"):
        trainer(tmp_path, FreezeCallback(HEAD), add).train()


WRONG_TYPES = {
    "greater_is_better": lambda: Plateau("f1", greater_is_better="yes"),
    "restore_best": lambda: Plateau("f1", restore_best=1),
    "patience": lambda: Plateau("f1", patience=True),
    "min_delta": lambda: Plateau("f1", min_delta="0.1"),
    "max_epochs": lambda: Plateau("f1", max_epochs=float("nan")),
    "a step must be": lambda: Stage(step=False, unfreeze="all"),
    "selects nothing": lambda: Stage(step=1, unfreeze=[]),
    "frozen_eval='no'": lambda: FreezeCallback(HEAD, frozen_eval="no"),
    "verify=None": lambda: FreezeSettings(verify=None),
    "unfreeze_warmup='2'": lambda: FreezeCallback(HEAD, unfreeze_warmup="2"),
    "unfreeze_warmup=True": lambda: FreezeCallback(HEAD, unfreeze_warmup=True),
    "unfreeze_warmup=nan": lambda: FreezeCallback(HEAD, unfreeze_warmup=float("nan")),
    "lr='1e-3'": lambda: param_groups(tiny_bert(), lr="1e-3"),
    "weight_decay=nan": lambda: param_groups(tiny_bert(), lr=0.1, weight_decay=float("nan")),
    "layer_lr_decay='0.9'": lambda: param_groups(tiny_bert(), lr=0.1, layer_lr_decay="0.9"),
    "args=0.1": lambda: param_groups(tiny_bert(), 0.1),
    r"group_lrs=\['head'\]": lambda: param_groups(tiny_bert(), lr=0.1, group_lrs=["head"]),
    "optimizer_cls='adamw'": lambda: param_groups(tiny_bert(), lr=0.1, optimizer_cls="adamw"),
}


@pytest.mark.parametrize("said", WRONG_TYPES)
def test_a_value_of_another_type_is_refused_by_name(said):
    with pytest.raises(FreezeError, match=said):
        WRONG_TYPES[said]()


@pytest.mark.parametrize("name", ["frozen_eval", "verify_freeze", "ignore_plan_change", "cache_frozen_always"])
def test_a_flag_of_the_arguments_that_is_a_text_is_refused(tmp_path, name):
    with pytest.raises(FreezeError, match=f"{name}='false': give True or False"):
        arguments(tmp_path, **{name: "false"})
