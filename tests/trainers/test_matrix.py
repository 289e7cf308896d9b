"""Every Trainer class keeps its plan: frozen weights stand still, trainable ones move, a resumed run is the same run."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig

from hf_freeze import FreezePlan, SelectionError, freezing
from tests.models import tiny_bert
from tests.trainers.kinds import KINDS, ROWS, TeacherTrainer, distillation
from tests.trainers.runs import TRANSITION, moved, plan_of, trainer, weights

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # each library warns in its own words
EACH = pytest.mark.parametrize("kind", [kind.param for kind in KINDS])
BOTH = pytest.mark.parametrize("way", ["callback", "mixin"])


@EACH
@BOTH
def test_what_is_frozen_stands_still_and_what_trains_moves(tmp_path, kind, way):
    made = trainer(kind, way, tmp_path)
    expected = plan_of(kind, staged=False).resolve(made.model).ever_trainable
    before = weights(made)
    made.train()
    changed = moved(before, weights(made))
    assert changed <= expected
    assert len(changed) >= 0.8 * len(expected)


@EACH
@BOTH
def test_resumed_at_a_transition_the_run_ends_bit_equal(tmp_path, kind, way):
    whole = trainer(kind, way, tmp_path / "whole", staged=True)
    before = weights(whole)
    whole.train()
    resolved = plan_of(kind, staged=True).resolve(whole.model)
    assert moved(before, weights(whole)) - resolved.names[0]
    folder = tmp_path / "whole"
    again = trainer(kind, way, folder, staged=True)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{TRANSITION}"))
    assert moved(weights(whole), weights(again)) == set()


@pytest.mark.parametrize("kind", [kind.param for kind in KINDS if kind.lora])
def test_the_plan_is_held_against_the_model_with_its_adapters(tmp_path, kind):
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    made = trainer(kind, "mixin", tmp_path, plan=FreezePlan(trainable=["adapters", "norms"]), peft_config=lora)
    before = weights(made)
    made.train()
    changed = moved(before, weights(made))
    assert any("lora_" in name for name in changed)
    assert any("norm" in name for name in changed)
    assert all("lora_" in name or "norm" in name or "score" in name for name in changed)
    with pytest.raises(SelectionError, match="adapterz"):
        trainer(kind, "mixin", tmp_path / "b", plan=FreezePlan(trainable="adapterz"), peft_config=lora)


@pytest.mark.parametrize("kind", [kind.param for kind in KINDS if kind.name == "SentenceTransformer"])
def test_the_parameters_of_a_loss_train_under_a_frozen_encoder(tmp_path, kind):
    made = trainer(kind, "mixin", tmp_path, plan=FreezePlan(freeze="all"))
    before, classifier = weights(made), made.loss.classifier.weight.detach().clone()
    made.train()
    assert moved(before, weights(made)) == set()
    assert not torch.equal(made.loss.classifier.weight, classifier)
    assert {"others", "others.no_decay"} == {group["name"] for group in made.optimizer.param_groups}


def test_arguments_reach_the_parameter_of_their_name_by_position_too(tmp_path):
    mine, declared = freezing(TeacherTrainer)
    args = declared(str(tmp_path), trainable=["head"], learning_rate=0.123, use_cpu=True, report_to=[])
    given = distillation()
    by_name = mine(given["model"], args=args, teacher=given["teacher"], train_dataset=given["train_dataset"])
    by_place = mine(given["model"], given["teacher"], args, train_dataset=given["train_dataset"])
    assert by_name.args is args is by_place.args
    assert by_name.teacher is given["teacher"] is by_place.teacher


class PositionalTrainer(hf.Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class NamedTrainer(hf.Trainer):
    def __init__(self, *, model, args, reward_funcs=None, **kwargs):
        self.reward_funcs = reward_funcs
        super().__init__(model, args, **kwargs)


class ReplacingTrainer(hf.Trainer):
    """Ends up with another model than it was given, as after `peft_config=`."""

    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(model, args, **kwargs)
        self.model = self.model_wrapped = tiny_bert(layers=4, seed=7)


HOSTILE = [PositionalTrainer, NamedTrainer, ReplacingTrainer]


@pytest.mark.parametrize("base", HOSTILE)
def test_constructors_of_any_shape_keep_the_plan(tmp_path, base):
    mine, declared = freezing(base)
    args = declared(str(tmp_path), trainable=["head"], max_steps=2, use_cpu=True, report_to=[], learning_rate=0.01)
    made = mine(model=tiny_bert(layers=4), args=args, train_dataset=ROWS)
    assert made.args is args
    expected = FreezePlan(trainable="head").resolve(made.model).ever_trainable
    before = weights(made)
    made.train()
    assert moved(before, weights(made)) == expected


@pytest.mark.parametrize("base", [PositionalTrainer, hf.Trainer])
def test_a_model_init_is_held_against_the_plan_at_once(tmp_path, base):
    mine, declared = freezing(base)
    args = declared(str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
    given = {"args": args, "model_init": lambda: tiny_bert(layers=4), "train_dataset": ROWS}
    mine(None, freeze_plan="linear-probe", **given).train()
    with pytest.raises(SelectionError, match="hed"):
        mine(None, freeze_plan=FreezePlan(trainable="hed"), **given)


def test_arguments_given_by_place_without_names_are_the_trainers_own(tmp_path):
    mine, declared = freezing(PositionalTrainer)
    args = declared(str(tmp_path), trainable=["head"], max_steps=1, use_cpu=True, report_to=[])
    made = mine(tiny_bert(layers=4), args, train_dataset=ROWS)
    assert made.args is args
    with pytest.raises(SelectionError, match="hed"):
        mine(tiny_bert(layers=4), declared(str(tmp_path / "b"), trainable=["hed"]), train_dataset=ROWS)
    assert not (tmp_path / "b").exists()
