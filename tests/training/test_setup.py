"""What could not honour a plan is refused before anything is trained or written."""

import logging
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_freeze import (
    FreezeCallback,
    FreezePlan,
    FreezeTrainer,
    FreezeTrainingArguments,
    PlanError,
    Plateau,
    Stage,
    UnsupportedSetupError,
    freeze,
)
from hf_freeze.training.bound_plan import bind
from hf_freeze.training.setup import check_setup, warn_of_coarse_weights
from tests.installed import since
from tests.launch import accelerate_launch
from tests.models import tiny_bert
from tests.quiet import quiet_arguments
from tests.training.runs import freeze_trainer

LAYERWISE = [name.value for name in OptimizerNames if "layerwise" in name.value]


def arguments(**overrides):
    return quiet_arguments(cls=TrainingArguments, **overrides)


def check(args, model=None, plan=None):
    model = model or tiny_bert()
    check_setup(args, bind(plan or FreezePlan(trainable="head"), model))


def test_a_plain_set_up_is_fine():
    check(arguments())


# --- optimizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAYERWISE, "lomo", "adalomo"])
def test_an_optimizer_that_steps_inside_backward_is_refused_with_the_reason(name):
    with pytest.raises(UnsupportedSetupError, match=f"optim='{name}' steps each parameter inside backward"):
        check(arguments(optim=name))


def test_the_optimizer_that_the_message_advises_exists_and_is_accepted():
    assert len(LAYERWISE) >= 4
    for name in [*LAYERWISE, "lomo", "adalomo"]:
        with pytest.raises(UnsupportedSetupError) as refusal:
            check(arguments(optim=name))
        advised = re.search(r"such as optim='(\w+)'", str(refusal.value))[1]
        check(arguments(optim=advised))


@pytest.mark.parametrize(
    "name", [n.value for n in OptimizerNames if "layerwise" not in n.value and "lomo" not in n.value]
)
def test_every_other_optimizer_passes(name):
    check(arguments(optim=name))


# --- precision --------------------------------------------------------------------------------------------------------


def half_precision():
    """Arguments as on a machine that can do fp16: on a CPU the arguments' own check refuses the flag."""
    args = arguments()
    args.fp16 = True
    return args


def test_float16_weights_under_a_gradient_scaler_are_refused_when_they_train():
    with pytest.raises(UnsupportedSetupError, match=r"'classifier.weight' and 1 other.*float16"):
        check(half_precision(), tiny_bert().half())


def test_float16_weights_that_stay_frozen_are_fine():
    model = tiny_bert()
    model.bert.half()
    check(half_precision(), model)
    check(arguments(), tiny_bert().half())


