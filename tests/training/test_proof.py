"""FreezeProof finds planted faults, names the parameter, and leaves healthy runs alone."""

import logging
import struct

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, FreezeViolation, param_groups
from hf_freeze.training.digests import digests
from tests.models import SIZES, image_rows, seeded, text_rows, tiny_bert, tiny_resnet
from tests.training.runs import AtStep, arguments, freeze_trainer, moved, weights

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


# Planted faults


def test_a_frozen_weight_that_a_callback_edits_is_named_at_the_end(tmp_path):
    def edit(model, optimizer):
        model.get_parameter(QUERY).data.view(-1)[3] += 1e-6

    trainer = freeze_trainer(tiny_bert(), tmp_path, trainable=["head"], callbacks=[AtStep(edit)])
    with pytest.raises(FreezeViolation, match=f"'{QUERY}' changed although frozen.*a callback"):
        trainer.train()


def test_a_frozen_weight_that_moved_is_found_before_the_checkpoint_is_written(tmp_path):
    def edit(model, optimizer):
        model.get_parameter(QUERY).data.add_(1)

    trainer = freeze_trainer(
        tiny_bert(), tmp_path, trainable=["head"], callbacks=[AtStep(edit)], save_strategy="steps", save_steps=2
    )
    with pytest.raises(FreezeViolation, match=QUERY):
        trainer.train()
    assert trainer.state.global_step == 2
    assert not any((tmp_path / "run").iterdir())


