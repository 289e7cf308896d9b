"""A preview says ahead what training then does and takes."""

import json
import resource

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainingArguments

from hf_freeze import PlanError, Stage, param_groups, preview
from hf_freeze.plan import recipes
from hf_freeze.plan.freeze_plan import FreezePlan
from hf_freeze.reporting.preview.trace import AliveStorages, ModelTracer
from hf_freeze.training.freezing import set_trainable
from tests.models import (
    text_batch,
    text_rows,
    tiny_bert,
    tiny_clip,
    tiny_custom,
    tiny_gpt2,
    tiny_gpt2_lm,
    tiny_llama,
    tiny_resnet,
    tiny_t5,
    tiny_vit,
)
from tests.quiet import quiet_arguments as arguments
from tests.training.runs import freeze_trainer

STAGED = FreezePlan(
    trainable="head",
    stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(step=4, unfreeze="embeddings", freeze="head")],
)

# transformers renamed the argument; the lowest supported version has the old name only.
deprecated_name = pytest.mark.filterwarnings("ignore:.gradient_checkpointing\\w*. is deprecated:FutureWarning")


class Allocated(TrainerCallback):
    """Bytes of gradients and of optimizer state, by optimizer step."""

    def __init__(self) -> None:
        self.gradients, self.state = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(size(p.grad for p in model.parameters() if p.grad is not None))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        held = [value for state in optimizer.state.values() for value in state.values()]
        self.state.append(size(value for value in held if isinstance(value, torch.Tensor)))


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    ("build", "optim"),
    [(tiny_bert, "adamw_torch"), (tiny_bert, "sgd"), (tiny_bert, "adafactor"), (tiny_llama, "adamw_torch_fused")],
)
def test_optimizer_state_and_gradients_are_what_a_run_allocates_in_every_stage(tmp_path, build, optim):
    seen = preview(build(), arguments(optim=optim, learning_rate=0.01), plan=STAGED)
    watch = Allocated()
    trainer = freeze_trainer(
        build(), tmp_path, freeze_plan=STAGED, callbacks=[watch], max_steps=6, optim=optim, verify_freeze=False
    )
    trainer.train()
    for stage in seen.stages:
        last_step = 2 * stage.index + 1
        assert stage.gradient_bytes == watch.gradients[last_step]
        assert stage.optimizer_bytes == pytest.approx(watch.state[last_step], rel=0.1)
    head = next(group for group in seen.stages[2].groups if not group.trains)
    assert (head.learning_rate, head.gradient_bytes) == (0.0, 0)


def test_groups_are_those_that_training_builds():
    model = tiny_bert(layers=3)
    rates = {"layer_lr_decay": 0.5, "group_lrs": {"head": {"lr": 0.1, "weight_decay": 0.3}}}
    args = arguments(learning_rate=0.01, weight_decay=0.2, **rates)
    plan = recipes.gradual()
    built = param_groups(model, args, plan=plan, **rates)
    last = preview(model, args, plan=plan).stages[-1]
    assert [(group.name, group.learning_rate, group.weight_decay, group.parameters) for group in last.groups] == [
        (group["name"], group["lr"], group["weight_decay"], sum(p.numel() for p in group["params"])) for group in built
    ]


def test_the_rates_of_a_plan_are_shown_stage_by_stage():
    seen = preview(tiny_bert(layers=3), arguments(learning_rate=0.01), plan=recipes.fine_tune(spread=16))
    rates = [{group.name: group.learning_rate for group in stage.groups} for stage in seen.stages]
    assert rates[0]["head"] == pytest.approx(0.01)
    assert rates[1]["head"] == pytest.approx(0.005)
    assert rates[1]["embeddings"] == pytest.approx(0.005 / 16)


