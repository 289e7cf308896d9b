"""Planted faults: each is a function that returns what to call `debug_sample` with, beside the check that must name it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import transformers as hf
from torch import nn
from torch.nn import functional

from hf_freeze import BinaryClassificationMetrics, FreezePlan, FreezeTrainer, FreezeTrainingArguments
from tests.debugging.subjects import (
    Pooled,
    arguments,
    checkpoint_activations,
    named_rows,
    pooled,
    ragged_rows,
    token_rows,
    trainer_of,
    word_tokenizer,
)
from tests.models import (
    BackboneWithHead,
    image_rows,
    seeded,
    text_rows,
    tiny_bert,
    tiny_custom,
    tiny_gpt2,
    tiny_gpt2_lm,
    tiny_llama,
    tiny_roberta,
    tiny_vit,
)


@dataclass(frozen=True)
class Fault:
    name: str
    check: str
    plant: Callable
    options: dict = field(default_factory=dict)
    with_backward: set = field(default_factory=set)  # what a backward pass rightly names too


FAULTS: list[Fault] = []


def fault(check: str, *, with_backward: set = frozenset(), **options):
    def add(plant):
        FAULTS.append(Fault(plant.__name__.replace("_", " "), check, plant, options, set(with_backward)))
        return plant

    return add


# --- weights and numbers


@fault("weights_finite")
def nan_weight(folder):
    model = tiny_bert()
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    return trainer_of(model, folder), {}


@fault("weights_finite")
def nan_in_an_embedding_row_that_this_sample_does_not_use(folder):
    model = tiny_bert()
    model.bert.embeddings.word_embeddings.weight.data[62] = float("inf")
    return model, {"sample": {"input_ids": [5, 6, 7], "labels": 1}}


@fault("logits_finite")
def fp16_overflow(folder):
    model = tiny_bert().half()
    model.bert.encoder.layer[0].intermediate.dense.weight.data.mul_(60000)
    model.bert.encoder.layer[0].output.dense.weight.data.mul_(60000)
    return model, {"dataset": text_rows()}


class DividesByZero(Pooled):
    def logits(self, input_ids, attention_mask):
        return super().logits(input_ids, attention_mask) / (attention_mask.sum() - attention_mask.sum())


@fault("logits_finite")
def division_by_zero(folder):
    return DividesByZero(), {"dataset": text_rows()}


@fault("inputs")
def nan_pixels(folder):
    rows = image_rows()
    for row in rows:
        row["pixel_values"][0, 0, 0] = float("nan")
    return tiny_vit(), {"dataset": rows, "index": 0}


@fault("inputs")
def pixels_neither_rescaled_nor_normalised(folder):
    rows = [{**row, "pixel_values": row["pixel_values"].abs() * 100} for row in image_rows()]
    return tiny_vit(), {"dataset": rows}


# --- the mask and padding


@fault("attention_mask")
def collator_drops_the_mask(folder):
    collate = hf.DataCollatorWithPadding(word_tokenizer())

    def without(rows):
        return {key: value for key, value in collate(rows).items() if key != "attention_mask"}

    return trainer_of(tiny_bert(), folder, data_collator=without), {}


@fault("attention_mask")
def rows_are_padded_and_have_no_mask(folder):
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in text_rows()]
    rows = [row for row in rows if 0 in row["input_ids"]]
    return tiny_bert(), {"dataset": rows}


@fault("attention_mask")
def tokenizer_returns_no_mask(folder):
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in ragged_rows()]
    tokenizer = word_tokenizer(model_input_names=["input_ids"])
    return trainer_of(tiny_bert(), folder, rows=rows, tokenizer=tokenizer), {}


@fault("attention_mask")
def mask_is_one_on_pad_tokens(folder):
    collate = hf.DataCollatorWithPadding(word_tokenizer())

    def all_ones(rows):
        batch = collate(rows)
        return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}

    return trainer_of(tiny_bert(), folder, data_collator=all_ones), {}


@fault("attention_mask")
def mask_is_inverted(folder):
    rows = [{**row, "attention_mask": [0] * len(row["attention_mask"])} for row in ragged_rows()]
    return trainer_of(tiny_bert(), folder, rows=rows), {}


class DropsMask(BackboneWithHead):
    def forward(self, input_ids, attention_mask=None, labels=None):
        return super().forward(input_ids, None, labels)


@fault("padding")
def mask_is_dropped_inside_the_model(folder):
    model = seeded(lambda _: DropsMask(tiny_bert().bert), None)
    return trainer_of(model, folder), {}


@fault("padding")
def mean_over_padding(folder):
    return trainer_of(pooled(masked=False), folder), {}


@fault("pad_token")
def pad_token_missing_on_a_decoder(folder):
    return tiny_llama(pad_token_id=None), {"dataset": text_rows()}


@fault("pad_token")
def pad_token_missing_on_a_decoder_in_a_trainer(folder):
    tokenizer = word_tokenizer()
    return trainer_of(tiny_gpt2(pad_token_id=None), folder, tokenizer=tokenizer), {}


@fault("pad_token")
def wrong_pad_token_on_a_decoder(folder):
    tokenizer = word_tokenizer(pad_token="w9")
    return trainer_of(tiny_llama(), folder, tokenizer=tokenizer), {}


@fault("pad_token")
def wrong_pad_token_on_an_encoder_that_counts_positions_by_it(folder):
    tokenizer = word_tokenizer(pad_token="w9", padding_side="left")
    return trainer_of(tiny_roberta(), folder, tokenizer=tokenizer), {}


@fault("padding_side")
def padding_left_under_absolute_positions(folder):
    return trainer_of(tiny_gpt2(), folder, tokenizer=word_tokenizer(padding_side="left")), {}


class ReadsLast(nn.Module):
    """A decoder's state after the last position."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tiny_llama().model
        self.head = nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.backbone(input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.head(hidden[:, -1])
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


@fault("padding_side")
def padding_right_where_the_last_position_is_read(folder):
    return trainer_of(seeded(lambda _: ReadsLast(), None), folder), {}


@fault("padding_side")
def rows_come_padded_right_where_the_last_position_is_read(folder):
    rows = [row for row in text_rows() if 0 in row["attention_mask"]]
    return trainer_of(seeded(lambda _: ReadsLast(), None), folder, rows=rows, tokenizer=None), {}


# --- tokens


@fault("vocabulary")
def embedding_too_small_for_the_tokenizer(folder):
    return trainer_of(tiny_bert(), folder, tokenizer=word_tokenizer(size=80)), {}


@fault("vocabulary")
def ids_beyond_the_embedding(folder):
    return tiny_bert(), {"sample": {"input_ids": [5, 70, 6], "attention_mask": [1, 1, 1], "labels": 1}}


@fault("vocabulary")
def ids_beyond_an_embedding_of_ones_own(folder):
    return pooled(), {"sample": {"input_ids": [5, 70, 6], "attention_mask": [1, 1, 1], "labels": 1}}


@fault("length")
def more_tokens_than_positions(folder):
    rows = [{"input_ids": [5] * 40, "attention_mask": [1] * 40, "labels": 1}]
    return tiny_bert(), {"dataset": rows}


@fault("truncated")
def text_is_cut_off(folder):
    return tiny_bert(), {"sample": "w7 " * 60, "tokenizer": word_tokenizer()}


@fault("truncated")
def rows_were_cut_off(folder):
    tokenizer = word_tokenizer()
    texts = ["w7 w8 " * (1 + i % 7) for i in range(40)]
    rows = [dict(tokenizer(text, truncation=True, max_length=8)) | {"labels": i % 2} for i, text in enumerate(texts)]
    index = next(i for i, row in enumerate(rows) if len(row["input_ids"]) == 8)
    return trainer_of(tiny_bert(), folder, rows=rows, tokenizer=tokenizer), {"index": index}


@fault("tokens")
def tokenizer_does_not_know_the_language(folder):
    return tiny_bert(), {"sample": "ein ganz anderer Text w7", "tokenizer": word_tokenizer()}


# --- labels


@fault("labels")
def collator_drops_labels(folder):
    collate = hf.DataCollatorWithPadding(word_tokenizer())

    def without(rows):
        return {key: value for key, value in collate(rows).items() if key != "labels"}

    return trainer_of(tiny_bert(), folder, data_collator=without), {}


@fault("labels")
def label_column_has_another_name(folder):
    rows = [{**row, "sentiment": row["labels"]} for row in ragged_rows()]
    for row in rows:
        del row["labels"]
    return trainer_of(tiny_bert(), folder, rows=rows), {}


@fault("label_range")
def label_out_of_range(folder):
    rows = [{**row, "labels": 2} for row in ragged_rows()]
    return trainer_of(tiny_bert(), folder, rows=rows), {}


@fault("label_range")
def labels_start_at_one_in_other_rows(folder):
    rows = [{**row, "labels": row["labels"] + 1} for row in ragged_rows()]
    return trainer_of(tiny_bert(), folder, rows=rows), {"index": 0}


@fault("label_range")
def a_negative_label(folder):
    return trainer_of(tiny_bert(), folder, rows=[{**row, "labels": -1} for row in ragged_rows()]), {}


@fault("label_range")
def label_out_of_range_of_a_model_of_ones_own(folder):
    return pooled(), {"dataset": [{**row, "labels": 5} for row in text_rows()]}


@fault("label_range")
def every_label_is_ignored(folder):
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in token_rows()]
    return tiny_gpt2_lm(), {"dataset": rows}


