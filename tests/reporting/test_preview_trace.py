"""Models that run with values also run without."""

import logging
from importlib.metadata import version

import pytest
import torch
import transformers as hf
from packaging.version import Version
from torch import nn

from hf_freeze import FreezePlan, preview
from hf_freeze.reporting.preview.trace import AliveStorages
from tests.models import tiny_bert
from tests.quiet import quiet_arguments

OLD_NAME = pytest.mark.skipif(
    Version(version("transformers")) >= Version("5.24") and Version(version("peft")) < Version("0.22"),
    reason="transformers 5.24 renamed BERT's past_key_values, without which peft 0.21 refuses every forward pass",
)
EVERYTHING = FreezePlan(trainable="all")


def arguments(**values):
    return quiet_arguments(frozen_eval=False, **values)


def tiny_mixtral():
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**sizes, **heads, num_local_experts=4, use_cache=False))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_experts_of_any_type_have_activations_and_cost(kind):
    """All of them get a gradient, whichever the router picks."""
    model, ids = tiny_mixtral().to(kind), torch.arange(64).reshape(4, 16)
    batch = {"input_ids": ids, "labels": ids}
    seen = preview(model, arguments(), plan=EVERYTHING, batch=batch)
    assert not seen.remarks
    with AliveStorages(model) as storages:
        output = model(**batch)
        alive = storages.alive_bytes()
    del output
    assert seen.stages[0].activation_bytes == pytest.approx(alive, rel=0.05)
    assert seen.stages[0].gradient_bytes == seen.weight_bytes


class Holder:
    def __init__(self) -> None:
        self.offset = torch.ones(8)


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)
        self.constants = [torch.ones(8), {"scale": (torch.ones(8),)}]
        self.holder = Holder()
        self.hidden = [nn.Linear(8, 8)]

    def forward(self, input):
        shifted = input * self.constants[0] * self.constants[1]["scale"][0] + self.holder.offset
        return self.linear(self.hidden[0](shifted))


def test_tensors_in_lists_mappings_and_objects_are_stood_in_for():
    seen = preview(Held(), arguments(), plan=EVERYTHING, batch={"input": torch.zeros(4, 8)})
    assert not seen.remarks
    assert seen.stages[0].cost == 1.0


@pytest.mark.filterwarnings("ignore")  # what PEFT says of its own prompts
@pytest.mark.parametrize(
    "name", ["PromptTuningConfig", pytest.param("PrefixTuningConfig", marks=OLD_NAME), "PromptEncoderConfig"]
)
def test_prompts_of_peft_have_activations_and_cost(name):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_bert(), getattr(peft, name)(task_type="SEQ_CLS", num_virtual_tokens=4))
    seen = preview(model, arguments(), tokens=8)
    assert 0 < seen.stages[0].cost < 1.1


def test_torch_logs_nothing_of_a_model_that_cannot_be_run_without_values(caplog):
    class Unequal(nn.Linear):
        def forward(self, input):
            return super().forward(torch._grouped_mm(input, input, offs=None))

    torchs = logging.getLogger("torch._subclasses.fake_tensor")
    torchs.addHandler(caplog.handler)
    try:
        seen = preview(Unequal(8, 2), arguments(), plan=EVERYTHING, batch={"input": torch.zeros(4, 8)})
    finally:
        torchs.removeHandler(caplog.handler)
    assert "Activations and cost unknown" in seen.remarks[0]
    assert not caplog.records
    assert not torchs.disabled
