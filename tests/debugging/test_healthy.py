"""Healthy models of many kinds: no check has anything to say, in the fast set and in the full one with a backward pass."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage, debug_sample
from hf_freeze.debugging.gradients import gradient_statuses
from hf_freeze.debugging.variants import real_tokens
from tests.debugging.subjects import (
    Pooled,
    arguments,
    audio_rows,
    checkpoint_activations,
    named_rows,
    pooled,
    ragged_rows,
    tiny_lora,
    tiny_wav2vec2,
    token_rows,
    trainer_of,
    word_tokenizer,
)
from tests.models import (
    SIZES,
    SPECIAL,
    image_rows,
    seeded,
    text_rows,
    tiny_bart,
    tiny_bert,
    tiny_custom,
    tiny_distilbert,
    tiny_gpt2,
    tiny_gpt2_lm,
    tiny_llama,
    tiny_resnet,
    tiny_roberta,
    tiny_t5,
    tiny_vit,
)


def floats(rows, scale=0.37):
    return [{**row, "labels": scale * (index % 9) - 1} for index, row in enumerate(rows)]


def binary_floats(rows):
    return [{**row, "labels": [float(row["labels"])]} for row in rows]


def tiny_mixtral():
    config = hf.MixtralConfig(
        **SIZES, **SPECIAL, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=1
    )
    return seeded(hf.MixtralForSequenceClassification, config)


def tiny_modernbert():
    config = hf.ModernBertConfig(**SIZES, **{**SPECIAL, "cls_token_id": 1, "sep_token_id": 2}, num_hidden_layers=2)
    return seeded(hf.ModernBertForSequenceClassification, config)


def tiny_albert():
    config = hf.AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=2)
    return seeded(hf.AlbertForSequenceClassification, config)


def tiny_t5_classifier():
    config = hf.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, pad_token_id=0)
    config.eos_token_id, config.decoder_start_token_id, config.num_labels = 3, 0, 2
    return seeded(hf.T5ForSequenceClassification, config)


def eos_rows(count=16):
    return [{**row, "input_ids": [*row["input_ids"][:-1], 3]} for row in ragged_rows(count)]


def tiny_token_classifier():
    return seeded(hf.BertForTokenClassification, hf.BertConfig(**SIZES, num_hidden_layers=2, num_labels=64))


def tiny_masked_lm():
    return seeded(hf.BertForMaskedLM, hf.BertConfig(**SIZES, num_hidden_layers=2))


def tiny_question_answerer():
    return seeded(hf.BertForQuestionAnswering, hf.BertConfig(**SIZES, num_hidden_layers=2))


def answer_rows():
    return [
        {key: row[key] for key in ("input_ids", "attention_mask")} | {"start_positions": 1, "end_positions": 2}
        for row in text_rows()
    ]


def quiet_frozen():
    model = tiny_bert()
    model.bert.requires_grad_(False)
    return model


def checkpointed():
    model = tiny_bert()
    checkpoint_activations(model)
    return model


class Squeezed(Pooled):
    """One logit as a bare vector (n,)."""

    def logits(self, input_ids, attention_mask):
        return super().logits(input_ids, attention_mask)[:, 0]


def squeezed():
    def loss(logits, labels):
        return functional.binary_cross_entropy_with_logits(logits, labels.float())

    return seeded(lambda _: Squeezed(columns=1, loss=loss), None)


class WithoutIds(nn.Module):
    """Features in, logits out, with an input of its own name."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 3)

    def forward(self, features, labels=None):
        logits = self.out(torch.relu(self.norm(features)))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return loss, logits


class Tokens(nn.Module):
    """Token ids under another name, without a mask."""

    def __init__(self):
        super().__init__()
        self.embed = nn.EmbeddingBag(64, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, tokens):
        return self.out(self.embed(tokens))


def feature_rows():
    generator = torch.Generator().manual_seed(0)
    return [{"features": torch.randn(6, generator=generator), "labels": i % 3} for i in range(8)]


