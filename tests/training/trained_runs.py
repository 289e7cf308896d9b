"""Runs that save only what trained, over a base that lies in a folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_freeze import FreezeError, FreezePlan, Stage, load_trained
from hf_freeze.training.trained_file import TRAINED_NAME
from tests.models import tiny_bert
from tests.training.staged import PLAN, trainer

HEAD = FreezePlan(trainable="head")
TWO = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]")])
SAVES = {"save_strategy": "steps", "save_steps": 1}


def base_folder(folder: Path, model=None) -> Path:
    """Save an encoder without a head, or `model`."""
    path = folder / "base"
    (model if model is not None else tiny_bert(layers=3).bert).save_pretrained(path)
    return path


def classifier(base: Path, seed: int = 0, **values):
    """Load the base under a new head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, **values)


def trained(
    folder: Path, base: Path, *, seed: int = 0, resume=None, plan=PLAN, only: bool = True, model=None, **values
):
    """Train and save every step."""
    made = trainer(
        folder,
        model=classifier(base, seed) if model is None else model,
        plan=plan,
        save_trained_only=only,
        **{**SAVES, **values},
    )
    made.train(resume_from_checkpoint=None if resume is None else str(resume))
    return made


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / TRAINED_NAME)


def description(folder: Path) -> dict:
    with safe_open(folder / TRAINED_NAME, framework="pt") as file:
        return json.loads(file.metadata()["hf_freeze"])


def same(left, right) -> list[str]:
    """Name what is not bit-equal in two models."""
    one, other = left.state_dict(), right.state_dict()
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name].cpu(), other[name].cpu())]


def refused(model, folder: Path, match: str) -> None:
    """Expect that the folder is not loaded, and that the model is left as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FreezeError, match=match):
        load_trained(model, folder)
    after = model.state_dict().items()
    assert all(tensor.is_meta or torch.equal(tensor, before[name]) for name, tensor in after)