@fault("label_dtype")
def float_labels_for_two_logits(folder):
    rows = [{**row, "labels": float(row["labels"])} for row in ragged_rows()]
    return trainer_of(tiny_bert(), folder, rows=rows), {}


@fault("label_dtype")
def float_labels_for_cross_entropy_of_ones_own(folder):
    return pooled(), {"dataset": [{**row, "labels": float(row["labels"])} for row in text_rows()]}


@fault("label_dtype")
def int_labels_for_one_logit(folder):
    return trainer_of(tiny_bert(num_labels=1), folder), {}


@fault("label_dtype")
def int_labels_for_binary_cross_entropy_of_ones_own(folder):
    def loss(logits, labels):
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels)

    return pooled(columns=1, loss=loss), {"dataset": text_rows()}


@fault("label_dtype")
def label_is_a_text(folder):
    rows = [{**row, "labels": "spam"} for row in ragged_rows()]
    return trainer_of(tiny_bert(), folder, rows=rows), {}


@fault("label_names")
def shuffled_label_map(folder):
    model = tiny_bert(id2label={0: "spam", 1: "ham"}, label2id={"spam": 0, "ham": 1})
    return trainer_of(model, folder, rows=named_rows(["ham", "spam"])), {}


@fault("label_names")
def label_maps_that_contradict_each_other(folder):
    model = tiny_bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 1, "spam": 0})
    return trainer_of(model, folder), {}


