"""Runs of a comparison made by hand, and a tiny comparison that is really run."""

from functools import partial

from hf_freeze import FreezeTrainingArguments
from hf_freeze.reporting.compare import compare
from hf_freeze.reporting.runs import Evaluation, Run
from tests.models import text_rows, tiny_bert


def evaluation(step=0, *, loss=0.7, f1=0.2, average_precision=None, recall=0.9):
    precision = f1 if average_precision is None else average_precision
    return Evaluation(step=step, loss=loss, average_precision=precision, f1=f1, accuracy=0.9, recall=recall)


def run(name="probe", **given):
    """A run that learns: validation loss 0.7 to 0.3, F1 0.2 to 0.9 [0.85, 0.95], training loss 0.7 to 0.1."""
    values = {
        "seed": 1,
        "parameters": 1000,
        "trainable": 10,
        "training_losses": (0.7, 0.6, 0.3, 0.28, 0.11, 0.1, 0.11, 0.1),
        "evaluations": (evaluation(), evaluation(4, loss=0.4, f1=0.8), evaluation(8, loss=0.3, f1=0.9)),
        "interval": (0.85, 0.95),
        "at_half": {"accuracy": 0.95, "recall": 0.9},
        "n_pos": 200,
        "seconds": 2.0,
        "peak_bytes": 10_000_000,
    }
    return Run(name=name, **{**values, **given})


def arguments(**given):
    values = {
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
    }
    return FreezeTrainingArguments("unused", **{**values, **given})


def tiny_comparison(plans, folder, **given):
    values = {
        "model_init": partial(tiny_bert, layers=2),
        "args": arguments(),
        "train_dataset": text_rows(48),
        "eval_dataset": text_rows(32, seed=1),
        "show_progress": False,
    }
    return compare(plans, folder=folder, **{**values, **given})
