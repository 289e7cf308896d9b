"""Samplers that draw the order of an epoch anew: a run resumed in the middle of one goes on in the same order."""

import logging

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, WeightedRandomSampler
from transformers import Trainer

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage
from hf_freeze.training.epoch_order import EpochOrder
from tests.models import text_rows, tiny_bert
from tests.training.runs import moved, weights
from tests.training.staged import arguments

PLAN = FreezePlan(trainable="head", stages=[Stage(step=3, unfreeze="layers[-1]")])
BY_LENGTH = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in FreezeTrainingArguments.__dataclass_fields__
    else {"group_by_length": True}
)
PERSISTENT = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}


class Weighted:
    """A Trainer of one's own that draws rows by weight, from torch's global generator."""

    def _get_train_sampler(self, *args):
        return WeightedRandomSampler(torch.arange(1.0, 21.0), 20)


class WeightedByItsOwn:
    """One whose sampler brings its generator."""

    def _get_train_sampler(self, *args):
        return WeightedRandomSampler(torch.arange(1.0, 21.0), 20, generator=torch.Generator().manual_seed(3))


class AsItIs:
    pass


def run(folder, way, sampler=AsItIs, *, resume=None, rows=None, **values):
    """Train for three epochs of five steps, the last cut short; `resume` is the checkpoint to go on from."""
    base = FreezeTrainer if way == "trainer" else Trainer
    extra = {"freeze_plan": PLAN} if way == "trainer" else {"callbacks": [FreezeCallback(PLAN)]}
    made = type("Made", (sampler, base), {})(
        tiny_bert(layers=3),
        arguments(folder, max_steps=12, save_strategy="steps", save_steps=1, **values),
        train_dataset=rows if rows is not None else text_rows(20),
        **extra,
    )
    made.train(resume_from_checkpoint=resume)
    return made


@pytest.mark.parametrize(
    ("way", "sampler", "values"),
    [
        ("trainer", AsItIs, BY_LENGTH),
        ("callback", AsItIs, BY_LENGTH),
        ("trainer", Weighted, {}),
        ("trainer", WeightedByItsOwn, {}),
        ("trainer", AsItIs, PERSISTENT),
        pytest.param("callback", Weighted, PERSISTENT, marks=pytest.mark.slow),
    ],
    ids=["group_by_length", "group_by_length, callback", "weights", "a generator of its own", "workers", "both"],
)
def test_a_run_resumed_in_mid_epoch_draws_the_rows_that_the_uninterrupted_one_drew(tmp_path, way, sampler, values):
    whole = run(tmp_path / "whole", way, sampler, **values)
    # In mid-epoch; at the end of one, and then again in the middle of the next.
    for name, before in (("mid", "whole/checkpoint-7"), ("end", "whole/checkpoint-5"), ("twice", "end/checkpoint-8")):
        resumed = run(tmp_path / name, way, sampler, resume=str(tmp_path / before), **values)
        assert moved(weights(whole.model), resumed.model) == set(), name


def test_a_run_whose_order_a_seed_gives_saves_no_random_state_for_it(tmp_path):
    made = run(tmp_path, "trainer")
    assert made._freezing.state()["attributes"]["saved"]["epoch_order"] is None


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("sampler", [WeightedRandomSampler(torch.ones(8), 8), SequentialSampler(range(8))], ids=type)
def test_the_state_of_what_draws_the_order_is_saved_and_no_other(sampler, processes):
    batches = BatchSampler(sampler, 2, drop_last=False)
    if processes > 1:
        batches = BatchSamplerShard(batches, num_processes=2, process_index=1)  # as accelerate divides them
    order = EpochOrder(DataLoader(range(8), batch_sampler=batches), steps_per_epoch=4 // processes)
    order.epoch_begins()
    assert (order.state() is not None) is isinstance(sampler, WeightedRandomSampler)


class Stream(IterableDataset):
    """Three batches of four."""

    def __iter__(self):
        yield from text_rows(12)


@pytest.mark.parametrize(("step", "warned"), [(2, False), (4, True)])
def test_a_run_that_began_a_stream_anew_is_resumed_with_a_warning(tmp_path, caplog, step, warned):
    run(tmp_path / "whole", "trainer", rows=Stream())
    with caplog.at_level(logging.WARNING, "hf_freeze"):
        run(tmp_path / "resumed", "trainer", rows=Stream(), resume=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert ("cannot find its place" in caplog.text) is warned