# --- modes and randomness


@fault("modes")
def backbone_in_train_mode(folder):
    model = tiny_bert().eval()
    model.bert.train()
    return model, {"dataset": text_rows()}


class StaysInTrainMode(hf.BertModel):
    def train(self, mode=True):
        return super().train(True)


@fault("modes")
def backbone_that_does_not_follow_eval(folder):
    model = tiny_bert()
    model.bert = StaysInTrainMode(model.config)
    return trainer_of(model, folder), {}


class DropsAlways(Pooled):
    def logits(self, input_ids, attention_mask):
        return functional.dropout(super().logits(input_ids, attention_mask), 0.5, training=True)


@fault("repeatable")
def dropout_left_on(folder):
    return trainer_of(seeded(lambda _: DropsAlways(), None), folder), {}


# --- logits


class Squashes(Pooled):
    squash = staticmethod(torch.sigmoid)

    def logits(self, input_ids, attention_mask):
        return self.squash(super().logits(input_ids, attention_mask))


class Softmaxes(Squashes):
    squash = staticmethod(lambda logits: logits.softmax(-1))


@fault("logits_not_probabilities")
def sigmoid_inside_the_model(folder):
    return trainer_of(seeded(lambda _: Squashes(columns=1), None), folder), {}


@fault("logits_not_probabilities")
def softmax_inside_the_model(folder):
    return trainer_of(seeded(lambda _: Softmaxes(), None), folder), {}


