"""What is kept of a run: the stages that began, the figures of its last evaluation; and runs that break off."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_freeze import Contender, FreezePlan, Plateau, Stage
from hf_freeze.errors import FreezeError
from hf_freeze.features.cache import FeatureCache
from hf_freeze.reporting.comparison import compare as module
from tests.models import tiny_bert
from tests.reporting.compared import arguments, tiny_comparison

pytestmark = pytest.mark.slow  # each test trains several models


class BreaksOff(nn.Module):
    """Runs out of memory in the third training step in which its embeddings train."""

    most = 2

    def __init__(self):
        super().__init__()
        self.inner = tiny_bert()
        self.steps = 0
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, labels=None):
        self.steps += self.training and self.inner.bert.embeddings.word_embeddings.weight.requires_grad
        if self.steps > self.most:
            raise torch.OutOfMemoryError("out of\nmemory")
        return self.inner(input_ids, attention_mask, labels=labels)


def test_a_run_that_breaks_off_is_noted_and_the_others_are_made(tmp_path, caplog):
    plans = {"full": "full", "probe": "linear-probe", "last": "last-layers"}
    found = tiny_comparison(plans, tmp_path, model_init=BreaksOff)
    assert [run.name for run in found.runs] == ["probe", "last"]
    assert found.failures == (("full", 42, "OutOfMemoryError: out of memory"),)
    assert "full, seed 42, failed: OutOfMemoryError: out of memory" in str(found)
    assert found.to_dict()["failures"] == [{"name": "full", "seed": 42, "reason": "OutOfMemoryError: out of memory"}]
    assert "full, seed 42, failed" in caplog.text
    again = tiny_comparison(plans, tmp_path, model_init=BreaksOff, args=arguments())
    assert again == found


def test_where_every_run_breaks_off_the_comparison_does_and_is_made_again(tmp_path, monkeypatch):
    with pytest.raises(FreezeError, match="None of the 1 runs could be finished. full, seed 42: OutOfMemoryError"):
        tiny_comparison({"full": "full"}, tmp_path, model_init=BreaksOff)
    monkeypatch.setattr(BreaksOff, "most", 99)
    assert len(tiny_comparison({"full": "full"}, tmp_path, model_init=BreaksOff).runs) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_of_the_process_is_no_failed_run(tmp_path, monkeypatch, stop):
    def stopped(*_, **__):
        raise stop

    monkeypatch.setattr(module, "train", stopped)
    with pytest.raises(stop):
        tiny_comparison({"full": "full"}, tmp_path)


def test_what_trains_in_stages_that_never_began_is_not_counted(tmp_path):
    waits = Stage(plateau=Plateau("eval_loss", patience=9), unfreeze="all")
    plans = {
        "probe": "linear-probe",
        "waits": FreezePlan(trainable="head", stages=[waits]),
        "late": FreezePlan(trainable="head", stages=[Stage(epoch=50, unfreeze="all")]),
        "thaws": FreezePlan(trainable="head", stages=[Stage(step=7, unfreeze="all")]),
    }
    found = tiny_comparison(plans, tmp_path).by_plan
    trained = {name: runs[0].trainable for name, runs in found.items()}
    assert trained["waits"] == trained["late"] == trained["probe"] == 34
    assert trained["thaws"] == found["thaws"][0].parameters


def test_a_run_that_diverged_says_so_and_has_no_figures_of_earlier_evaluations(tmp_path):
    run = tiny_comparison({"full": Contender(plan="full", learning_rate=1e30)}, tmp_path).runs[0]
    assert math.isnan(run.last.loss)
    assert math.isnan(run.training_loss())
    assert run.training_loss_error == math.inf
    assert (run.last.f1, run.interval, run.at_half) == (0.0, None, {})
    assert run.remark == "it diverged: the validation loss at the end is nan"
    again = tiny_comparison({"full": Contender(plan="full", learning_rate=1e30)}, tmp_path).runs[0]
    assert again.training_losses[0] == run.training_losses[0]


@pytest.mark.parametrize("strategy", [{"eval_strategy": "epoch"}, {"eval_strategy": "steps", "eval_steps": 2}])
def test_the_end_is_evaluated_once_whatever_the_delay(tmp_path, strategy):
    args = arguments(max_steps=-1, num_train_epochs=2, eval_delay=50, **strategy)
    found = tiny_comparison({"probe": "linear-probe"}, tmp_path, args=args)
    assert [evaluation.step for evaluation in found.runs[0].evaluations] == [0, 12]


def test_features_that_only_evaluation_keeps_do_not_count(tmp_path, monkeypatch):
    args = arguments(cache_frozen_always=True)
    both = tiny_comparison({"probe": "linear-probe"}, tmp_path / "both", args=args)
    assert both.runs[0].stored_features
    enter = FeatureCache.enter

    def enter_evaluation_only(self, sets, *given, **named):
        return enter(self, [one for one in sets if not one[0].training], *given, **named)

    monkeypatch.setattr(FeatureCache, "enter", enter_evaluation_only)
    evaluation = tiny_comparison({"probe": "linear-probe"}, tmp_path / "evaluation", args=args)
    assert not evaluation.runs[0].stored_features


def test_nothing_but_the_runs_is_left_and_nothing_is_pushed(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda *_, **__: pytest.fail("made a repository"))
    args = arguments(cache_frozen_always=True, push_to_hub=True, hub_model_id="a/b")
    tiny_comparison({"probe": "linear-probe"}, tmp_path, args=args, seeds=(1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert not Path("unused").exists()


def test_features_are_kept_for_the_runs_that_are_still_to_be_made(tmp_path, monkeypatch):
    train = module.train

    def stopped(name, *given, **named):
        if name == "full":
            raise KeyboardInterrupt
        return train(name, *given, **named)

    monkeypatch.setattr(module, "train", stopped)
    plans = {"probe": "linear-probe", "full": "full"}
    with pytest.raises(KeyboardInterrupt):
        tiny_comparison(plans, tmp_path, args=arguments(cache_frozen_always=True))
    assert list((tmp_path / "work" / "frozen_features").iterdir())
    monkeypatch.setattr(module, "train", train)
    tiny_comparison(plans, tmp_path, args=arguments(cache_frozen_always=True))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