HEALTHY = {
    "bert": (tiny_bert, text_rows),
    "roberta": (tiny_roberta, text_rows),
    "distilbert": (tiny_distilbert, text_rows),
    "albert": (tiny_albert, text_rows),
    "modernbert": (tiny_modernbert, text_rows),
    "llama": (tiny_llama, text_rows),
    "gpt2": (tiny_gpt2, text_rows),
    "mixtral, experts without tokens": (tiny_mixtral, text_rows),
    "gpt2 language model, tied weights": (tiny_gpt2_lm, token_rows),
    "t5": (tiny_t5, token_rows),
    "bart": (tiny_bart, token_rows),
    "t5 classifier": (tiny_t5_classifier, eos_rows),
    "token classification": (tiny_token_classifier, token_rows),
    "masked language model": (tiny_masked_lm, token_rows),
    "question answering": (tiny_question_answerer, answer_rows),
    "three classes": (lambda: tiny_bert(num_labels=3), lambda: text_rows(num_labels=3)),
    "regression": (lambda: tiny_bert(num_labels=1), lambda: floats(text_rows())),
    "one logit, binary cross entropy": (
        lambda: tiny_bert(num_labels=1, problem_type="multi_label_classification"),
        lambda: binary_floats(text_rows()),
    ),
    "several labels": (
        lambda: tiny_bert(num_labels=3, problem_type="multi_label_classification"),
        lambda: [{**row, "labels": [1.0, 0.0, 1.0]} for row in text_rows()],
    ),
    "vit": (tiny_vit, image_rows),
    "resnet, batch statistics": (tiny_resnet, image_rows),
    "wav2vec2": (tiny_wav2vec2, audio_rows),
    "lora": (tiny_lora, text_rows),
    "dora": (lambda: tiny_lora(use_dora=True), text_rows),
    "own module, a dict, an unused pooler": (tiny_custom, text_rows),
    "own module, a dict": (pooled, text_rows),
    "own module, a tuple": (lambda: pooled(output="tuple"), text_rows),
    "own module, a tensor": (lambda: pooled(output="tensor"), text_rows),
    "own module, one logit": (lambda: pooled(columns=1), text_rows),
    "own module, one logit in a vector": (squeezed, text_rows),
    "own module, features": (lambda: seeded(lambda _: WithoutIds(), None), feature_rows),
    "own module, no mask": (
        lambda: seeded(lambda _: Tokens(), None),
        lambda: [{"tokens": torch.arange(5 + i, 11 + i), "labels": i % 2} for i in range(8)],
    ),
    "frozen in part": (quiet_frozen, text_rows),
    "gradient checkpointing": (checkpointed, text_rows),
    "bfloat16": (lambda: tiny_bert().bfloat16(), text_rows),
    "float16": (lambda: tiny_llama().half(), text_rows),
    "left padding, rotary positions": (
        tiny_llama,
        lambda: [{k: v[::-1] if k != "labels" else v for k, v in row.items()} for row in text_rows()],
    ),
    "torch.compile": (lambda: torch.compile(tiny_bert(), backend="eager"), text_rows),
}
OPTIONS = [{}, {"checks": "full", "backward": True}]


def said(report):
    return [check for check in report.checks if check.status != "ok"]


@pytest.mark.parametrize("options", OPTIONS, ids=["fast", "full"])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_raises_no_warning(name, options):
    build, rows = HEALTHY[name]
    for seed in (0, 1):
        report = debug_sample(build(), dataset=rows(), seed=seed, quiet=True, **options)
        assert said(report) == []
        assert report.ok
        assert len(report.checks) >= 9


def weighted_loss(outputs, labels, num_items_in_batch=None):
    loss = functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 5.0]), reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def focal_loss(outputs, labels, num_items_in_batch=None):
    share = outputs.logits.softmax(-1).gather(-1, labels[:, None])
    return ((1 - share) ** 2 * -share.log()).mean()


class Weighted(hf.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 2.0]))(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def freeze_trainer(folder, **options):
    args = FreezeTrainingArguments(str(folder), use_cpu=True, report_to=[], gradient_accumulation_steps=2, **options)
    plan = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]")])
    data = {"eval_dataset": ragged_rows(), "processing_class": word_tokenizer()}
    return FreezeTrainer(tiny_bert(), args, freeze_plan=plan, **data)


TRAINERS = {
    "rows of many lengths": lambda folder: trainer_of(tiny_bert(), folder),
    "a decoder": lambda folder: trainer_of(tiny_llama(), folder),
    "a decoder, padding left": lambda folder: trainer_of(
        tiny_llama(), folder, tokenizer=word_tokenizer(padding_side="left")
    ),
    "a decoder, absolute positions": lambda folder: trainer_of(tiny_gpt2(), folder),
    "names in the data": lambda folder: trainer_of(
        tiny_bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1}),
        folder,
        rows=named_rows(["ham", "spam"]),
    ),
    "names in the data alone": lambda folder: trainer_of(tiny_bert(), folder, rows=named_rows(["ham", "spam"])),
    "label smoothing": lambda folder: trainer_of(
        tiny_bert(), folder, args=arguments(folder, label_smoothing_factor=0.1)
    ),
    "class weights in compute_loss": lambda folder: trainer_of(tiny_bert(), folder, cls=Weighted),
    "class weights in compute_loss_func": lambda folder: trainer_of(
        tiny_bert(), folder, compute_loss_func=weighted_loss
    ),
    "focal loss": lambda folder: trainer_of(tiny_bert(), folder, compute_loss_func=focal_loss),
    "bfloat16 by autocast": lambda folder: trainer_of(tiny_bert(), folder, args=arguments(folder, bf16=True)),
    "a freeze plan with stages and accumulation": freeze_trainer,
    "lora": lambda folder: trainer_of(tiny_lora(), folder),
    "an optimizer of one's own": lambda folder: _with_optimizer(tiny_bert(), folder),
    "own module": lambda folder: trainer_of(pooled(), folder),
    "images": lambda folder: trainer_of(tiny_vit(), folder, rows=image_rows(), tokenizer=None),
}