@fault("logits_not_probabilities", with_backward={"gradients"})
def softmax_inside_a_model_that_is_frozen(folder):
    return seeded(lambda _: Softmaxes(), None).requires_grad_(False), {"dataset": text_rows()}


@fault("logits_not_probabilities", with_backward={"gradients"})
def sigmoid_inside_a_model_that_is_frozen(folder):
    return seeded(lambda _: Squashes(columns=1), None).requires_grad_(False), {"dataset": text_rows()}


@fault("logits_not_probabilities")
def sigmoid_that_the_loss_knows_of_and_metrics_do_not(folder):
    def loss(probability, labels):
        return functional.binary_cross_entropy(probability[:, 0], labels.float())

    return seeded(lambda _: Squashes(columns=1, loss=loss), None), {"dataset": text_rows()}


@fault("sensitive")
def constant_output(folder):
    model = tiny_bert()
    model.classifier.weight.data.zero_()
    return trainer_of(model, folder), {}


class ForgetsInput(Pooled):
    def logits(self, input_ids, attention_mask):
        return super().logits(torch.full_like(input_ids, 7), attention_mask)


@fault("sensitive")
def input_is_overwritten(folder):
    return trainer_of(seeded(lambda _: ForgetsInput(), None), folder), {}


@fault("initial_loss")
def head_with_large_weights(folder):
    model = tiny_bert()
    model.classifier.weight.data.normal_(std=50.0, generator=torch.Generator().manual_seed(0))
    return trainer_of(model, folder), {}


@fault("neighbours", checks="full")
def mean_over_the_batch(folder):
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 16 * 16, 2)

        def forward(self, pixel_values, labels=None):
            logits = self.head((pixel_values - 0.5 * pixel_values.mean(0)).flatten(1))
            return {"logits": logits, "loss": None if labels is None else functional.cross_entropy(logits, labels)}

    return seeded(lambda _: Mixes(), None), {"dataset": image_rows()}


@fault("train_mode", checks="full")
def fails_in_train_mode_only(folder):
    model = tiny_bert()
    model.dropout = nn.Dropout(1.0)

    class Explodes(nn.Module):
        def forward(self, hidden):
            return hidden / (0.0 if self.training else 1.0)

    model.dropout = Explodes()
    return model, {"dataset": text_rows()}


# --- the loss


class OtherClass(hf.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, 1 - labels)
        return (loss, outputs) if return_outputs else loss


class SoftmaxTwice(hf.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits.softmax(-1), labels)
        return (loss, outputs) if return_outputs else loss


def large_head(model):
    """Logits far enough from zero that losses differ."""
    model.classifier.weight.data.normal_(std=3.0, generator=torch.Generator().manual_seed(1))
    return model


@fault("loss")
def compute_loss_flips_the_labels(folder):
    return trainer_of(large_head(tiny_bert()), folder, cls=OtherClass), {}


@fault("loss")
def compute_loss_softmaxes_first(folder):
    return trainer_of(large_head(tiny_bert()), folder, cls=SoftmaxTwice), {}


@fault("loss")
def model_returns_no_loss_to_the_trainer(folder):
    return trainer_of(pooled(output="tensor"), folder), {}


@fault("loss")
def mean_squared_error_on_one_logit_of_a_binary_task(folder):
    rows = [{**row, "labels": float(row["labels"])} for row in ragged_rows()]
    return trainer_of(tiny_bert(num_labels=1), folder, rows=rows), {}


@fault("loss")
def mean_squared_error_under_binary_metrics(folder):
    rows = [{**row, "labels": 1.0} for row in ragged_rows()]
    model = tiny_bert(num_labels=1)
    return trainer_of(model, folder, rows=rows, compute_metrics=BinaryClassificationMetrics()), {}


@fault("loss")
def loss_broadcasts(folder):
    def loss(logits, labels):
        return functional.mse_loss(logits, labels)  # (n, 1) and (n,)

    return pooled(columns=1, loss=loss), {"dataset": [{**r, "labels": 0.3 * i} for i, r in enumerate(text_rows())]}