def test_a_trainable_parameter_left_out_of_a_passed_optimizer_is_named_before_the_first_step(tmp_path):
    model = tiny_bert()
    optimizer = torch.optim.AdamW([model.classifier.weight])
    trainer = freeze_trainer(model, tmp_path, trainable=["head"], optimizers=(optimizer, None))
    with pytest.raises(FreezeViolation, match=r"'classifier\.bias' should train, but the optimizer does not hold it"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_passed_optimizer_over_a_model_that_was_replaced_is_refused(tmp_path):
    optimizer = torch.optim.AdamW(tiny_bert().parameters())
    trainer = freeze_trainer(tiny_bert(), tmp_path, trainable=["head"], optimizers=(optimizer, None))
    with pytest.raises(FreezeViolation, match="optimizer does not hold"):
        trainer.train()


@pytest.mark.parametrize("step", [1, 2])
def test_weights_replaced_after_the_optimizer_was_built_are_named(tmp_path, step):
    def replace(model, optimizer):
        model.classifier.weight = nn.Parameter(model.classifier.weight.detach().clone())

    trainer = freeze_trainer(
        tiny_bert(), tmp_path, trainable=["head"], callbacks=[AtStep(replace, step=step, event="on_step_begin")]
    )
    with pytest.raises(FreezeViolation, match=r"'classifier\.weight'.*optimizer does not hold"):
        trainer.train()


class TrainsItsBatchNorm(nn.Module):
    """What users write: train() inside forward()."""

    def __init__(self, resnet):
        super().__init__()
        self.resnet = resnet
        self.out = nn.Linear(16, 2)

    def forward(self, pixel_values, labels=None):
        self.resnet.train()
        logits = self.out(self.resnet(pixel_values).pooler_output.flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_batchnorm_put_into_train_mode_inside_forward_is_named(tmp_path):
    model = TrainsItsBatchNorm(tiny_resnet().resnet)
    trainer = freeze_trainer(model, tmp_path, rows=image_rows(), freeze=["resnet"])
    with pytest.raises(FreezeViolation, match=r"running_mean.*changed although frozen.*train\(\) on it inside forward"):
        trainer.train()


class Detaches(nn.Module):
    def __init__(self, *, head: bool):
        super().__init__()
        config = hf.BertConfig(**SIZES, num_hidden_layers=2)
        self.bert = seeded(lambda c: hf.BertModel(c, add_pooling_layer=False), config)
        self.classifier = nn.Linear(16, 2)
        self.detach_head = head

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        logits = self.classifier(hidden.detach())
        if self.detach_head:
            logits = logits.detach() + hidden[:, :2]
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_detached_head_is_named(tmp_path):
    trainer = freeze_trainer(Detaches(head=True), tmp_path)
    with pytest.raises(FreezeViolation, match=r"'classifier\.weight'.*no gradient.*Likely causes: detach\(\)"):
        trainer.train()


def test_layers_behind_a_detach_are_named(tmp_path):
    trainer = freeze_trainer(Detaches(head=False), tmp_path, trainable=["classifier", "layers[-1]"])
    with pytest.raises(FreezeViolation, match=r"bert\.encoder\.layer\.1.*layers\[-1\].*detach\(\)"):
        trainer.train()


def test_a_detached_part_whose_rate_is_nought_is_no_violation(tmp_path):
    rates = {"group_lrs": {"layers[-1]": 0.0}}
    freeze_trainer(Detaches(head=False), tmp_path, trainable=["classifier", "layers[-1]"], **rates).train()


class NeverSteps(torch.optim.SGD):
    def step(self, closure=None):
        return None


def test_weights_that_an_optimizer_does_not_step_are_named(tmp_path):
    settings = {"trainable": ["head"], "optimizer_cls_and_kwargs": (NeverSteps, {"lr": 0.1})}
    freeze_trainer(tiny_bert(), tmp_path, max_steps=7, **settings).train()  # a scaler may still be at its first steps
    trainer = freeze_trainer(tiny_bert(), tmp_path, max_steps=8, **settings)
    with pytest.raises(FreezeViolation, match=r"'classifier\.weight'.*had a gradient.*skipped every step"):
        trainer.train()


def test_a_plain_trainer_with_the_callback_finds_them_too(tmp_path):
    def edit(model, optimizer):
        model.get_parameter(QUERY).data.add_(1)

    callbacks = [FreezeCallback(FreezePlan(trainable="head")), AtStep(edit)]
    args = arguments(tmp_path, TrainingArguments)
    with pytest.raises(FreezeViolation, match=QUERY):
        Trainer(tiny_bert(), args, train_dataset=text_rows(), callbacks=callbacks).train()


def test_verify_freeze_false_looks_away(tmp_path):
    def edit(model, optimizer):
        model.get_parameter(QUERY).data.add_(1)

    freeze_trainer(tiny_bert(), tmp_path, trainable=["head"], callbacks=[AtStep(edit)], verify_freeze=False).train()


# Healthy runs


def xlnet():
    """Its mask_emb is for pretraining only."""
    config = hf.XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32, num_labels=2)
    return seeded(hf.XLNetForSequenceClassification, config)


class RobertaWithHead(nn.Module):
    """RobertaModel comes with a pooler, which a head over the first token does not use."""

    def __init__(self):
        super().__init__()
        self.roberta = seeded(hf.RobertaModel, hf.RobertaConfig(**SIZES, pad_token_id=0, num_hidden_layers=2))
        self.out = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.out(self.roberta(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    ("build", "unused"), [(xlnet, "transformer.mask_emb"), (RobertaWithHead, "roberta.pooler.dense")]
)
def test_a_lone_tensor_that_the_task_does_not_use_is_a_warning(tmp_path, caplog, build, unused):
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        freeze_trainer(build(), tmp_path).train()
    (message,) = [r.getMessage() for r in caplog.records if "did not change" in r.getMessage()]
    assert unused in message
    assert "not to use them" in message


def test_one_step_at_a_warmup_rate_of_zero_is_no_violation(tmp_path):
    model = tiny_bert()
    before = weights(model)
    freeze_trainer(model, tmp_path, max_steps=1, warmup_steps=10).train()
    assert moved(before, model) == set()


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("rate", [1e-9, 1e-12, 1e-20])
def test_steps_too_small_to_show_are_a_warning(tmp_path, caplog, optim, rate):
    """A LayerNorm weight of 1.0 takes no step below 6e-8: a schedule that begins or ends near zero is healthy."""
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        freeze_trainer(tiny_bert(), tmp_path, learning_rate=rate, optim=optim).train()
    assert any("skipped or too small to show in torch.float32" in record.getMessage() for record in caplog.records)


def test_a_bias_whose_gradient_is_only_rounding_is_no_violation(tmp_path):
    """The key bias shifts all scores of a row alike, which softmax does not see."""
    model = tiny_bert()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.key.bias.fill_(1.0)
    freeze_trainer(model, tmp_path, optim="sgd").train()


def test_a_model_in_bfloat16_whose_norms_stall_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_freeze"):
        freeze_trainer(tiny_bert().bfloat16(), tmp_path, learning_rate=1e-4).train()
    messages = [record.getMessage() for record in caplog.records]
    assert sum("skipped or too small to show in torch.bfloat16" in message for message in messages) == 1
    assert sum("Keep what trains in float32" in message for message in messages) == 1


def test_a_passed_optimizer_over_param_groups_is_healthy(tmp_path):
    model, plan = tiny_bert(), FreezePlan(trainable="head")
    before = weights(model)
    optimizer = torch.optim.SGD(param_groups(model, arguments(tmp_path), plan=plan))
    freeze_trainer(model, tmp_path, freeze_plan=plan, optimizers=(optimizer, None)).train()
    assert moved(before, model) == {"classifier.weight", "classifier.bias"}


def test_a_second_training_forgets_the_first(tmp_path):
    """Between two train() calls frozen weights may be edited: a model is loaded, merged, averaged."""
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, trainable=["head"])
    trainer.train()
    model.get_parameter(QUERY).data.add_(1)
    trainer.train()


def test_the_last_step_may_be_followed_by_a_callback_that_loads_other_weights(tmp_path):
    """on_train_end is after the proof, as load_best_model_at_end is."""

    class LoadsOthers(hf.TrainerCallback):
        def on_train_end(self, args, state, control, model, **kwargs):
            model.load_state_dict(tiny_bert(seed=5).state_dict())

    freeze_trainer(tiny_bert(), tmp_path, trainable=["head"], callbacks=[LoadsOthers()]).train()


def test_freeze_trainer_is_a_trainer():
    assert issubclass(FreezeTrainer, Trainer)


# Digests

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
]
SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (1023,), (1024,), (1025,), (33, 65)]