def _with_optimizer(model, folder):
    return trainer_of(model, folder, optimizers=(torch.optim.AdamW(model.parameters()), None))


@pytest.mark.parametrize("options", OPTIONS, ids=["fast", "full"])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_healthy_trainer_raises_no_warning(tmp_path, name, options):
    for seed in (0, 1):
        report = debug_sample(TRAINERS[name](tmp_path), seed=seed, quiet=True, **options)
        assert said(report) == []
        assert report["loss"].status == "ok"


def test_a_trainer_with_a_plan_is_healthy_before_in_and_after_training(tmp_path):
    reports = []

    class Look(hf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            reports.append(debug_sample(trainer, backward=True, quiet=True))

    trainer = freeze_trainer(tmp_path, max_steps=4, save_strategy="no", disable_tqdm=True)
    trainer.train_dataset = ragged_rows()
    trainer.add_callback(Look())
    reports.append(debug_sample(trainer, backward=True, quiet=True))
    trainer.train()
    reports.append(debug_sample(trainer, backward=True, quiet=True))
    assert [said(report) for report in reports] == [[]] * 6
    trained = [sum(status != "frozen" for status in report.gradients.values()) for report in reports]
    assert trained == [2, 2, 2, 18, 18, 18]


def test_the_gradient_of_loras_first_factor_is_explained():
    report = debug_sample(tiny_lora(), dataset=text_rows(), backward=True, quiet=True)
    zero = {name for name, status in report.gradients.items() if status == "zero"}
    assert zero
    assert all("lora_A" in name for name in zero)
    assert "expected before the first step" in report["gradients"].message


@pytest.mark.parametrize(("scale", "status"), [(1.0, "ok"), (0.0, "zero"), (torch.nan, "not finite")])
def test_gradients_that_are_sparse_are_read(scale, status):
    words = nn.Embedding(64, 4, sparse=True)
    loss = words(torch.tensor([5, 6, 5])).sum() * scale
    assert gradient_statuses(loss, words) == {"weight": status}


@pytest.mark.parametrize(("eos", "ends_in_padding"), [(2, False), (1, True)])
def test_the_end_of_a_text_is_no_padding_where_one_token_is_both(eos, ends_in_padding):
    inspected = SimpleNamespace(tokenizer=None, config=SimpleNamespace(pad_token_id=2, eos_token_id=eos))
    kept = real_tokens(inspected, {"input_ids": torch.tensor([[5, 6, 2]])})
    assert kept.tolist() == [True, True, not ends_in_padding]


def test_a_parameter_without_influence_is_called_unused():
    report = debug_sample(tiny_custom(), dataset=text_rows(), backward=True, quiet=True)
    unused = {name for name, status in report.gradients.items() if status == "unused"}
    assert unused == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("label smoothing", "cross entropy with label smoothing 0.1"),
        ("class weights in compute_loss", "class weights [0.3, 2.0]"),
        ("class weights in compute_loss_func", "class weights [1.0, 5.0]"),
        ("focal loss", "a custom loss"),
        ("own module", "cross entropy of the logits"),
    ],
)
def test_the_loss_is_explained(tmp_path, name, kind):
    report = debug_sample(TRAINERS[name](tmp_path), index=1, quiet=True)
    assert kind in report["loss"].message


def test_rows_of_one_length_at_the_limit_are_not_called_truncated():
    """Texts cut into blocks, as for language models."""
    rows = [{"input_ids": [5 + i % 9] * 32, "attention_mask": [1] * 32, "labels": i % 2} for i in range(8)]
    assert said(debug_sample(tiny_bert(), dataset=rows, tokenizer=word_tokenizer(), quiet=True)) == []


def test_the_precision_is_that_of_training(tmp_path):
    trainer = trainer_of(tiny_bert(), tmp_path, args=arguments(tmp_path, bf16=True))
    assert debug_sample(trainer, quiet=True).logits.dtype == torch.bfloat16
    assert debug_sample(trainer.model, dataset=text_rows(), quiet=True).logits.dtype == torch.float32
