"""FreezeCallback on a Trainer that knows nothing of hf_freeze."""

import logging

import pytest
import torch
import transformers as hf
from transformers import Trainer, TrainingArguments

from hf_freeze import (
    FreezeCallback,
    FreezeError,
    FreezePlan,
    PlanError,
    SelectionError,
    UnsupportedSetupError,
    param_groups,
)
from tests.models import image_rows, text_rows, tiny_bert, tiny_custom, tiny_resnet, tiny_t5
from tests.training.runs import Recorder, arguments, moved, names, training_logs, weights

HEAD = {"classifier.weight", "classifier.bias"}


def plain_trainer(model, folder, *callbacks, rows=None, model_init=None, optimizers=(None, None), **overrides):
    return Trainer(
        model,
        arguments(folder, TrainingArguments, **overrides),
        train_dataset=text_rows() if rows is None else rows,
        model_init=model_init,
        optimizers=optimizers,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize(
    "plan",
    [
        FreezePlan(freeze="backbone"),
        FreezePlan(trainable="head"),
        FreezePlan(freeze=["all", "!classifier"]),
        {"trainable": ["head"]},
    ],
    ids=str,
)
def test_exactly_what_the_plan_leaves_trainable_moves(tmp_path, plan):
    model = tiny_bert()
    before = weights(model)
    plain_trainer(model, tmp_path, FreezeCallback(plan), weight_decay=0.5).train()
    assert moved(before, model) == HEAD


def test_frozen_weights_are_in_no_optimizer_group_and_have_no_gradient(tmp_path):
    model = tiny_bert()
    trainer = plain_trainer(model, tmp_path, FreezeCallback(FreezePlan(trainable="head")))
    trainer.train()
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.classifier.parameters()}
    assert all(parameter.grad is None for parameter in model.bert.parameters())


def test_added_after_construction_it_freezes_from_the_first_step(tmp_path):
    model = tiny_bert()
    before = weights(model)
    trainer = plain_trainer(model, tmp_path)
    trainer.add_callback(FreezeCallback(FreezePlan(trainable="head")))
    trainer.train()
    assert moved(before, model) == HEAD


def test_model_init_builds_a_model_that_is_frozen_again(tmp_path):
    trainer = plain_trainer(
        None, tmp_path, FreezeCallback(FreezePlan(trainable="head")), model_init=lambda: tiny_bert(seed=3)
    )
    before = weights(tiny_bert(seed=3))
    for _ in range(2):
        trainer.train()
        assert moved(before, trainer.model) == HEAD
        assert {id(p) for p in trainer.optimizer.optimizer.state} == {
            id(p) for p in trainer.model.classifier.parameters()
        }


def test_training_twice_and_evaluating_between_keeps_the_plan(tmp_path):
    model = tiny_bert()
    before = weights(model)
    trainer = plain_trainer(model, tmp_path, FreezeCallback(FreezePlan(trainable="head")))
    trainer.train()
    assert trainer.evaluate(text_rows(4))["eval_loss"] > 0
    between = weights(model)
    trainer.train()
    assert moved(before, model) == moved(between, model) == HEAD


def test_every_tracker_gets_rates_stage_and_count_even_one_that_comes_first(tmp_path):
    """The Trainer puts the trackers of report_to before the callbacks of the user."""
    tracker = Recorder()
    model = tiny_bert()
    trainer = plain_trainer(model, tmp_path, tracker, FreezeCallback(FreezePlan(trainable="head")), logging_steps=2)
    trainer.train()
    count = sum(parameter.numel() for parameter in model.classifier.parameters())
    (entry,) = training_logs(trainer)
    assert (entry["stage"], entry["trainable_params"]) == (0, count)
    rates = {key: value for key, value in entry.items() if key.startswith("lr/")}
    assert rates == {"lr/group_0": entry["learning_rate"]}  # of both groups of the Trainer, with and without decay
    assert tracker.seen[0].items() >= {**rates, "stage": 0, "trainable_params": count}.items()


