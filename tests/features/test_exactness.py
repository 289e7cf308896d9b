"""With stored features, losses, evaluations and final weights are those of a run without: architecture by architecture."""

from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from hf_freeze import Stage
from hf_freeze.features import cache
from hf_freeze.features.extraction import extract
from tests.features.runs import CASES, Pad, kept_sets, logged, run
from tests.installed import GPU
from tests.nearness import assert_near

# Below transformers 5.8 by another name.
IS_STRATEGY = "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}
GROUPED = {"train_sampling_strategy": "group_by_length"} if IS_STRATEGY else {"group_by_length": True}


def cases():
    """Every architecture as a probe or with its last layer training, in turn; the other plans are slow."""
    for number, name in enumerate(CASES):
        for plan in ("probe", "last", "half"):
            yield pytest.param(name, plan, marks=() if plan == ("probe", "last")[number % 2] else pytest.mark.slow)


def assert_same(one, other, *, rtol=1e-5):
    for entry, expected in zip(logged(other), logged(one), strict=True):
        assert entry.keys() == expected.keys()
        for name, value in expected.items():
            assert entry[name] == pytest.approx(value, rel=rtol, abs=1e-7), name
    assert_near(other.model.state_dict(), one.model.state_dict(), rtol=rtol)


@pytest.mark.filterwarnings("ignore:.*did not change.*")
@pytest.mark.parametrize(("name", "plan"), list(cases()))
def test_a_run_on_stored_features_goes_where_one_without_does(tmp_path, name, plan):
    case = CASES[name]
    plain = run(case, tmp_path / "plain", trainable=getattr(case, plan), cache=False)
    with kept_sets() as kept:
        cached = run(case, tmp_path / "cached", trainable=getattr(case, plan))
    assert kept == [["training", "evaluation"]]
    assert_same(plain, cached)


@pytest.mark.parametrize("use_cpu", [pytest.param(False, marks=GPU)])
@pytest.mark.parametrize("name", ["electra", "roberta", "custom"])
def test_dropout_right_behind_the_features_draws_what_it_draws_without_them(tmp_path, name, use_cpu):
    # On a GPU that depends on how a tensor lies in memory.
    given = {"trainable": CASES[name].probe, "use_cpu": use_cpu}
    plain = run(CASES[name], tmp_path / "plain", **given, cache=False)
    with kept_sets() as kept:
        cached = run(CASES[name], tmp_path / "cached", **given)
    assert kept == [["training", "evaluation"]]
    assert_same(plain, cached)


@pytest.mark.parametrize("name", ["vit", "resnet", "swin"])
def test_where_batches_have_one_shape_the_runs_are_bit_equal(tmp_path, name):
    case = CASES[name]
    plain = run(case, tmp_path / "plain", trainable=case.last, cache=False)
    cached = run(case, tmp_path / "cached", trainable=case.last)
    assert logged(plain) == logged(cached)
    weights = dict(cached.model.named_parameters())
    assert all(torch.equal(weight, weights[key]) for key, weight in plain.model.named_parameters())


STAGED = {
    "gradual": ("head", [Stage(epoch=1, unfreeze="layers[-1]"), Stage(epoch=2, unfreeze="layers[-2]")]),
    "refrozen": (("head", "layers[-2:]"), [Stage(step=5, freeze="layers[-2]"), Stage(step=9, freeze="layers[-1]")]),
    "rotated": (
        ("head", "layers[-1]"),
        [
            Stage(epoch=1, unfreeze="layers[-2]", freeze="layers[-1]"),
            Stage(epoch=2, unfreeze="layers[-1]", freeze="layers[-2]"),
        ],
    ),
}


@pytest.mark.parametrize("plan", STAGED)
def test_the_cut_follows_the_stages(tmp_path, plan):
    trainable, stages = STAGED[plan]
    case = CASES["bert"]
    plain = run(case, tmp_path / "plain", trainable=trainable, stages=stages, cache=False)
    with kept_sets() as kept:
        cached = run(case, tmp_path / "cached", trainable=trainable, stages=stages)
    assert kept == [["training", "evaluation"]] * 3
    assert_same(plain, cached)


def test_one_pass_serves_all_stages_whose_frozen_part_does_not_change_before_them(tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(
        cache, "extract", lambda *args, **kwargs: (passes.append(len(args[2])), extract(*args, **kwargs))
    )
    trainable, stages = STAGED["gradual"]
    run(CASES["bert"], tmp_path / "gradual", trainable=trainable, stages=stages)
    assert passes == [3, 3]  # training and evaluation rows, three stages each
    passes.clear()
    trainable, stages = STAGED["rotated"]
    run(CASES["bert"], tmp_path / "rotated", trainable=trainable, stages=stages)
    assert passes == [1] * 6  # what trained in one stage is frozen in the next


def test_features_of_the_stage_before_stay_in_use_where_others_would_not_pay(tmp_path, monkeypatch):
    """A stage that freezes one layer more for its last quarter of an epoch: the features below that layer still hold."""
    passes = []
    monkeypatch.setattr(
        cache, "extract", lambda *args, **kwargs: (passes.append(len(args[2])), extract(*args, **kwargs))
    )
    given = {"trainable": ("head", "layers[-2:]"), "stages": [Stage(epoch=2.75, freeze="layers[-2]")]}
    plain = run(CASES["bert"], tmp_path / "plain", cache=False, **given)
    with kept_sets() as kept:
        cached = run(CASES["bert"], tmp_path / "cached", cache_frozen_always=False, **given)
    assert kept == [["training", "evaluation"]] * 2
    assert passes == [1, 1]
    assert_same(plain, cached)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing\\w*. is deprecated")
@pytest.mark.parametrize("side", ["left", pytest.param("right", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "given",
    [
        {"gradient_accumulation_steps": 2},
        GROUPED,
        {"label_smoothing_factor": 0.1},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"bf16": True},
    ],
    ids=lambda given: "-".join(map(str, given)) + str(len(given)),
)
def test_what_the_trainer_is_told_besides_changes_nothing(tmp_path, side, given):
    case = CASES["llama"]
    case = type(case)(case.build, collate=Pad(side))
    plain = run(case, tmp_path / "plain", trainable=case.last, cache=False, **given)
    with kept_sets() as kept:
        cached = run(case, tmp_path / "cached", trainable=case.last, **given)
    assert kept == [["training", "evaluation"]]
    assert_same(plain, cached, rtol=3e-2 if "bf16" in given else 1e-5)


def test_a_stage_in_which_everything_trains_waits_for_the_next_without_a_word(tmp_path, caplog):
    given = {"trainable": "all", "stages": [Stage(epoch=1, freeze=["embeddings", "layers[:2]"])]}
    plain = run(CASES["bert"], tmp_path / "plain", cache=False, **given)
    with kept_sets() as kept:
        cached = run(CASES["bert"], tmp_path / "cached", **given)
    assert kept == [["training", "evaluation"]]
    assert not [record for record in caplog.records if "No features are cached" in record.getMessage()]
    assert_same(plain, cached)
