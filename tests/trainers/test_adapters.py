"""Trainers that turn the adapter off for a reference keep the stages of the plan: PEFT then lets all of it train."""

import pytest
from peft import LoraConfig
from transformers import TrainerCallback

from hf_freeze import FreezePlan, Stage
from tests.trainers.kinds import KINDS
from tests.trainers.runs import TRANSITION, moved, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore")  # each library warns in its own words
PLAN = FreezePlan(trainable="layers[-1]", stages=[Stage(step=TRANSITION, unfreeze="layers[-2]")])
QUICK = "KTO"


class Watch(TrainerCallback):
    def __init__(self):
        self.moved = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before = weights(self.trainer)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.moved.append(moved(self.before, weights(self.trainer)))


def built(kind, way, folder):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return trainer(kind, way, folder, plan=PLAN, peft_config=lora)


@pytest.mark.parametrize("way", ["callback", "mixin"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            *kind.param.values,
            id=kind.name,
            marks=[*kind.param.marks, *([] if kind.name == QUICK else [pytest.mark.slow])],
        )
        for kind in KINDS
        if kind.lora
    ],
)
def test_an_adapter_by_peft_config_follows_the_stages_and_resumes_bit_equal(tmp_path, kind, way):
    made, watch = built(kind, way, tmp_path), Watch()
    watch.trainer = made
    made.add_callback(watch)
    made.train()
    for step, names in enumerate(watch.moved):
        layers = {name.split("layers.")[1][0] for name in names if "lora_" in name}
        assert layers == ({"3"} if step < TRANSITION else {"2", "3"})
    again = built(kind, way, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{TRANSITION}"))
    assert moved(weights(made), weights(again)) == set()