def test_groups_without_names_are_logged_each_where_their_rates_differ_later(tmp_path):
    """In the first step of a warmup both rates are 0."""
    model = tiny_bert()
    groups = [{"params": model.classifier.parameters()}, {"params": model.bert.pooler.parameters(), "lr": 0.2}]
    callback = FreezeCallback(FreezePlan(trainable=["head", "bert.pooler"]))
    optimizers = (torch.optim.SGD(groups, lr=0.1), None)
    trainer = plain_trainer(model, tmp_path, callback, optimizers=optimizers, warmup_steps=2, logging_steps=1)
    trainer.train()
    seen = [[entry.get(f"lr/group_{place}") for place in (0, 1)] for entry in training_logs(trainer)]
    assert seen[:2] == [[0, 0], [0.05, 0.1]]


def test_named_groups_of_param_groups_are_logged_by_name(tmp_path):
    model, plan = tiny_bert(), FreezePlan(trainable=["head", "layers[-1]"])
    args = arguments(tmp_path, TrainingArguments)
    optimizer = torch.optim.AdamW(param_groups(model, args, plan=plan, group_lrs={"head": 0.5}, layer_lr_decay=0.5))
    trainer = plain_trainer(
        model, tmp_path, FreezeCallback(plan), optimizers=(optimizer, None), lr_scheduler_type="constant"
    )
    trainer.train()
    entry = training_logs(trainer)[-1]
    rates = {key.removeprefix("lr/"): value for key, value in entry.items() if key.startswith("lr/")}
    assert rates == {"head": 0.5, "layers.1": 0.005}


def test_frozen_batchnorm_statistics_stand_still_unless_asked_otherwise(tmp_path):
    for frozen_eval in (True, False):
        model = tiny_resnet()
        before = weights(model)
        callback = FreezeCallback(FreezePlan(trainable="head"), frozen_eval=frozen_eval)
        plain_trainer(model, tmp_path, callback, rows=image_rows()).train()
        statistics = {name for name in moved(before, model) if "running" in name}
        assert bool(statistics) != frozen_eval
        model.train()
        assert all(module.training for module in model.modules())


def test_a_users_module_is_frozen_by_path(tmp_path):
    model = tiny_custom()
    before = weights(model)
    plain_trainer(model, tmp_path, FreezeCallback(FreezePlan(freeze="backbone"))).train()
    assert moved(before, model) == {"out.weight", "out.bias"}


# Resume


