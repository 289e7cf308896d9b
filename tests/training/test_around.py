"""Stages together with what the Trainer does around a run: searches, retries, compilation, trackers."""

import logging

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.backends import registry
from transformers import Trainer, TrainerCallback

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, PlanError, Stage, param_groups
from tests.models import text_rows, tiny_bert
from tests.training.runs import training_logs, weights
from tests.training.staged import arguments, trainer

PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(epoch=1, unfreeze="all", freeze="head")]
)
# optimizer step -> stage, at five steps an epoch
STAGE_OF_STEP = [0, 0, 1, 1, 1, 2, 2, 2]
STEPS = len(STAGE_OF_STEP)
every_way_in = pytest.mark.parametrize("how", ["trainer", "callback"])


def staged(folder, how: str, *, plan: FreezePlan = PLAN, cls=None, callbacks=(), **values) -> Trainer:
    """Eight steps under FreezeTrainer, or under a plain Trainer with the callback."""
    callback = [FreezeCallback(plan)] if how == "callback" else []
    extra = {"callbacks": [*callback, *callbacks], **values.pop("trainer", {})}
    kind = cls or (Trainer if how == "callback" else FreezeTrainer)
    return trainer(
        folder, plan=None if how == "callback" else plan, cls=kind, trainer=extra, **{"max_steps": STEPS, **values}
    )


def stages(made: Trainer) -> list[int]:
    """The stage of every optimizer step."""
    return [entry["stage"] for entry in training_logs(made)]


# Hyperparameter search


class Trials(TrainerCallback):
    """Keeps the log history and the weights at the end of every run."""

    def __init__(self) -> None:
        self.runs: list[tuple[list[dict], dict[str, torch.Tensor]]] = []

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.runs.append(([entry for entry in state.log_history if "loss" in entry], weights(model)))


def searching(folder, how: str, **values) -> tuple[Trainer, Trials]:
    trials = Trials()
    made = Searched if how == "trainer" else PlainSearched
    found = made(
        None,
        arguments(folder, max_steps=STEPS, lr_scheduler_type="constant", **values),
        train_dataset=text_rows(20),
        eval_dataset=text_rows(8, seed=1),
        model_init=lambda: tiny_bert(layers=3),
        callbacks=[trials, *([FreezeCallback(PLAN)] if how == "callback" else [])],
        **({"freeze_plan": PLAN} if how == "trainer" and "freeze_recipe" not in values else {}),
    )
    return found, trials


class Searched(FreezeTrainer):
    pass


class PlainSearched(Trainer):
    pass


def search(made: Trainer, **space: list) -> None:
    """Two trials over the values of one argument."""
    ((name, values),) = space.items()
    made.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, values)},
        backend="optuna",
        n_trials=2,
        sampler=Alternating(values),
    )


def Alternating(values):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (name,) = ["learning_rate"]
    return optuna.samplers.GridSampler({name: values}, seed=0)