@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")  # accelerate passes it
@pytest.mark.parametrize("ddp_broadcast_buffers", [None, False])
def test_ddp_sends_what_the_preview_says(tmp_path, ddp_broadcast_buffers):
    """The reducer's buckets hold the trainable gradients; the buffers are broadcast once before each forward pass."""
    plan = STAGED
    seen = preview(tiny_bert(), arguments(ddp_broadcast_buffers=ddp_broadcast_buffers), plan=plan)
    model = tiny_bert()
    resolved = plan.resolve(model)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        for stage, names in zip(seen.stages, resolved.names, strict=True):
            set_trainable(model, names)
            assert sent_by_ddp(model, broadcast_buffers=ddp_broadcast_buffers is not False) == stage.ddp_bytes
            model.zero_grad()
    finally:
        dist.destroy_process_group()


def sent_by_ddp(model, *, broadcast_buffers: bool) -> int:
    sent = []

    class Counted(DistributedDataParallel):
        def _distributed_broadcast_coalesced(self, tensors, *args, **kwargs):
            sent.append(size(tensors))

    def count(state, bucket):
        sent.append(size([bucket.buffer()]))
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped = Counted(model, broadcast_buffers=broadcast_buffers)
    wrapped.register_comm_hook(None, count)
    sent.clear()  # what building the wrapper broadcasts
    wrapped(**text_batch(4)).loss.backward()
    return sum(sent)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, tiny_custom])