def test_resuming_freezes_again_and_ends_where_the_uninterrupted_run_ends(tmp_path):
    plan = FreezePlan(trainable="head")
    whole = plain_trainer(tiny_bert(), tmp_path, FreezeCallback(plan), max_steps=4, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = plain_trainer(tiny_bert(seed=9), tmp_path, FreezeCallback(plan), max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert moved(weights(whole.model), resumed.model) == set()
    assert training_logs(whole)[2:] == training_logs(resumed)[2:]


def test_another_plan_is_refused_with_the_difference(tmp_path):
    _train_and_save(tmp_path, FreezePlan(trainable="layers[0]"))
    other = plain_trainer(tiny_bert(), tmp_path, FreezeCallback(FreezePlan(trainable="layers[1]")))
    with pytest.raises(PlanError, match=r"(?s)another plan.*-.*layers\[0\].*\+.*layers\[1\]"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_a_callback_restored_from_the_checkpoint_goes_on_with_its_plan(tmp_path):
    whole = _train_and_save(tmp_path, FreezePlan(trainable="head"))
    resumed = plain_trainer(
        tiny_bert(seed=9),
        tmp_path,
        FreezeCallback(FreezePlan(trainable="head")),
        restore_callback_states_from_checkpoint=True,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert moved(weights(whole.model), resumed.model) == set()
    assert training_logs(whole)[1:] == training_logs(resumed)[1:]


def test_a_callback_restored_under_an_optimizer_for_another_plan_is_refused_before_the_first_step(tmp_path):
    _train_and_save(tmp_path, FreezePlan(trainable="layers[0]"))
    other = plain_trainer(
        tiny_bert(),
        tmp_path,
        FreezeCallback(FreezePlan(trainable="layers[1]")),
        restore_callback_states_from_checkpoint=True,
    )
    with pytest.raises(FreezeError, match=r"layer\.0.*optimizer does not hold"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def _train_and_save(folder, plan):
    trainer = plain_trainer(tiny_bert(), folder, FreezeCallback(plan), save_strategy="steps", save_steps=1)
    trainer.train()
    return trainer


def test_a_checkpoint_without_a_plan_is_refused(tmp_path):
    plain_trainer(tiny_bert(), tmp_path, save_strategy="steps", save_steps=1).train()
    trainer = plain_trainer(tiny_bert(), tmp_path)
    trainer.add_callback(FreezeCallback(FreezePlan(trainable="head")))
    with pytest.raises(PlanError, match="written without a freeze plan"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


# Bad input


@pytest.mark.parametrize(
    ("build", "plan", "error", "message"),
    [
        (tiny_bert, {"freeze": "clasifier"}, SelectionError, "'clasifier' matches none.*'classifier'"),
        (tiny_bert, {"trainable": "layers[5]"}, SelectionError, r"layers\[5\]"),
        (tiny_t5, {"trainable": "layers[-1]"}, SelectionError, "encoder.*decoder"),
        (tiny_bert, {"freeze": "all"}, PlanError, "Nothing would train"),
    ],
    ids=["misspelt", "index", "two stacks", "nothing"],
)
@pytest.mark.parametrize("by_model_init", [False, True], ids=["model", "model_init"])
def test_a_bad_plan_is_refused_when_the_trainer_is_built_with_nothing_written(
    tmp_path, build, plan, error, message, by_model_init
):
    model, model_init = (None, lambda: build()) if by_model_init else (build(), None)
    with pytest.raises(error, match=f"(?s){message}"):
        plain_trainer(model, tmp_path, FreezeCallback(FreezePlan(**plan)), model_init=model_init)
    assert not any((tmp_path / "run").iterdir())


def test_an_optimizer_that_steps_inside_backward_is_refused(tmp_path):
    with pytest.raises(UnsupportedSetupError, match="galore_adamw_layerwise.*inside backward"):
        plain_trainer(
            tiny_bert(),
            tmp_path,
            FreezeCallback(FreezePlan(trainable="head")),
            optim="galore_adamw_layerwise",
            optim_target_modules=["query"],
        )


# What a plain Trainer makes of the loss


@pytest.mark.parametrize(("accumulation", "warnings"), [(1, 0), (2, 1)])
def test_it_warns_once_that_the_loss_grows_with_accumulation(tmp_path, caplog, accumulation, warnings):
    trainer = plain_trainer(
        tiny_bert(),
        tmp_path,
        FreezeCallback(FreezePlan(trainable="head")),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
    )
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        trainer.train()
    found = [record.getMessage() for record in caplog.records if "num_items_in_batch" in record.getMessage()]
    assert len(found) == warnings
    assert all("BertForSequenceClassification" in message and "FreezeTrainer" in message for message in found)


def test_looking_at_the_loss_changes_nothing_in_the_run(tmp_path):
    """The look is two forward passes, which must not draw random numbers from the run's generator."""
    runs = []
    for callbacks in ([], [FreezeCallback(FreezePlan(trainable="all"), verify=False)]):
        model = tiny_bert()
        plain_trainer(model, tmp_path, *callbacks, per_device_train_batch_size=2, gradient_accumulation_steps=2).train()
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_several_trainers_over_one_callback_class_do_not_share_a_model(tmp_path):
    callback = FreezeCallback(FreezePlan(trainable="head"))
    first, second = tiny_bert(), tiny_bert(seed=1)
    plain_trainer(first, tmp_path, callback).train()
    before = weights(second)
    plain_trainer(second, tmp_path, callback).train()
    assert moved(before, second) == HEAD
    assert names(second, "classifier") == HEAD


def test_a_model_that_took_the_place_of_the_trained_one_is_refused_under_its_optimizer(tmp_path):
    trainer = plain_trainer(tiny_bert(), tmp_path, FreezeCallback(FreezePlan(trainable="head")))
    trainer.train()
    trainer.model = trainer.model_wrapped = tiny_bert(seed=1)
    with pytest.raises(PlanError, match=r"'classifier\.weight' and 1 more.*optimizer is that of another model"):
        trainer.train()


def test_a_callback_that_was_removed_leaves_nothing_behind(tmp_path):
    model = tiny_bert()
    callback = FreezeCallback(FreezePlan(trainable="head"))
    trainer = plain_trainer(model, tmp_path, callback)
    trainer.train()
    trainer.remove_callback(callback)
    assert "train" not in vars(model)
    assert isinstance(model.train(), hf.PreTrainedModel)
