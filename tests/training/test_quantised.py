"""LoRA on a quantised base: the weights become those of a plain Trainer."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage, trainable_summary
from hf_freeze.training.digests import digests
from tests.installed import USE_CPU, since
from tests.models import text_rows, tiny_llama

TORCHAO = pytest.param("torchao", marks=since("5.8", "the Trainer does not train over what torchao quantised"))
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the packages' own
    pytest.mark.parametrize("kind", ["4 bits", "8 bits", TORCHAO]),
]
ADAPTERS = FreezePlan(trainable="adapters")


@pytest.fixture
def base(tmp_path):
    tiny_llama(layers=3, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def quantisation(kind):
    pytest.importorskip("torchao" if kind == "torchao" else "bitsandbytes")
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return hf.TorchAoConfig(Int8WeightOnlyConfig())
    return hf.BitsAndBytesConfig(load_in_4bit=kind == "4 bits", load_in_8bit=kind == "8 bits")


def adapted(base, kind, *, use_cpu=True, recomputes=False):
    model = hf.LlamaForSequenceClassification.from_pretrained(
        base, quantization_config=quantisation(kind), device_map={"": "cpu" if use_cpu else "cuda"}
    )
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recomputes)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"]))


def values(model):
    """Digests of all weights: quantised ones can be compared with nothing else."""
    return digests(dict(model.named_parameters()))


def ends(
    base,
    kind,
    *,
    use_cpu=True,
    way="mixin",
    recomputes=False,
    evaluates_first=False,
    plan=ADAPTERS,
    resume=None,
    **given,
):
    mine = FreezeTrainer if way == "mixin" else Trainer
    extra = {"mixin": {"freeze_plan": plan}, "callback": {"callbacks": [FreezeCallback(plan)]}, "plain": {}}[way]
    args = (FreezeTrainingArguments if way == "mixin" else TrainingArguments)(
        str(base.parent / way),
        **{"max_steps": 6, "learning_rate": 1e-2, "save_strategy": "no", "use_cpu": use_cpu} | given,
        per_device_train_batch_size=4,
        report_to=[],
        disable_tqdm=True,
    )
    model = adapted(base, kind, use_cpu=use_cpu, recomputes=recomputes)
    made = mine(model, args, train_dataset=text_rows(20), eval_dataset=text_rows(8, seed=1), **extra)
    if evaluates_first:
        made.evaluate()
    made.train(resume_from_checkpoint=resume)
    return values(model)


def differing(one, other):
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize("use_cpu", USE_CPU)
@pytest.mark.parametrize("recomputes", [False, True], ids=["", "recomputing"])
@pytest.mark.parametrize("way", ["mixin", "callback"])
def test_adapters_train_as_under_a_plain_trainer(base, kind, use_cpu, way, recomputes):
    given = {"use_cpu": use_cpu, "recomputes": recomputes}
    plain = ends(base, kind, way="plain", **given)
    assert differing(ends(base, kind, way=way, **given), plain) == set()


def test_an_evaluation_changes_nothing(base, kind):
    # On some CPUs a pass in eval mode gives 4-bit weights a layout whose kernel passes no gradient on.
    often = {"eval_strategy": "steps", "eval_steps": 1}
    assert differing(ends(base, kind, **often), ends(base, kind)) == set()


def test_gradients_pass_through_layers_that_an_evaluation_before_training_repacked(base, kind):
    changed = differing(ends(base, kind, evaluates_first=True), before := values(adapted(base, kind)))
    assert {name for name in before if "lora_B" in name} <= changed


@pytest.mark.parametrize("use_cpu", USE_CPU)
def test_a_run_with_a_stage_resumes_bit_equal(base, kind, use_cpu):
    plan = FreezePlan(trainable="adapters", stages=[Stage(step=3, unfreeze="norms")])
    given = {"use_cpu": use_cpu, "plan": plan, "save_strategy": "steps", "save_steps": 2, "recomputes": True}
    whole = ends(base, kind, **given)
    for step in (2, 4):
        resumed = ends(base, kind, **given, resume=str(base.parent / "mixin" / f"checkpoint-{step}"))
        assert differing(resumed, whole) == set()


def test_the_summary_counts_the_bytes_that_are_held(base, kind):
    layers = [row for row in trainable_summary(adapted(base, kind)).rows if row.part.startswith("layers")]
    matrices, rows_of_matrices, adapters_and_norms = 40_960, 576, 2_176
    # torchao has a scale and a zero point a row beside its int8 values; seen from outside they are floats.
    quantised = {"4 bits": matrices // 2, "8 bits": matrices, "torchao": matrices + (4 + 1) * rows_of_matrices}[kind]
    assert [row.bytes for row in layers] == [quantised + 4 * adapters_and_norms] * 3
