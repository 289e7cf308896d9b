"""Short training runs on the CPU, and what to read off them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import TrainerCallback

from hf_freeze import FreezeTrainer, FreezeTrainingArguments
from tests.models import text_rows
from tests.quiet import quiet_arguments


def arguments(folder, cls=FreezeTrainingArguments, **overrides):
    """Arguments for three quiet steps of four rows; whatever a test is about it overrides."""
    short = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    return quiet_arguments(folder / "run", cls=cls, **{"save_strategy": "no", "logging_steps": 1, **short, **overrides})


def freeze_trainer(model, folder, *, rows=None, trainer=FreezeTrainer, **overrides):
    """Build a FreezeTrainer over sixteen rows of text; `overrides` are training arguments."""
    given = {name: overrides.pop(name) for name in list(overrides) if name in TRAINER_ARGUMENTS}
    return trainer(model, arguments(folder, **overrides), train_dataset=text_rows() if rows is None else rows, **given)


TRAINER_ARGUMENTS = {
    "callbacks",
    "compute_loss_func",
    "compute_metrics",
    "data_collator",
    "eval_dataset",
    "freeze_plan",
    "model_init",
    "optimizer_cls_and_kwargs",
    "optimizers",
}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copy every parameter and buffer to the CPU, tied weights once."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors}


def moved(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    """Name what is no longer bit-equal."""
    now = weights(model)
    assert now.keys() == before.keys()
    return {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}


def names(model: nn.Module, *prefixes: str) -> set[str]:
    """Name the parameters that start with one of these prefixes."""
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def training_logs(trainer) -> list[dict]:
    """Return what was logged at training steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class Recorder(TrainerCallback):
    """Keeps what a tracker such as TensorBoard would be handed."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


class AtStep(TrainerCallback):
    """Calls `act(model, optimizer)` at an event of one step."""

    def __init__(self, act, *, step: int = 1, event: str = "on_step_end") -> None:
        def hook(args, state, control, **kwargs):
            if state.global_step == step:
                act(kwargs["model"], kwargs["optimizer"])

        setattr(self, event, hook)


@contextmanager
def forward_calls(module: nn.Module) -> Iterator[list[tuple[bool, torch.Tensor]]]:
    """Collect (train mode, output) of every call of `module`."""
    calls: list[tuple[bool, torch.Tensor]] = []

    def note(module, args, output):
        tensor = output[0] if isinstance(output, tuple) else output
        calls.append((module.training, tensor.detach().clone()))

    handle = module.register_forward_hook(note)
    try:
        yield calls
    finally:
        handle.remove()
