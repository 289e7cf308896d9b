"""What somebody replaces or edits while a run goes on is followed, or refused by its name."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, set_seed

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, FreezeViolation, Stage, UnsupportedSetupError
from tests.installed import since
from tests.models import text_rows, tiny_bert
from tests.training.staged import Snapshots, arguments

PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(step=4, unfreeze="layers[-2]", freeze="layers[-1]")],
)
LAST, BELOW = (f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in (2, 1))
both_ways = pytest.mark.parametrize("way", ["mixin", "callback"])


def staged(folder, way, *callbacks, base=Trainer, plan=PLAN, model=None, **values):
    args = arguments(folder, **{"max_steps": 6, "lr_scheduler_type": "constant", **values})
    given = {"train_dataset": text_rows(20), "eval_dataset": text_rows(8, seed=1)}
    model = tiny_bert(layers=3) if model is None else model
    if way == "mixin":
        cls = type("Mine", (FreezeTrainer, base), {})
        made = cls(model, args, freeze_plan=plan, callbacks=[*callbacks], **given)
    else:
        made = base(model, args, callbacks=[FreezeCallback(plan), *callbacks], **given)
    for callback in callbacks:
        callback.trainer = made
    return made


class Acts(TrainerCallback):
    """Calls `act(trainer)` at an event of the step that follows `step` steps."""

    def __init__(self, event, act, *, step=1):
        def hook(args, state, control, **kwargs):
            if state.global_step == step:
                act(self.trainer)

        setattr(self, event, hook)


def another_optimizer(trainer):
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)


def prepared_optimizer(trainer):
    trainer.optimizer = trainer.accelerator.prepare(torch.optim.AdamW(trainer.model.parameters(), lr=0.1))


def told_to_callbacks_too(trainer):
    another_optimizer(trainer)
    trainer.callback_handler.optimizer = trainer.optimizer


@both_ways
@pytest.mark.parametrize(
    ("event", "replace"),
    [
        ("on_epoch_begin", prepared_optimizer),
        ("on_step_begin", another_optimizer),
        ("on_pre_optimizer_step", another_optimizer),
        ("on_step_end", told_to_callbacks_too),
    ],
)
def test_an_optimizer_that_is_replaced_in_mid_run_is_refused(tmp_path, way, event, replace):
    step, watch = 0 if event == "on_epoch_begin" else 1, Snapshots()
    made = staged(tmp_path, way, Acts(event, replace, step=step), watch)
    with pytest.raises(UnsupportedSetupError, match=r"replaced while training: by (SGD|AdamW) with 1 groups, before"):
        made.train()
    assert made.state.global_step == step
    if event != "on_pre_optimizer_step":  # there the other one steps before it can be noticed
        assert all(torch.equal(p, watch.weights[-1][name]) for name, p in made.model.named_parameters())


@both_ways
def test_the_same_optimizer_prepared_once_more_is_the_same(tmp_path, way):
    def again(trainer):
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer.optimizer)

    made = staged(tmp_path, way, Acts("on_step_end", again))
    made.train()
    assert made.state.global_step == 6


@both_ways
@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_step_end"])
def test_a_scheduler_that_is_replaced_in_mid_run_is_followed_and_the_plan_kept(tmp_path, way, event):
    def replace(trainer):
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer.optimizer, lambda step: 0.5)

    watch = Snapshots()
    made = staged(tmp_path, way, Acts(event, replace, step=2), watch, learning_rate=0.01)
    made.train()
    assert {group["lr"] for group in made.optimizer.param_groups} == {0.005}
    for step in range(1, 7):
        assert (LAST in watch.moved(step)) == (step in (3, 4))
        assert (BELOW in watch.moved(step)) == (step > 4)


def remove_from_groups(trainer):
    for group in trainer.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not trainer.model.get_parameter(BELOW)]


@both_ways
def test_a_parameter_that_is_taken_out_of_its_group_in_mid_run_is_named(tmp_path, way):
    made = staged(tmp_path, way, Acts("on_step_end", remove_from_groups))
    with pytest.raises(FreezeViolation, match=f"'{BELOW}' should train, but the optimizer does not hold it"):
        made.train()


def require(name, value):
    def flip(trainer):
        trainer.model.get_parameter(name).requires_grad_(value)

    return flip


@both_ways
@pytest.mark.parametrize(
    ("flip", "problem"),
    [
        (require("bert.encoder.layer.0.output.dense.bias", True), r"layer\.0.*' require a gradient while frozen"),
        (require("classifier.bias", False), "'classifier.bias' should train but no longer require a gradient"),
    ],
)
def test_a_parameter_whose_requires_grad_another_callback_sets_is_named(tmp_path, way, flip, problem):
    made = staged(tmp_path, way, Acts("on_step_end", flip, step=5))
    with pytest.raises(FreezeViolation, match=problem):
        made.train()


@both_ways
def test_an_edit_is_named_also_where_each_log_holds_the_tokens_and_the_time_since_the_start(tmp_path, way):
    """With them every log looks like the last one of a run, which ends the proof and the eval mode of frozen parts."""

    def edit(trainer):
        seen.append(trainer.model.bert.embeddings.training)
        trainer.model.get_parameter("bert.embeddings.word_embeddings.weight").data.add_(1)

    seen = []
    made = staged(tmp_path, way, Acts("on_step_end", edit, step=5), include_num_input_tokens_seen=True)
    with pytest.raises(FreezeViolation, match="word_embeddings.weight' changed although"):
        made.train()
    assert "train_runtime" in made.state.log_history[0]
    assert seen == [False]


class ReferenceTrainer(Trainer):
    """Computes a reference without the adapter, as TRL's Trainers do: PEFT then lets the whole adapter train."""

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        self.compute_reference(model, inputs)
        return loss

    def compute_reference(self, model, inputs):
        with torch.random.fork_rng(), torch.no_grad(), model.disable_adapter():
            model(**inputs)