@st.composite
def tensors(draw):
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = torch.empty(shape, dtype=dtype).nbytes
    octets = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    if dtype is torch.bool:
        octets &= 1
    tensor = octets.view(dtype).reshape(shape)
    return tensor.t() if tensor.ndim == 2 and draw(st.booleans()) else tensor


def flip(tensor: torch.Tensor, position: int, bit: int) -> torch.Tensor:
    octets = tensor.contiguous().clone().reshape(-1).view(torch.uint8)
    octets[position % len(octets)] ^= 1 << (0 if tensor.dtype is torch.bool else bit)
    return octets.view(tensor.dtype).reshape(tensor.shape)


@given(tensors(), st.integers(0, 2**16), st.integers(0, 7))
def test_a_change_of_one_bit_anywhere_changes_the_digest(tensor, position, bit):
    assert digests({"x": tensor}) != digests({"x": flip(tensor, position, bit)})


@given(tensors())
def test_a_digest_depends_on_the_values_and_not_on_the_layout(tensor):
    assert digests({"x": tensor}) == digests({"x": tensor.contiguous().clone()})


@given(tensors(), st.integers(0, 2**16), st.integers(0, 2**16))
def test_two_elements_that_change_places_change_the_digest(tensor, first, second):
    flat = tensor.contiguous().reshape(-1).clone()
    i, j = first % flat.numel(), second % flat.numel()
    swapped = flat.clone()
    swapped[i], swapped[j] = flat[j].clone(), flat[i].clone()
    same = torch.equal(flat.view(torch.uint8), swapped.view(torch.uint8))
    assert (digests({"x": flat}) == digests({"x": swapped})) == same


@pytest.mark.parametrize(
    ("first", "second"), [(0, 1024), (1, 2048), (2, 2 * 1024 + 1), (0, 3 * 1024), (5, 3 * 1024 + 7)]
)
def test_words_of_other_rows_and_columns_that_change_places_change_the_digest(first, second):
    words = torch.arange(3 * 1024 + 9)
    swapped = words.clone()
    swapped[first], swapped[second] = second, first
    assert digests({"x": words}) != digests({"x": swapped})


def test_a_sign_of_zero_and_the_payload_of_a_nan_show():
    nans = [struct.unpack("<f", struct.pack("<I", 0x7FC00000 + payload))[0] for payload in (0, 1)]
    for one, other in [(0.0, -0.0), nans]:
        assert digests({"x": torch.tensor([one])}) != digests({"x": torch.tensor([other])})


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_an_empty_tensor_has_a_digest(shape):
    assert digests({"x": torch.empty(shape)}) == {"x": 0}


def test_strided_and_expanded_tensors_are_digested_by_value():
    base = torch.arange(24.0).reshape(4, 6)
    for view in (
        base[:, ::2],
        base[1],
        base.expand(3, 4, 6),
        base.as_strided((3, 3), (1, 2)).flip(0),
        base.flatten()[1:9],
    ):
        assert digests({"x": view}) == digests({"x": view.clone(memory_format=torch.contiguous_format)})


def test_the_digest_of_a_tensor_is_the_same_beside_others():
    sizes = [3, 0, 5000, 7, 1, 9000, 0, 2, *([1] * 1500), 4096]
    together = {str(index): torch.randn(size) for index, size in enumerate(sizes)}
    alone = {name: digests({name: tensor})[name] for name, tensor in together.items()}
    assert digests(together) == alone
    assert len(set(alone.values())) > 1500


@pytest.mark.parametrize("count", [1024, 1025, 3 * 1024 + 9, 32 * 1024])
def test_weights_that_are_written_out_give_the_digest_of_rows_and_columns(monkeypatch, count):
    words = {"x": torch.randint(-(2**62), 2**62, (count,))}
    written_out = digests(words)
    monkeypatch.setattr("hf_freeze.training.digests._AT_ONCE", 0)
    assert digests(words) == written_out


def test_no_tensors_have_no_digests():
    assert digests({}) == {}
