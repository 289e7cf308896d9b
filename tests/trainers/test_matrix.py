"""Every Trainer class keeps its plan: frozen weights stand still, trainable ones move, a resumed run is the same run."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import set_seed

from hf_freeze import FreezePlan, SelectionError, load_trained
from tests.trainers.kinds import KINDS
from tests.trainers.own_kinds import OWN_KINDS
from tests.trainers.runs import STEPS, TRANSITION, moved, plan_of, trainer, weights
from tests.trainers.sentence_kinds import SENTENCE_KINDS

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # each library warns in its own words
EACH = pytest.mark.parametrize("kind", [kind.param for kind in (*KINDS, *OWN_KINDS, *SENTENCE_KINDS)])
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


@EACH
def test_checkpoints_of_what_trained_resume_and_load_bit_equal(tmp_path, kind):
    def build(folder):
        set_seed(1)  # some kinds draw their weights
        return trainer(kind, "mixin", folder, staged=True, settings={"save_trained_only": True})

    whole = build(tmp_path)
    whole.train()
    written = {path.name for path in (tmp_path / f"checkpoint-{TRANSITION}").rglob("*.safetensors")}
    assert "trained.safetensors" in written
    assert "model.safetensors" not in written
    again = build(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{TRANSITION}"))
    assert moved(weights(whole), weights(again)) == set()
    fresh = build(tmp_path / "fresh")
    if kind.name == "model_init":
        fresh.model = fresh.call_model_init()
    if kind.name == "late part":
        fresh.model.late = nn.Linear(4, 4)
    load_trained(fresh.model, tmp_path / f"checkpoint-{STEPS}")
    assert moved(weights(whole), weights(fresh)) == set()