class EarlyReferenceTrainer(ReferenceTrainer):
    def compute_loss(self, model, inputs, **kwargs):
        self.compute_reference(model, inputs)
        return Trainer.compute_loss(self, model, inputs, **kwargs)


def adapted(folder, way, base, accumulated):
    bert, lora = tiny_bert(layers=3), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    set_seed(0)
    model = get_peft_model(bert, lora)
    plan = FreezePlan(trainable="layers[-1]", stages=[Stage(step=2, unfreeze="layers[-2]")])
    saves = "steps" if accumulated == 1 else "no"
    events = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": saves, "save_steps": 3, "max_steps": 4}
    watch = Snapshots()
    steps = {"gradient_accumulation_steps": accumulated, "max_grad_norm": 0.01}
    made = staged(folder, way, watch, base=base, plan=plan, model=model, **events, **steps)
    set_seed(0)
    made.train()
    norms = [entry["grad_norm"] for entry in made.state.log_history if "grad_norm" in entry]
    return made, watch, norms


@both_ways
@pytest.mark.parametrize(
    ("base", "accumulated"), [(ReferenceTrainer, 1), (ReferenceTrainer, 2), (EarlyReferenceTrainer, 1)]
)
def test_an_adapter_that_is_off_for_a_while_comes_back_as_the_plan_has_it(tmp_path, way, base, accumulated):
    made, watch, norms = adapted(tmp_path / "a", way, base, accumulated)
    for step in range(1, 5):
        trained = {name.split(".layer.")[1][0] for name in watch.moved(step) if "lora_" in name}
        assert trained == ({"2"} if step < 3 else {"1", "2"})
    of_model = dict(made.model.named_parameters())
    waiting = next(p for name, p in of_model.items() if "layer.1" in name and "lora_A" in name)
    assert made.optimizer.optimizer.state[waiting]["step"] == 2
    assert not any(p.requires_grad for name, p in of_model.items() if "layer.0" in name)
    if base is ReferenceTrainer:  # what gets a gradient in a step still counts in the norm that it is clipped by
        assert norms == adapted(tmp_path / "b", way, Trainer, accumulated)[2]


class LoadsBestFirst(Trainer):
    """As in transformers 5.0: the best checkpoint is loaded before the run is said to be over."""

    def log(self, logs, *args, **kwargs):
        if "train_runtime" in logs and self.state.best_model_checkpoint:
            self._load_best_model()
        super().log(logs, *args, **kwargs)


def best(folder, way, *callbacks, base):
    saves = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
    chosen = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    made = staged(folder, way, *callbacks, base=base, **saves, **chosen)
    seen = []

    def first(_):
        seen.append(1)
        return {"score": -len(seen)}

    made.compute_metrics = first
    return made


@since("5.8.1", "save_strategy='best' does not say which checkpoint is the best, and loads none")
@both_ways
@pytest.mark.parametrize("base", [Trainer, LoadsBestFirst])
def test_the_best_weights_are_loaded_after_the_proof_whatever_trained_in_between(tmp_path, way, base):
    watch = Snapshots()
    made = best(tmp_path, way, watch, base=base)
    made.train()
    assert made.state.best_model_checkpoint.endswith("checkpoint-1")
    assert all(torch.equal(p, watch.weights[1][name]) for name, p in made.model.named_parameters())


@both_ways
@pytest.mark.parametrize("base", [Trainer, LoadsBestFirst])
def test_a_frozen_weight_edited_in_the_last_step_is_named_before_the_best_are_loaded(tmp_path, way, base):
    def edit(trainer):
        trainer.model.get_parameter(LAST).data.add_(1)

    made = best(tmp_path, way, Acts("on_step_end", edit, step=6), base=base)
    with pytest.raises(FreezeViolation, match=f"'{LAST}' changed although"):
        made.train()