@fault("loss_scale")
def gradients_grow_with_accumulation(folder):
    args = arguments(folder, gradient_accumulation_steps=4)
    return trainer_of(tiny_bert(), folder, args=args), {}


# --- gradients, the plan, the optimizer


class CutsHead(BackboneWithHead):
    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.backbone(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        logits = self.out(hidden.detach())
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


@fault("gradients", backward=True)
def head_detached_from_the_backbone(folder):
    return seeded(lambda _: CutsHead(tiny_bert().bert), None), {"dataset": text_rows()}


@fault("gradients", backward=True)
def loss_of_detached_logits(folder):
    def loss(logits, labels):
        return functional.cross_entropy(logits.detach(), labels)

    return pooled(loss=loss), {"dataset": text_rows()}


class NoGradLayer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        with torch.no_grad():
            return self.inner(*args, **kwargs)


@fault("gradients", backward=True)
def a_layer_under_no_grad(folder):
    model = tiny_bert()
    model.bert.encoder.layer[1] = NoGradLayer(model.bert.encoder.layer[1])
    return trainer_of(model, folder), {}


@fault("gradients", backward=True)
def reentrant_checkpointing_behind_frozen_embeddings(folder):
    model = tiny_vit()
    checkpoint_activations(model)
    model.vit.embeddings.requires_grad_(False)
    for module in model.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return model, {"dataset": image_rows()}


@fault("gradients", backward=True)
def gradient_is_nan(folder):
    class Rooted(Pooled):
        def logits(self, input_ids, attention_mask):
            logits = super().logits(input_ids, attention_mask)
            return logits + (self.head.weight.sum() * 0).abs().sqrt()

    return seeded(lambda _: Rooted(), None), {"dataset": text_rows()}


def freeze_trainer(model, folder, **plan):
    args = FreezeTrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True)
    options = {"eval_dataset": ragged_rows(), "processing_class": word_tokenizer()}
    return FreezeTrainer(model, args, freeze_plan=FreezePlan(**plan), **options)


@fault("plan")
def frozen_parameter_with_gradient(folder):
    trainer = freeze_trainer(tiny_bert(), folder, trainable="head")
    trainer.model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    return trainer, {}


@fault("plan")
def trainable_parameter_frozen_behind_the_plan(folder):
    trainer = freeze_trainer(tiny_bert(), folder, trainable=["head", "layers[-1]"])
    trainer.model.classifier.requires_grad_(False)
    return trainer, {}


@fault("plan")
def stale_gradient_on_a_frozen_parameter(folder):
    model = tiny_bert()
    model.bert.requires_grad_(False)
    model.bert.pooler.dense.weight.grad = torch.ones_like(model.bert.pooler.dense.weight)
    return model, {"dataset": text_rows()}


@fault("plan")
def requires_grad_set_on_a_module(folder):
    model = tiny_bert()
    model.bert.requires_grad = False
    return model, {"dataset": text_rows()}


@fault("plan", with_backward={"gradients"})
def nothing_trains(folder):
    return trainer_of(tiny_bert().requires_grad_(False), folder), {}


@fault("optimizer")
def optimizer_without_the_head(folder):
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.bert.parameters(), lr=1e-3)
    return trainer_of(model, folder, optimizers=(optimizer, None)), {}


class ForgetsHead(hf.Trainer):
    def create_optimizer(self, *args):
        self.optimizer = torch.optim.SGD(self.model.bert.parameters(), lr=1e-3)
        return self.optimizer


@fault("optimizer")
def create_optimizer_without_the_head(folder):
    return trainer_of(tiny_bert(), folder, cls=ForgetsHead), {}


# --- what breaks outright


@fault("forward")
def forward_raises(folder):
    model = tiny_custom()
    model.out = nn.Linear(17, 2)
    return model, {"dataset": text_rows()}


@fault("collator")
def collator_raises(folder):
    return tiny_bert(), {"dataset": ragged_rows(), "collator": lambda rows: {"input_ids": torch.tensor(rows)}}
