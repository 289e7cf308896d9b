"""Runs of a comparison made by hand, and a tiny comparison that is really run."""

import random
from functools import partial

import torch
from torch import nn
from torch.utils.data import Dataset

from hf_freeze.reporting.comparison.compare import compare
from hf_freeze.reporting.comparison.runs import Evaluation, Run
from tests.models import text_rows, tiny_bert
from tests.quiet import quiet_arguments


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
        "evaluations": (evaluation(), evaluation(40, loss=0.4, f1=0.8), evaluation(80, loss=0.3, f1=0.9)),
        "interval": (0.85, 0.95),
        "at_half": {"accuracy": 0.95, "recall": 0.9},
        "n_pos": 200,
        "seconds": 2.0,
        "peak_bytes": 10_000_000,
    }
    return Run(name=name, **{**values, **given})


def arguments(**given):
    values = {
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-2,
        "dataloader_pin_memory": False,
    }
    return quiet_arguments(**{**values, **given})


def tiny_comparison(plans, folder, **given):
    values = {
        "model_init": partial(tiny_bert, layers=2),
        "args": arguments(),
        "train_dataset": text_rows(48),
        "eval_dataset": text_rows(32, seed=1),
        "show_progress": False,
    }
    return compare(plans, folder=folder, **{**values, **given})


class Weighted(nn.Module):
    """A model of one's own, whose loss has a weight and a set of names, and hangs on a global."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.inner = tiny_bert()
        self.weight = weight
        self.names = {"spam", "ham", "eggs", "bacon"}
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.inner(input_ids, attention_mask).logits
        weight = torch.tensor([1.0, self.weight])
        return {"loss": SCALE * nn.functional.cross_entropy(logits, labels, weight=weight), "logits": logits}


SCALE = 1.0


class Augmented(Dataset):
    """Rows with a token masked at random, from the generator of python."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        row = self.rows[number]
        return {**row, "input_ids": [row["input_ids"][0], random.randrange(6, 60), *row["input_ids"][2:]]}


def resumable(folder):
    """A comparison whose model, loss and rows are all of one's own."""
    given = {"model_init": Weighted, "train_dataset": Augmented(text_rows(48)), "args": arguments(max_steps=1)}
    return tiny_comparison({"plan": "full"}, folder, **given)
