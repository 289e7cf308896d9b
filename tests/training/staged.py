"""A small staged run, shared by the tests of unfreezing over time."""

import json
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage
from tests.models import text_rows, tiny_bert
from tests.quiet import quiet_arguments

STAGES = (
    Stage(step=2, unfreeze="layers[-1]"),
    Stage(epoch=1, unfreeze="layers[-2]", freeze="head"),
    Stage(step=7, unfreeze=["embeddings", "head"]),
    Stage(fraction=0.75, freeze="layers"),
)
PLAN = FreezePlan(trainable="head", stages=STAGES)
STEPS = 12


class Snapshots(TrainerCallback):
    """The weights after every optimizer step; index 0 is before the first."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = [weights_of(model)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))

    def moved(self, step: int) -> set[str]:
        """Names of what step `step` (1 is the first) changed."""
        before, after = self.weights[step - 1], self.weights[step]
        return {name for name in after if not torch.equal(before[name], after[name])}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def arguments(folder: Path, **values) -> FreezeTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return quiet_arguments(folder, **{**defaults, **values})


def trainer(folder: Path, *, model=None, plan: FreezePlan | None = PLAN, cls=FreezeTrainer, rows=None, **values):
    set_seed(0)
    watch = Snapshots()
    extra = values.pop("trainer", {})
    callbacks = [watch, *extra.pop("callbacks", [])]
    made = cls(
        model if model is not None else tiny_bert(layers=3),
        arguments(folder, **values),
        train_dataset=text_rows(20) if rows is None else rows,
        eval_dataset=text_rows(8, seed=1),
        callbacks=callbacks,
        **({"freeze_plan": plan} if cls is not Trainer else {}),
        **extra,
    )
    made.watch = watch
    return made


def losses(made: Trainer) -> list[dict]:
    """The log history without what the Trainer says of one `train()` call alone: timings, and its mean loss."""
    timed = ("runtime", "per_second", "total_flos", "train_loss")
    return [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in made.state.log_history]


def optimizer_bytes(made: Trainer) -> str:
    state = made.optimizer.state_dict()
    return json.dumps(state, default=lambda tensor: tensor.tolist(), sort_keys=True)