def test_activations_are_what_a_real_forward_pass_leaves_alive(build):
    """Counted in two ways: by the storages that are alive, and by the tensors that autograd was seen to save."""
    model, batch = build(), text_batch(4)
    seen = preview(model, arguments(frozen_eval=False), plan=STAGED, batch=batch)
    getattr(model, "config", hf.BertConfig()).use_cache = False  # as the Trainer has it
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    for stage, names in zip(seen.stages, STAGED.resolve(model).names, strict=True):
        set_trainable(model, names)
        model.train()
        saved: dict[int, torch.Tensor] = {}

        def save(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with AliveStorages(model) as storages, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            output = model(**batch)
            alive = storages.alive_bytes()
        by_autograd = sum(saved[place].untyped_storage().nbytes() for place in saved.keys() - weights)
        del output
        assert stage.activation_bytes == pytest.approx(alive, rel=0.02), stage.index
        assert stage.activation_bytes == pytest.approx(by_autograd, rel=0.1, abs=3000), stage.index


@pytest.mark.smoke
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_operations_of_a_forward_pass_are_those_that_the_layers_have(dropout):
    """Dropout decides whether attention is one fused operation."""
    rows, tokens, hidden, inner, layers = 4, 32, 16, 32, 2
    model = tiny_bert(layers=layers, attention_probs_dropout_prob=dropout)
    tracer = ModelTracer(model, arguments(), batch=None, rows=rows, tokens=tokens)
    linear = 2 * rows * tokens * (4 * hidden * hidden + 2 * hidden * inner)
    attention = 2 * 2 * rows * tokens * tokens * hidden
    head = 2 * rows * (hidden * hidden + 2 * hidden)
    trace = tracer.trace([name for name, _ in model.named_parameters()])
    assert trace.forward == layers * (linear + attention) + head
    assert 2 * trace.forward <= trace.backward <= 2.5 * trace.forward


def test_every_token_goes_through_as_many_experts_as_the_router_picks():
    def forward(picked):
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": picked}
        with torch.device("meta"):
            config = hf.MixtralConfig(**sizes, **heads, num_local_experts=4, dtype="bfloat16")
            model = hf.AutoModelForCausalLM.from_config(config)
        tracer = ModelTracer(model, arguments(), batch=None, rows=2, tokens=16)
        trace = tracer.trace([name for name, _ in model.named_parameters()])
        assert 2 * trace.forward <= trace.backward <= 2.5 * trace.forward
        return trace.forward

    assert forward(3) - forward(2) == forward(2) - forward(1) == 2 * (2 * 16) * 3 * 32 * 64


def test_a_decoder_without_a_padding_token_and_an_image_tower_can_be_previewed():
    for model in (tiny_gpt2(pad_token_id=None), hf.CLIPForImageClassification(tiny_clip().config)):
        assert not preview(model, arguments(), plan=FreezePlan(trainable="head")).remarks


@deprecated_name
def test_recomputation_goes_back_no_further_than_to_what_trains():
    """With frozen embeddings, in both kinds of checkpointing."""
    plan = FreezePlan(trainable=["head", "layers[-1]"])
    kept = preview(tiny_bert(layers=6), arguments(), plan=plan).stages[0]
    for reentrant in (True, False):
        args = arguments(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        assert preview(tiny_bert(layers=6), args, plan=plan).stages[0].cost == pytest.approx(kept.cost, abs=0.08)


def test_frozen_dropout_keeps_no_masks():
    plan = FreezePlan(trainable=["head", "layers[0]"])
    held = preview(tiny_bert(), arguments(), plan=plan).stages[0]
    on = preview(tiny_bert(), arguments(frozen_eval=False), plan=plan).stages[0]
    assert held.activation_bytes < on.activation_bytes


@deprecated_name
def test_recomputed_activations_are_not_kept():
    full = recipes.full()
    kept = preview(tiny_bert(layers=6), arguments(), plan=full)
    recomputed = preview(tiny_bert(layers=6), arguments(gradient_checkpointing=True), plan=full)
    assert recomputed.stages[0].activation_bytes < kept.stages[0].activation_bytes / 2


def test_mixed_precision_keeps_smaller_activations():
    args = arguments()
    full = preview(tiny_bert(), args, plan=recipes.full()).stages[0]
    args.bf16 = True
    half = preview(tiny_bert(), args, plan=recipes.full()).stages[0]
    assert half.activation_bytes < full.activation_bytes


def test_the_backward_pass_goes_down_to_the_lowest_trainable_layer():
    """Forward, gradients of activations and gradients of weights take a third each, where attention is small."""
    model = tiny_bert(layers=4, hidden_size=64, intermediate_size=256)

    def cost(selection):
        seen = preview(model, arguments(), plan=FreezePlan(trainable=selection), tokens=8)
        return seen.stages[0].cost

    head, top, bottom = (cost(["head", *layers]) for layers in ([], ["layers[-1]"], ["layers[0]"]))
    assert head == pytest.approx(1 / 3, abs=0.02)
    assert top == pytest.approx(1 / 3 + 1 / 4 * 2 / 3, abs=0.03)
    assert bottom == pytest.approx(1 / 3 + 1 / 3 + 1 / 4 / 3, abs=0.03)
    assert cost(["head", "biases"]) == pytest.approx(2 / 3, abs=0.03)
    assert cost("all") == 1.0


@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2_lm, tiny_vit, tiny_resnet, tiny_t5, tiny_custom])
def test_a_preview_leaves_the_model_as_it_was(build):
    model = build()
    model.eval()
    before = {name: (p.requires_grad, p.grad, p.clone()) for name, p in model.named_parameters()}
    use_cache = getattr(getattr(model, "config", None), "use_cache", None)
    seen = preview(model, arguments(), plan=FreezePlan(trainable="norms"))
    assert not seen.remarks
    assert 0 < seen.stages[0].cost < 1.05
    assert all(not module.training for module in model.modules())
    assert getattr(getattr(model, "config", None), "use_cache", None) == use_cache
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is before[name][0]
        assert parameter.grad is None
        assert torch.equal(parameter, before[name][2])


@pytest.mark.smoke
@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2_lm, tiny_t5, tiny_vit])
def test_a_configuration_and_a_folder_give_what_the_model_gives(tmp_path, build):
    """Tied weights are tied on the meta device too."""
    model = build()
    model.save_pretrained(tmp_path)
    name = type(model).__name__
    of_model = preview(model, arguments(), plan=recipes.full()).to_dict()
    assert preview(model.config, arguments(), plan=recipes.full(), auto_class=name).to_dict() == of_model
    assert preview(tmp_path, arguments(), plan=recipes.full(), auto_class=name).to_dict() == of_model


