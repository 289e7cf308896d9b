"""Every optimizer that TrainingArguments(optim=...) names and that runs on a CPU."""

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_freeze import FreezeCallback, FreezePlan, PlanError, UnsupportedSetupError
from tests.models import text_rows, tiny_bert
from tests.training.runs import arguments, freeze_trainer, moved, names, training_logs, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning"),
    pytest.mark.filterwarnings("ignore:This implementation of AdamW is deprecated:FutureWarning"),  # galore_torch
    pytest.mark.filterwarnings("ignore:.torch.cuda.amp.autocast:FutureWarning"),  # grokadamw
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla is imported:UserWarning"),  # grokadamw
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),  # torchao
]

LOW_RANK = {"optim_target_modules": ["query", "value"], "optim_args": "rank=4,update_proj_gap=2"}

# The package that it needs, and what else has to be said.
RUNS = {
    "adamw_torch": (None, {}),
    "adamw_torch_fused": (None, {}),
    "adafactor": (None, {}),
    "sgd": (None, {}),
    "adagrad": (None, {}),
    "rmsprop": (None, {}),
    "galore_adamw": ("galore_torch", LOW_RANK),
    "galore_adafactor": ("galore_torch", LOW_RANK),
    "apollo_adamw": ("apollo_torch", LOW_RANK),
    "grokadamw": ("grokadamw", {}),
    "schedule_free_radam": ("schedulefree", {"max_steps": 8}),
    "schedule_free_adamw": ("schedulefree", {}),
    "schedule_free_sgd": ("schedulefree", {}),
    "stable_adamw": ("optimi", {}),
    "adamw_torch_4bit": ("torchao", {}),
    "adamw_torch_8bit": ("torchao", {}),
    "ademamix": ("bitsandbytes", {}),
    "adamw_bnb_8bit": ("bitsandbytes", {}),
    "adamw_8bit": ("bitsandbytes", {}),
    "ademamix_8bit": ("bitsandbytes", {}),
    "lion_8bit": ("bitsandbytes", {}),
    "lion_32bit": ("bitsandbytes", {}),
    "paged_adamw_32bit": ("bitsandbytes", {}),
    "paged_adamw_8bit": ("bitsandbytes", {}),
    "paged_ademamix_32bit": ("bitsandbytes", {}),
    "paged_ademamix_8bit": ("bitsandbytes", {}),
    "paged_lion_32bit": ("bitsandbytes", {}),
    "paged_lion_8bit": ("bitsandbytes", {}),
    "rmsprop_bnb": ("bitsandbytes", {}),
    "rmsprop_bnb_8bit": ("bitsandbytes", {}),
    "rmsprop_bnb_32bit": ("bitsandbytes", {}),
}
REFUSED = [
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
    "lomo",
    "adalomo",
]
OTHER_HARDWARE = {"adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision", "galore_adamw_8bit"}
UNTIL_5_0 = {"adamw_apex_fused"}  # for other hardware too


def test_every_name_is_run_refused_or_needs_other_hardware():
    names = {name.value for name in OptimizerNames} - UNTIL_5_0
    assert names == RUNS.keys() | set(REFUSED) | OTHER_HARDWARE


@pytest.mark.parametrize("optim", RUNS)
def test_groups_keep_their_names_and_rates_and_frozen_weights_stay(tmp_path, optim):
    package, settings = RUNS[optim]
    if package:
        pytest.importorskip(package)
    model = tiny_bert()
    before = weights(model)
    trainer = freeze_trainer(
        model,
        tmp_path,
        trainable=["head", "layers[-1]"],
        group_lrs={"head": 0.02},
        layer_lr_decay=0.5,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        optim=optim,
        **settings,
    )
    trainer.train()
    trained = names(model, "classifier", "bert.encoder.layer.1.")
    assert moved(before, model) == trained
    entry = training_logs(trainer)[-1]
    rates = {key: value for key, value in entry.items() if key.startswith("lr/")}
    assert rates == pytest.approx({"lr/head": 0.02, "lr/layers.1": 0.005})  # torchao keeps rates in float32
    held = [id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(model.get_parameter(name)) for name in trained)


def test_a_low_rank_group_holds_the_target_matrices_and_their_options(tmp_path):
    pytest.importorskip("galore_torch")
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, trainable=["head", "layers[-1]"], optim="galore_adamw", **LOW_RANK)
    trainer.train()
    group = next(group for group in trainer.optimizer.param_groups if group["name"].endswith("low_rank"))
    attention = model.bert.encoder.layer[1].attention.self
    assert {id(p) for p in group["params"]} == {id(attention.query.weight), id(attention.value.weight)}
    assert (group["rank"], group["update_proj_gap"]) == (4, 2)


def _plain_trainer(model, folder, **settings):
    args = arguments(folder, TrainingArguments, **settings)
    return Trainer(model, args, callbacks=[FreezeCallback(FreezePlan(trainable="head"))])


@pytest.mark.parametrize("optim", REFUSED)
@pytest.mark.parametrize("build", [freeze_trainer, _plain_trainer], ids=["FreezeTrainer", "callback"])
def test_optimizers_that_step_inside_backward_are_refused_with_the_reason(tmp_path, optim, build):
    settings = {"optim": optim, "optim_target_modules": ["query"]}
    with pytest.raises(UnsupportedSetupError, match=f"optim='{optim}' steps each parameter inside backward.*Use one"):
        build(tiny_bert(), tmp_path, **settings)


def test_an_optimizer_class_of_the_users_own_gets_the_groups(tmp_path):
    model = tiny_bert()
    before = weights(model)
    trainer = freeze_trainer(
        model,
        tmp_path,
        trainable=["head"],
        group_lrs={"classifier.weight": {"lr": 0.5, "momentum": 0.9}},
        lr_scheduler_type="constant",
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.01}),
    )
    trainer.train()
    assert moved(before, model) == {"classifier.weight", "classifier.bias"}
    groups = {group["name"]: (group["lr"], group["momentum"]) for group in trainer.optimizer.param_groups}
    assert groups == {"trainable.no_decay": (0.01, 0), "classifier.weight": (0.5, 0.9)}


def test_an_unknown_option_of_a_group_is_refused_before_the_first_step(tmp_path):
    trainer = freeze_trainer(tiny_bert(), tmp_path, group_lrs={"head": {"lr": 0.1, "momentum": 0.9}})
    with pytest.raises(PlanError, match="'momentum' is not an option of AdamW.*betas"):
        trainer.train()


def test_a_passed_scheduler_is_kept(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    trainer = freeze_trainer(model, tmp_path, trainable=["head"], optimizers=(optimizer, scheduler))
    trainer.train()
    assert [entry["lr/group_0"] for entry in training_logs(trainer)] == [0.1, 0.05, 0.025]


def test_reduce_on_plateau_schedules_every_group(tmp_path):
    trainer = freeze_trainer(
        tiny_bert(),
        tmp_path,
        trainable=["head"],
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 1.0},
        eval_strategy="steps",
        eval_steps=1,
        eval_dataset=text_rows(4),
        metric_for_best_model="loss",
    )
    trainer.train()
    rates = [entry["lr/trainable"] for entry in training_logs(trainer)]
    assert rates == [0.01, 0.005, 0.0025]
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.00125}  # after the last evaluation
