"""What could not honour a plan is refused before anything is trained or written."""

import logging
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from hf_freeze import FreezePlan, PlanError, Plateau, Stage, UnsupportedSetupError, freeze
from hf_freeze.training.setup import check_setup, warn_of_coarse_weights
from tests.models import tiny_bert
from tests.training.runs import freeze_trainer

LAYERWISE = [name.value for name in OptimizerNames if "layerwise" in name.value]


def arguments(**overrides):
    return TrainingArguments(output_dir="never-written", use_cpu=True, report_to="none", **overrides)


def check(args, model=None, plan=None):
    model = model or tiny_bert()
    check_setup(args, model, (plan or FreezePlan(trainable="head")).resolve(model))


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
    with pytest.raises(
        UnsupportedSetupError, match=r"'classifier.weight' and 1 other parameters to be trained are float16"
    ):
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
        warn_of_coarse_weights(model, FreezePlan(trainable="head").resolve(model))
    (message,) = caplog.messages
    assert message.startswith(f"'classifier.weight' and 1 other parameters to be trained are {dtype}")


def test_coarse_weights_that_stay_frozen_are_not_warned_of(caplog):
    model = tiny_bert()
    model.bert.to(torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        warn_of_coarse_weights(model, FreezePlan(trainable="head").resolve(model))
    assert not caplog.messages


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, "false", "False"])
def test_flat_parameters_of_fsdp1_are_refused(flat):
    args = arguments()
    args.fsdp, args.fsdp_config = "full_shard", {"fsdp_version": 1, "use_orig_params": flat}
    with pytest.raises(UnsupportedSetupError, match="FSDP1 with use_orig_params=False flattens frozen and trainable"):
        check(args)


@pytest.mark.parametrize(
    ("fsdp", "config"),
    [
        ("full_shard", {"fsdp_version": 2, "use_orig_params": False}),
        ("full_shard", {"version": 1, "use_orig_params": True}),
        ("full_shard", {"use_orig_params": "true"}),
        ("", {"use_orig_params": False}),
        ("full_shard", None),
    ],
)
def test_other_ways_of_sharding_pass(fsdp, config):
    args = arguments()
    args.fsdp, args.fsdp_config = fsdp, config
    check(args)


@pytest.mark.parametrize(("version", "original", "refused"), [(1, False, True), (1, True, False), (2, True, False)])
def test_what_accelerate_launch_configured_goes_before_the_arguments(monkeypatch, version, original, refused):
    args = arguments()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=version, use_orig_params=original)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {"fsdp_plugin": plugin})
    if not refused:
        args.fsdp, args.fsdp_config = "full_shard", {"fsdp_version": 1, "use_orig_params": False}
        check(args)
        return
    with pytest.raises(UnsupportedSetupError, match="use_orig_params=False"):
        check(args)


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
        ({"trainable": ["head"], "layer_lr_decay": 2.0}, "layer_lr_decay=2.0 is no factor"),
    ],
)
def test_bad_input_is_refused_when_the_trainer_is_built_and_nothing_is_written(tmp_path, overrides, message):
    model = tiny_bert()
    with pytest.raises(ValueError, match=message):
        freeze_trainer(model, tmp_path, **overrides)
    assert not list(tmp_path.iterdir())
    assert freeze(model) == [name for name, _ in model.named_parameters()]  # the model is as it was