def test_the_class_is_sequence_classification_where_there_is_one_else_that_of_the_configuration():
    bert = tiny_bert().config
    bert.architectures = ["BertForMaskedLM"]
    assert preview(bert, arguments(), plan=recipes.full()).model == "BertForSequenceClassification"
    vit = tiny_vit().config
    vit.architectures = ["ViTForImageClassification"]
    assert preview(vit, arguments(), plan=recipes.full()).model == "ViTForImageClassification"
    with pytest.raises(PlanError.__base__, match="'AutoModelForCausalML' is not a model class of transformers"):
        preview(bert, arguments(), auto_class="AutoModelForCausalML")


@pytest.mark.slow
def test_seventy_billion_parameters_take_no_memory():
    config = hf.LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        pad_token_id=0,
        dtype="bfloat16",
    )
    plan = FreezePlan(trainable="head", stages=[Stage(epoch=1, unfreeze="layers[-4:]")])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = preview(config, arguments(), plan=plan, tokens=512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    assert seen.parameters == 69_503_049_728
    assert seen.weight_bytes == 2 * seen.parameters
    assert seen.stages[1].parameters == 3_422_633_984
    assert seen.stages[1].optimizer_bytes == pytest.approx(2 * seen.stages[1].gradient_bytes, rel=1e-6)
    assert seen.stages[1].cost == pytest.approx(1 / 3 + 4 / 80 * 2 / 3, abs=0.01)


def test_what_cannot_be_run_without_values_is_said_and_the_rest_is_there():
    seen = preview(tiny_clip(), arguments(optim="rmsprop"), plan=FreezePlan(trainable="re:.*projection.*"))
    assert "Activations and cost unknown: CLIPModel" in seen.remarks[0]
    assert seen.stages[0].cost is seen.stages[0].activation_bytes is None
    assert seen.stages[0].gradient_bytes == seen.stages[0].optimizer_bytes - 2 * 4  # a step count per tensor
    assert "?" in str(seen)


def test_an_optimizer_that_needs_values_leaves_its_column_unknown(monkeypatch):
    def step(self, closure=None):
        raise RuntimeError("needs values")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    seen = preview(tiny_bert(), arguments(optim="sgd"), plan=STAGED)
    assert seen.stages[0].optimizer_bytes is None
    assert "Optimizer state unknown" in seen.remarks[0]
    assert seen.stages[0].cost is not None


def test_the_plan_may_be_in_the_arguments_or_in_the_model():
    declared = preview(tiny_bert(), arguments(trainable=["head"]))
    model = tiny_bert()
    model.bert.requires_grad_(False)
    assert declared.to_dict() == preview(model, arguments()).to_dict()
    assert (
        declared.to_dict()
        == preview(tiny_bert(), arguments(cls=TrainingArguments), plan=recipes.linear_probe()).to_dict()
    )
    with pytest.raises(PlanError, match="Two plans"):
        preview(tiny_bert(), arguments(trainable=["head"]), plan=recipes.full())


def test_the_table_has_a_row_per_group_and_says_what_the_estimates_are_of():
    seen = preview(tiny_bert(), arguments(learning_rate=0.01), plan=STAGED, batch_size=3, tokens=7, rows=12)
    lines = str(seen).splitlines()
    assert lines[0].startswith("BertForSequenceClassification: ")
    header = "stage starts group parameters lr decay optimizer gradients activations DDP sends cost"
    assert lines[1].split() == header.split()
    assert any("(frozen)" in line for line in lines)
    assert any(line.lstrip().startswith("1  step 2 (step 2)") for line in lines)
    assert "3 rows of 7 tokens" in str(seen)
    assert json.loads(json.dumps(seen.to_dict()))["stages"][1]["groups"][0]["name"] == "trainable in stages 0-1"


def test_texts_are_no_longer_than_the_model_takes():
    assert preview(tiny_bert(), arguments(), plan=recipes.full()).batch == "8 rows of 32 tokens"
    assert len(text_rows(1)[0]["input_ids"]) <= 32
