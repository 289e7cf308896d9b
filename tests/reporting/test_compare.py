"""compare: each plan trained once with each seed on the same rows, kept, and gone on with after an interruption."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from torch.utils.data import IterableDataset
from transformers import BertForSequenceClassification

from hf_freeze import FreezePlan, PlanError, SelectionError, Stage, UnsupportedSetupError, recipes
from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison import compare as module
from hf_freeze.reporting.comparison.comparison_plot import plot_comparison
from hf_freeze.reporting.comparison.contenders import Contender, default_contenders, read_contenders
from hf_freeze.reporting.comparison.trial import train
from tests import models
from tests.models import text_rows, tiny_bert
from tests.reporting.compared import arguments, run, tiny_comparison

pytestmark = pytest.mark.slow  # each test trains several models
LORA = LoraConfig(r=2, target_modules=["query"], task_type=TaskType.SEQ_CLS)
PLANS = {
    "probe": "linear-probe",
    "lora": LORA,
    "staged": FreezePlan(trainable="head", stages=[Stage(fraction=0.5, unfreeze="layers[-1]")]),
    "decayed": Contender(plan="full", layer_lr_decay=0.5, learning_rate=5e-3),
}


@pytest.fixture
def trained(monkeypatch):
    """The (plan, seed) that were really trained."""
    seen = []

    def noted(name, contender, task, *, seed, **given):
        seen.append((name, seed))
        return train(name, contender, task, seed=seed, **given)

    monkeypatch.setattr(module, "train", noted)
    return seen


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    given = {"seeds": (1, 2), "test_dataset": text_rows(24, seed=2), "args": arguments(cache_frozen_always=True)}
    return tiny_comparison(PLANS, tmp_path_factory.mktemp("compared"), **given)


def test_every_plan_is_trained_with_every_seed_and_nothing_else_is_kept(compared):
    assert [(one.name, one.seed) for one in compared.runs] == [(name, seed) for name in PLANS for seed in (1, 2)]
    assert {name: runs[0].trainable for name, runs in compared.by_plan.items()} == {
        "probe": 34,
        "lora": 34 + 2 * 2 * 2 * 16,
        "staged": 34 + 2_224,
        "decayed": compared.runs[-1].parameters,
    }


def test_a_run_knows_the_rate_of_its_fastest_group(compared):
    assert {run.highest_rate for run in compared.by_plan["decayed"]} == {5e-3}
    assert {run.highest_rate for run in compared.by_plan["staged"]} == {arguments().learning_rate}


def test_a_run_has_its_whole_course(compared):
    for one in compared.runs:
        assert [evaluation.step for evaluation in one.evaluations] == [0, 2, 4, 6, 8]
        assert len(one.training_losses) == 8
        assert (one.n_pos, one.device) == (16, "cpu")
        assert set(one.tested) == {"loss", "f1", "average_precision", "accuracy", "recall"}
        assert set(one.at_half) == {"accuracy", "recall"}
        assert one.seconds > 0
        assert one.interval is not None


def test_evaluations_of_ones_own_are_kept_and_the_end_is_evaluated_once(tmp_path):
    plans = {"plan": "linear-probe"}
    by_epoch = tiny_comparison(plans, tmp_path, args=arguments(eval_strategy="epoch"))
    assert [evaluation.step for evaluation in by_epoch.runs[0].evaluations] == [0, 6, 8]
    by_step = tiny_comparison(plans, tmp_path, args=arguments(eval_strategy="steps", eval_steps=5))
    assert [evaluation.step for evaluation in by_step.runs[0].evaluations] == [0, 5, 8]


def test_all_plans_begin_at_the_same_weights_and_see_the_same_rows(compared):
    for seed in (1, 2):
        first = {one.name: one.evaluations[0].loss for one in compared.runs if one.seed == seed}
        assert first["lora"] == pytest.approx(first["probe"], abs=1e-6)
        assert len({first[name] for name in ("probe", "staged", "decayed")}) == 1
        # Frozen to the head and without dropout, these two take the same first steps.
        losses = {one.name: one.training_losses[0] for one in compared.runs if one.seed == seed}
        assert losses["probe"] == pytest.approx(losses["staged"], abs=1e-6)


def unseeded():
    return BertForSequenceClassification(tiny_bert().config)


def test_a_model_that_draws_its_weights_draws_the_same_for_all_plans_and_others_for_another_seed(tmp_path):
    plans = {"probe": "linear-probe", "full": "full"}
    found = tiny_comparison(plans, tmp_path, model_init=unseeded, seeds=(1, 2), args=arguments(max_steps=1))
    first = [[run.evaluations[0].loss for run in runs] for runs in found.by_plan.values()]
    assert first[0] == first[1]
    assert first[0][0] != first[0][1]


def test_only_linear_probes_train_on_features_computed_once_and_that_changes_nothing(compared, tmp_path, monkeypatch):
    assert {name for name, runs in compared.by_plan.items() if runs[0].stored_features} == {"probe"}
    monkeypatch.setattr(Contender, "is_linear_probe", lambda self, model: False)
    plain = tiny_comparison({"probe": "linear-probe"}, tmp_path, seeds=(1,)).runs[0]
    cached = compared.by_plan["probe"][0]
    assert not plain.stored_features
    assert plain.training_losses == pytest.approx(cached.training_losses, abs=1e-5)
    assert [e.loss for e in plain.evaluations] == pytest.approx([e.loss for e in cached.evaluations], abs=1e-5)


def test_an_interrupted_comparison_goes_on_where_it_stopped(tmp_path, trained, monkeypatch):
    plans = {"probe": "linear-probe", "last": "last-layers", "full": "full"}
    noted = module.train

    def killed(name, *positional, **given):
        if name == "last":
            raise KeyboardInterrupt
        return noted(name, *positional, **given)

    monkeypatch.setattr(module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny_comparison(plans, tmp_path)
    monkeypatch.setattr(module, "train", noted)
    first = tiny_comparison(plans, tmp_path)
    assert trained == [("probe", 42), ("last", 42), ("full", 42)]
    again = tiny_comparison(plans, tmp_path)
    assert len(trained) == 3
    assert again == first
    assert str(again) == str(first)


@pytest.mark.parametrize(
    "changed",
    [
        {"plans": {"plan": "last-layers"}},
        {"plans": {"plan": Contender(plan="linear-probe", learning_rate=1e-3)}},
        {"plans": {"plan": Contender(plan="linear-probe", group_lrs={"head": 1e-3})}},
        {"args": arguments(weight_decay=0.1)},
        {"args": arguments(max_steps=9)},
        {"seeds": (43,)},
        {"train_dataset": text_rows(49)},
        {"eval_dataset": text_rows(32, seed=3)},
        {"test_dataset": text_rows(8)},
        {"model_init": partial(tiny_bert, layers=2, seed=5)},
        {"model_init": partial(tiny_bert, layers=2, hidden_act="relu")},
        {
            "data_collator": lambda rows: {
                k: torch.tensor([row[k] for row in rows])[..., :6]
                if k != "labels"
                else torch.tensor([row[k] for row in rows])
                for k in rows[0]
            }
        },
        {"positive": 0},
    ],
    ids=[
        "plan",
        "rate",
        "group rate",
        "decay",
        "steps",
        "seed",
        "train",
        "eval",
        "test",
        "weights",
        "model",
        "collator",
        "positive",
    ],
)
def test_a_run_with_other_settings_under_the_same_name_is_not_reused(tmp_path, trained, monkeypatch, changed):
    monkeypatch.setattr(
        module, "train", lambda name, *_, seed, **__: trained.append((name, seed)) or run(name, seed=seed)
    )
    plans = {"plan": "linear-probe"}
    tiny_comparison(plans, tmp_path)
    tiny_comparison(plans, tmp_path)
    assert len(trained) == 1
    tiny_comparison(changed.pop("plans", plans), tmp_path, **changed)
    assert len(trained) == 2
    tiny_comparison(plans, tmp_path)
    assert len(trained) == 2


def test_what_changes_nothing_of_a_run_leaves_it_as_it_is(tmp_path, trained):
    tiny_comparison({"plan": "linear-probe"}, tmp_path)
    tiny_comparison({"plan": FreezePlan(trainable="head")}, tmp_path, args=arguments(disable_tqdm=True, run_name="x"))
    assert len(trained) == 1


def test_random_states_and_arguments_are_left_as_they_were(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    args = arguments()
    before = args.to_dict()
    tiny_comparison({"plan": "linear-probe"}, tmp_path, args=args)
    assert torch.equal(torch.rand(3), expected)
    assert args.to_dict() == before
    assert not Path("unused").exists()


def test_progress_names_each_finished_run(tmp_path, capsys):
    tiny_comparison({"plan": "linear-probe"}, tmp_path, show_progress=True)
    assert "plan, seed 42: validation loss" in capsys.readouterr().err


def test_a_mistake_shows_before_anything_is_trained(tmp_path, trained):
    probe = {"plan": "linear-probe"}
    with pytest.raises(SelectionError, match="clasifier"):
        tiny_comparison({**probe, "b": FreezePlan(trainable="clasifier")}, tmp_path)
    with pytest.raises(SelectionError, match="'adapters' matches none"):
        tiny_comparison({**probe, "b": Contender(plan="full", group_lrs={"adapters": 1e-3})}, tmp_path)
    with pytest.raises(PlanError, match="'nothing' is not a recipe"):
        tiny_comparison({**probe, "b": "nothing"}, tmp_path)
    with pytest.raises(PlanError, match=r"plans\['b'\]=3 is not a plan"):
        tiny_comparison({**probe, "b": 3}, tmp_path)
    with pytest.raises(PlanError, match="nothing to compare"):
        tiny_comparison({}, tmp_path)
    with pytest.raises(PlanError, match=r"seeds=\(1, 1\)"):
        tiny_comparison(probe, tmp_path, seeds=(1, 1))
    with pytest.raises(PlanError, match="args declare a plan"):
        tiny_comparison(probe, tmp_path, args=arguments(trainable=["head"]))
    with pytest.raises(FreezeError, match="3 labels"):
        tiny_comparison(probe, tmp_path, model_init=partial(tiny_bert, num_labels=3))
    with pytest.raises(UnsupportedSetupError, match="iterable"):
        tiny_comparison(probe, tmp_path, train_dataset=Rows())
    assert not trained
    assert not list(tmp_path.iterdir())


class Rows(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter(text_rows(3))


def test_several_processes_and_plain_arguments_are_refused(tmp_path):
    args = arguments()
    args.__class__ = type("Many", (type(args),), {"world_size": 2})
    with pytest.raises(UnsupportedSetupError, match="one process, but there are 2"):
        tiny_comparison({"plan": "linear-probe"}, tmp_path, args=args)
    with pytest.raises(PlanError, match="args is a dict"):
        tiny_comparison({"plan": "linear-probe"}, tmp_path, args={})


def test_a_contender_has_a_plan_or_an_adapter():
    with pytest.raises(PlanError, match="neither"):
        Contender(learning_rate=1e-3)
    both = Contender(plan=FreezePlan(trainable=["adapters", "norms"]), adapter=LORA)
    model = both.model(tiny_bert, 0)
    assert any("LayerNorm" in name for name in both.freeze_plan.resolve(model).ever_trainable)
    assert read_contenders({"x": both}) == {"x": both}


@pytest.mark.parametrize(
    "build",
    [
        models.tiny_bert,
        models.tiny_llama,
        models.tiny_roberta,
        models.tiny_distilbert,
        models.tiny_gpt2,
        models.tiny_custom,
    ],
)
def test_the_default_set_fits_any_model(build):
    args = arguments(max_steps=-1, num_train_epochs=2)
    contenders = default_contenders(build(layers=5), args, train_rows=100)
    assert list(contenders) == ["linear-probe", "last-layers", "gradual", "lp-ft", "layer-decay", "lora", "full"]
    for contender in contenders.values():
        model = contender.model(partial(build, layers=5), 0)
        if contender.freeze_plan is not None:
            assert contender.freeze_plan.resolve(model).ever_trainable
        assert contender.is_linear_probe(model) == (contender is contenders["linear-probe"])
        if contender.adapter is not None:
            trained = sorted(contender.freeze_plan.resolve(model).ever_trainable)
            assert {int(layer) for layer in re.findall(r"\.(\d)\.", " ".join(trained))} == {0, 1, 2, 3, 4}
            assert any("lora_A" in name for name in trained)
            assert any("classif" in name or "score" in name or "out." in name for name in trained)
    assert contenders["layer-decay"].layer_lr_decay < 1
    json.dumps([contender.settings() for contender in contenders.values()], default=sorted)


@pytest.mark.parametrize("steps", [-1, 40])
def test_gradual_thaws_everything_by_60_percent_of_the_run(steps):
    args = arguments(max_steps=steps, num_train_epochs=4)
    plan = default_contenders(models.tiny_bert(layers=5), args, train_rows=80)["gradual"].freeze_plan
    stages = plan.resolve(models.tiny_bert(layers=5)).timed
    assert [stage.epoch / 4 for stage in stages] == pytest.approx([0.15, 0.3, 0.45, 0.6])


def test_the_picture_has_a_line_and_a_cost_for_each_plan(compared, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_comparison(compared, tmp_path / "compared.png")
    assert (tmp_path / "compared.png").read_bytes().startswith(b"\x89PNG")
    training, validation, outcome = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PLANS)
    assert len(training.lines) == len(validation.lines) == len(compared.runs)
    assert [text.get_text().partition("\n")[0] for text in outcome.get_yticklabels()] == list(PLANS)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, compared):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FreezeError, match=r'pip install "hf_freeze\[plots\]"'):
        plot_comparison(compared)


def test_figures_can_be_saved(compared, tmp_path):
    compared.save(tmp_path / "all.json")
    values = json.loads((tmp_path / "all.json").read_text())
    assert len(values["runs"]) == len(compared.runs)
    assert values["verdicts"] == compared.verdicts


def test_data_sets_of_the_datasets_library_will_do(tmp_path, trained):
    rows = {"train_dataset": Dataset.from_list(text_rows(16)), "eval_dataset": Dataset.from_list(text_rows(16, seed=1))}
    for _ in range(2):
        found = tiny_comparison({"plan": recipes.norms_only()}, tmp_path, **rows)
    assert len(trained) == 1
    assert found.runs[0].name == "plan"