def test_a_later_stage_counts():
    model = tiny_bert()
    model.bert.half()
    plan = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="layers[-1]")])
    with pytest.raises(UnsupportedSetupError, match=r"'bert\.encoder\.layer\.1"):
        check(half_precision(), model, plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_too_coarse_for_small_steps_are_warned_of(dtype, caplog):
    model = tiny_bert().to(dtype)
    with caplog.at_level(logging.WARNING):
        warn_of_coarse_weights(bind(FreezePlan(trainable="head"), model))
    (message,) = caplog.messages
    assert message.startswith(f"'classifier.weight' and 1 other parameters to be trained are {dtype}")


def test_coarse_weights_that_stay_frozen_are_not_warned_of(caplog):
    model = tiny_bert()
    model.bert.to(torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        warn_of_coarse_weights(bind(FreezePlan(trainable="head"), model))
    assert not caplog.messages


# --- wrappers ---------------------------------------------------------------------------------------------------------


FLAT = "FSDP1 with use_orig_params=False flattens frozen and trainable"


@pytest.mark.parametrize("flat", [False, "false", "False"])
@pytest.mark.parametrize("prefix", ["", "fsdp_"])
def test_flat_parameters_of_fsdp1_are_refused(prefix, flat):
    args = arguments(fsdp=True, fsdp_config={f"{prefix}version": 1, f"{prefix}use_orig_params": flat})
    with pytest.raises(UnsupportedSetupError, match=FLAT):
        check(args)


@pytest.mark.parametrize(
    ("fsdp", "config"),
    [
        (True, {"version": 2, "use_orig_params": False}),
        pytest.param(
            True, {"use_orig_params": False}, marks=since("5.20", "fsdp_config is of version 1 there by default")
        ),  # of version 2
        (True, {"version": 1, "use_orig_params": True}),
        (True, {"version": 1}),  # which the Trainer takes for True
        (True, None),
        (None, {"version": 1, "use_orig_params": False}),
    ],
)
def test_other_ways_of_sharding_pass(fsdp, config):
    check(arguments(fsdp=fsdp, fsdp_config=config))


LAUNCHED = {
    "flat": ({"FSDP_VERSION": "1", "FSDP_USE_ORIG_PARAMS": "false"}, {}, True),
    "flat by default": ({}, {}, True),
    "original": ({"FSDP_VERSION": "1", "FSDP_USE_ORIG_PARAMS": "True"}, {}, False),
    "version 2": ({"FSDP_VERSION": "2", "FSDP_USE_ORIG_PARAMS": "false"}, {}, False),
    "the arguments first": (
        {"FSDP_VERSION": "2", "FSDP_USE_ORIG_PARAMS": "true"},
        {"version": 1, "use_orig_params": False},
        True,
    ),
    "the arguments first, which are fine": ({"FSDP_USE_ORIG_PARAMS": "false"}, {"version": 2}, False),
}


@pytest.mark.parametrize("case", LAUNCHED)
def test_what_accelerate_launch_leaves_in_the_environment_is_read_before_there_is_a_plugin(monkeypatch, case, tmp_path):
    environment, config, refused = LAUNCHED[case]
    for name, value in {"ACCELERATE_USE_FSDP": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    args = arguments(fsdp=True if config else None, fsdp_config=config or None)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    if not refused:
        return check(args)
    with pytest.raises(UnsupportedSetupError, match=FLAT):
        check(args)


def test_a_launch_without_fsdp_leaves_nothing_to_refuse(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("FSDP_USE_ORIG_PARAMS", "false")
    check(arguments())


LAUNCHED_SCRIPT = """
import sys
from accelerate import PartialState
from hf_freeze import FreezeTrainer, FreezeTrainingArguments, UnsupportedSetupError
from tests.models import text_rows, tiny_bert

try:
    args = FreezeTrainingArguments(sys.argv[1], trainable=["head"], report_to=[], use_cpu=True)
    FreezeTrainer(tiny_bert(), args, train_dataset=text_rows(8)).train()
except UnsupportedSetupError as refusal:
    print("REFUSED", refusal)
PartialState().destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_flat_parameters_by_accelerate_launch_are_refused_and_nothing_is_written(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED_SCRIPT, encoding="utf-8")
    flags = ["--use_fsdp", "--fsdp_version", "1", "--fsdp_use_orig_params", "false"]
    found = accelerate_launch(script, tmp_path / "out", flags=flags, processes=1)
    assert re.search(f"REFUSED {FLAT}", found), found
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("version", "original", "refused"), [(1, False, True), (1, True, False), (2, True, False)])
def test_what_accelerate_launch_configured_goes_before_the_arguments(monkeypatch, version, original, refused):
    args = arguments(fsdp=True, fsdp_config={"version": 1, "use_orig_params": refused})
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, use_orig_params=original)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"fsdp_plugin": plugin})
    if not refused:
        return check(args)
    with pytest.raises(UnsupportedSetupError, match="use_orig_params=False"):
        check(args)


STAGED = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="all")])


class DeepSpeed:
    """Stands in for the plugin, which only the installed package can make."""

    selected = True

    def __init__(self, config):
        self.deepspeed_config = config


def under_deepspeed(how, monkeypatch, config, **values):
    args = arguments(**values)
    if how == "arguments":
        args.deepspeed, args.deepspeed_plugin = config, DeepSpeed(config)
    else:
        plugins = {"a plugin": DeepSpeed(config), "several plugins": {"default": DeepSpeed(config)}}[how]
        monkeypatch.setattr(AcceleratorState, "_shared_state", {"deepspeed_plugins": plugins})
    return args


ways_to_deepspeed = pytest.mark.parametrize("how", ["arguments", "a plugin", "several plugins"])


@ways_to_deepspeed
def test_an_optimizer_that_deepspeed_builds_is_refused_for_a_plan_with_stages(monkeypatch, how):
    args = under_deepspeed(how, monkeypatch, {"optimizer": {"type": "AdamW"}})
    with pytest.raises(UnsupportedSetupError, match=r"Remove 'optimizer' from the configuration.*optim='adamw_torch'"):
        check(args, plan=STAGED)
    check(args)
    check(under_deepspeed(how, monkeypatch, {"zero_optimization": {"stage": 3}}), plan=STAGED)


def test_a_freeze_trainer_refuses_an_optimizer_that_deepspeed_builds_under_any_plan(tmp_path):
    args = FreezeTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", trainable=["head"])
    args.deepspeed_plugin = DeepSpeed({"optimizer": {"type": "AdamW"}})
    with pytest.raises(UnsupportedSetupError, match="DeepSpeed configuration has an 'optimizer'"):
        FreezeTrainer(tiny_bert(), args)
    assert not list(tmp_path.iterdir())


@ways_to_deepspeed
def test_rewinding_weights_is_refused_under_deepspeed(monkeypatch, how):
    args = under_deepspeed(how, monkeypatch, {"zero_optimization": {"stage": 1}}, eval_strategy="epoch")
    waits = Stage(plateau=Plateau("eval_loss", restore_best=True), unfreeze="all")
    with pytest.raises(UnsupportedSetupError, match=r"restore_best=True.*DeepSpeed keeps them in shards"):
        check(args, plan=FreezePlan(trainable="head", stages=[waits]))


@pytest.mark.parametrize("how", ["arguments", "accelerate launch"])
@pytest.mark.parametrize("restore_best", [True, False])
def test_rewinding_weights_is_refused_under_fsdp(monkeypatch, restore_best, how):
    args = arguments(eval_strategy="epoch", fsdp=True if how == "arguments" else None)
    if how == "accelerate launch":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    waits = Stage(plateau=Plateau("eval_loss", restore_best=restore_best), unfreeze="all")
    plan = FreezePlan(trainable="head", stages=[waits])
    if not restore_best:
        return check(args, plan=plan)
    with pytest.raises(UnsupportedSetupError, match=r"restore_best=True.*FSDP keeps them in shards"):
        check(args, plan=plan)


@pytest.mark.parametrize("sharded", ["FSDP", "ZeRO-3"])
def test_base_weights_that_train_under_peft_in_shards_are_refused_as_they_could_not_be_saved(monkeypatch, sharded):
    model = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    if sharded == "FSDP":
        args = arguments(fsdp=True)
    else:
        args = under_deepspeed("a plugin", monkeypatch, {"zero_optimization": {"stage": 3}})
    thawed = FreezePlan(trainable=["adapters", "norms"])
    with pytest.raises(UnsupportedSetupError, match=rf"LayerNorm.weight' and 9 other.*{sharded} keeps them in shards"):
        check(args, model, thawed)
    check(args, model, FreezePlan(trainable=["adapters", "head"]))
    check(under_deepspeed("a plugin", monkeypatch, {"zero_optimization": {"stage": 2}}), model, thawed)
    check(args, tiny_bert(), FreezePlan(trainable="norms"))


# --- plateaus ---------------------------------------------------------------------------------------------------------

WAITING = FreezePlan(trainable="head", stages=[Stage(plateau=Plateau("eval_loss"), unfreeze="all")])


def test_a_plateau_needs_evaluations():
    with pytest.raises(PlanError, match="waits for a plateau of 'eval_loss', but eval_strategy is 'no'"):
        check(arguments(), plan=WAITING)
    check(arguments(eval_strategy="epoch"), plan=WAITING)


# --- in the Trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainable": ["clasifier"]}, "Nearest: 'classifier'"),
        ({"trainable": ["head"], "freeze": ["head"]}, "exactly one of freeze= and trainable="),
        ({"trainable": ["layers[7]"]}, "out of range"),
        ({"freeze": ["all"]}, "Nothing would train"),
        (
            {"trainable": ["head"], "optim": "galore_adamw_layerwise", "optim_target_modules": ["dense"]},
            "inside backward",
        ),
        ({"trainable": ["head"], "group_lrs": {"layers": 1e-3}}, "matches nothing that the plan ever trains"),
        ({"trainable": ["head"], "layer_lr_decay": 2.0}, "layer_lr_decay=2.0 is not a factor"),
    ],
)
def test_bad_input_is_refused_when_the_trainer_is_built_and_nothing_is_written(tmp_path, overrides, message):
    model = tiny_bert()
    with pytest.raises(ValueError, match=message):
        freeze_trainer(model, tmp_path, **overrides)
    assert not list(tmp_path.iterdir())
    assert freeze(model) == [name for name, _ in model.named_parameters()]  # the model is as it was


@pytest.mark.parametrize(("body", "advice"), [(tiny_bert(), "hf_freeze.freeze.model.model_body"), (None, "a Trainer")])
def test_a_model_that_is_no_module_is_refused_with_what_to_do(tmp_path, body, advice):
    """SetFit hands its callbacks a SetFitModel."""

    class SetFitModel:
        model_body = body

    with pytest.raises(UnsupportedSetupError, match=f"SetFitModel, which is not a torch.nn.Module. .*{advice}"):
        FreezeCallback(freeze="backbone").on_init_end(
            TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl(), model=SetFitModel()
        )
