"""Short runs with and without stored features, over models and data that are tiny and hard: dynamic lengths, dropout."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments
from hf_freeze.features.cache import FeatureCache
from tests import models
from tests.models import SIZES, SPECIAL, seeded

ROWS = 26


def texts(count=ROWS, *, seed=0, least=2, most=14):
    """Rows of different lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(least, most + 1, count)
    rows = [
        {"input_ids": random.integers(5, 60, length).tolist(), "label": index % 2}
        for index, length in enumerate(lengths)
    ]
    for row in rows:
        row["input_ids"][0] = 3 + row["label"]
    return rows


def pairs(count=ROWS, *, seed=0):
    """Sequences to translate, both sides of different lengths."""
    random = np.random.default_rng(seed)
    return [
        {"input_ids": random.integers(5, 60, a).tolist(), "labels": random.integers(5, 60, b).tolist()}
        for a, b in zip(random.integers(2, 14, count), random.integers(2, 9, count), strict=True)
    ]


def images(count=ROWS, *, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return [
        {"pixel_values": torch.randn(3, size, size, generator=generator), "labels": index % 2} for index in range(count)
    ]


def waves(count=ROWS, *, seed=0, length=1600):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_values": torch.randn(length, generator=generator), "labels": index % 2} for index in range(count)]


@dataclass(frozen=True)
class Pad:
    """Pad to the longest row of the batch."""

    side: str = "right"
    end: int | None = None
    labels: str = "label"

    def __call__(self, rows):
        ids = [row["input_ids"] + ([] if self.end is None else [self.end]) for row in rows]
        batch = {"input_ids": self._padded(ids, 0), "attention_mask": self._padded([[1] * len(row) for row in ids], 0)}
        if self.labels == "labels":
            return batch | {"labels": self._padded([row["labels"] for row in rows], -100)}
        if self.labels == "tokens":
            return batch | {"labels": self._padded(ids, -100)}
        return batch | {"labels": torch.tensor([row["label"] for row in rows])}

    def _padded(self, rows, fill):
        longest = max(map(len, rows))
        padding = [[fill] * (longest - len(row)) for row in rows]
        left = self.side == "left"
        return torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)])


@dataclass(frozen=True)
class Case:
    """A model, its data, and plans: probe, last layer, last half."""

    build: object
    rows: object = texts
    collate: object = field(default_factory=Pad)
    probe: object = "head"
    last: object = ("head", "layers[-1]")
    half: object = ("head", "layers[-2:]")
    metrics: bool = True  # without, evaluation returns the loss alone, and not what an encoder computes for padding


def _built(build, config, **values):
    return partial(seeded, build, config(**values))


def _lora(layers):
    model = models.tiny_bert(layers=4)
    config = LoraConfig(
        r=2, lora_dropout=0.1, layers_to_transform=layers, target_modules=["query"], task_type=TaskType.SEQ_CLS
    )
    torch.manual_seed(0)
    return get_peft_model(model, config)


class MeanPooled(nn.Module):
    """A bare backbone, read at every position that is no padding; returns a tuple."""

    def __init__(self):
        super().__init__()
        self.backbone = models.tiny_bert(layers=4).bert
        torch.manual_seed(1)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.backbone(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return (nn.functional.cross_entropy(logits, labels), logits)


class Towers(nn.Module):
    """Two texts of different lengths through one backbone, in two calls."""

    def __init__(self):
        super().__init__()
        self.backbone = models.tiny_bert(layers=4).bert
        torch.manual_seed(1)
        self.head = nn.Linear(32, 2)

    def forward(self, a_input_ids, a_attention_mask, b_input_ids, b_attention_mask, labels=None):
        one = self.backbone(a_input_ids, attention_mask=a_attention_mask).last_hidden_state[:, 0]
        other = self.backbone(b_input_ids, attention_mask=b_attention_mask).last_hidden_state
        mask = b_attention_mask[..., None].to(other.dtype)
        logits = self.head(torch.cat([one, (other * mask).sum(1) / mask.sum(1)], dim=1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def two_texts(count=ROWS, *, seed=0):
    rows = pairs(count, seed=seed)
    return [
        {"a_input_ids": row["input_ids"], "b_input_ids": row["labels"], "labels": len(row["labels"]) % 2}
        for row in rows
    ]


def pad_towers(rows):
    parts = {"labels": torch.tensor([row["labels"] for row in rows])}
    for which in ("a", "b"):
        batch = Pad()([{"input_ids": row[f"{which}_input_ids"], "label": 0} for row in rows])
        parts |= {f"{which}_{name}": value for name, value in batch.items() if name != "labels"}
    return parts


def texts_with_images(count=ROWS, *, seed=0):
    return [
        {**text, **image}
        for text, image in zip(texts(count, seed=seed), images(count, seed=seed, size=16), strict=True)
    ]


def pad_with_images(rows):
    batch = Pad()(rows)
    del batch["labels"]
    return batch | {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "return_loss": True}


VISION = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
DECODER = {**SIZES, **SPECIAL, "num_key_value_heads": 2}
BERT_LIKE = {**SIZES, "num_hidden_layers": 4}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1}
STAGES = {"depths": [2, 2], "num_heads": [2, 2], "embed_dim": 8, "image_size": 32, "patch_size": 4, "window_size": 4}
WAVES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.0,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}

CASES = {
    "bert": Case(partial(models.tiny_bert, layers=4)),
    "roberta": Case(partial(models.tiny_roberta, layers=4)),
    "distilbert": Case(partial(models.tiny_distilbert, layers=4)),
    "albert": Case(
        _built(hf.AlbertForSequenceClassification, hf.AlbertConfig, **SIZES, embedding_size=8, num_hidden_layers=4),
        last=("head", "albert.pooler"),
        half=("head", "albert.encoder.embedding_hidden_mapping_in"),
    ),
    "electra": Case(_built(hf.ElectraForSequenceClassification, hf.ElectraConfig, **BERT_LIKE, embedding_size=8)),
    "deberta": Case(
        _built(
            hf.DebertaV2ForSequenceClassification,
            hf.DebertaV2Config,
            **BERT_LIKE,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        )
    ),
    "modernbert": Case(
        _built(
            hf.ModernBertForSequenceClassification,
            hf.ModernBertConfig,
            **BERT_LIKE,
            **SPECIAL,
            cls_token_id=1,
            sep_token_id=2,
        )
    ),
    "xlnet": Case(
        _built(
            hf.XLNetForSequenceClassification,
            hf.XLNetConfig,
            vocab_size=64,
            d_model=16,
            n_layer=4,
            n_head=2,
            d_inner=32,
            dropout=0.0,
        ),
        collate=Pad("left"),
    ),
    "llama": Case(partial(models.tiny_llama, layers=4)),
    "llama-left": Case(partial(models.tiny_llama, layers=4), collate=Pad("left")),
    "qwen3": Case(
        _built(hf.Qwen3ForSequenceClassification, hf.Qwen3Config, **DECODER, head_dim=8, num_hidden_layers=4),
        collate=Pad("left"),
    ),
    "gemma": Case(
        _built(hf.GemmaForSequenceClassification, hf.GemmaConfig, **DECODER, head_dim=8, num_hidden_layers=4)
    ),
    "mixtral": Case(
        _built(
            hf.MixtralForSequenceClassification, hf.MixtralConfig, **DECODER, num_hidden_layers=4, num_local_experts=2
        )
    ),
    "gpt2": Case(partial(models.tiny_gpt2, layers=4, embd_pdrop=0.0)),
    "gpt2-lm": Case(
        partial(models.tiny_gpt2_lm, layers=4, embd_pdrop=0.0),
        collate=Pad(labels="tokens"),
        probe="transformer.ln_f",
        last="layers[-1]",
        half="layers[-2:]",
        metrics=False,
    ),
    "t5": Case(
        partial(models.tiny_t5, layers=3, decoder_layers=4, dropout_rate=0.0),
        rows=pairs,
        collate=Pad(labels="labels"),
        probe="decoder.final_layer_norm",
        last="decoder.layers[-1]",
        half="encoder.layers[-1]",
        metrics=False,
    ),
    "t5-classifier": Case(
        _built(
            hf.T5ForSequenceClassification,
            hf.T5Config,
            **T5,
            num_layers=3,
            num_decoder_layers=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        ),
        collate=Pad(end=1),
        last=("head", "decoder.layers[-1]"),
        half=("head", "encoder.layers[-1]"),
        metrics=False,
    ),
    "bart": Case(
        partial(models.tiny_bart, layers=3, decoder_layers=4, dropout=0.0),
        rows=pairs,
        collate=Pad(labels="labels"),
        probe="model.decoder.layers.3.fc2",
        last="decoder.layers[-1]",
        half="encoder.layers[-1]",
        metrics=False,
    ),
    "bart-classifier": Case(
        _built(
            hf.BartForSequenceClassification,
            hf.BartConfig,
            **models.SEQ2SEQ,
            **SPECIAL,
            max_position_embeddings=32,
            encoder_layers=3,
            decoder_layers=4,
            num_labels=2,
            dropout=0.0,
        ),
        collate=Pad(end=2),
        last=("head", "decoder.layers[-1]"),
        half=("head", "encoder.layers[-1]"),
        metrics=False,
    ),
    "vit": Case(partial(models.tiny_vit, layers=4, image_size=32), rows=images, collate=hf.default_data_collator),
    "dinov2": Case(
        _built(hf.Dinov2ForImageClassification, hf.Dinov2Config, **VISION, num_hidden_layers=4, num_labels=2),
        rows=images,
        collate=hf.default_data_collator,
    ),
    "swin": Case(
        _built(hf.SwinForImageClassification, hf.SwinConfig, **STAGES, num_labels=2),
        rows=images,
        collate=hf.default_data_collator,
    ),
    "convnext": Case(
        _built(
            hf.ConvNextForImageClassification,
            hf.ConvNextConfig,
            depths=[2, 2],
            hidden_sizes=[8, 16],
            num_stages=2,
            num_labels=2,
        ),
        rows=images,
        collate=hf.default_data_collator,
    ),
    "resnet": Case(partial(models.tiny_resnet, depths=(2, 2)), rows=images, collate=hf.default_data_collator),
    "wav2vec2": Case(
        _built(hf.Wav2Vec2ForSequenceClassification, hf.Wav2Vec2Config, **WAVES, num_labels=2, classifier_proj_size=8),
        rows=waves,
        collate=hf.default_data_collator,
    ),
    "lora": Case(
        partial(_lora, [3]), probe=("head",), last=("adapters", "head"), half=("adapters", "head", "norms & layers[-1]")
    ),
    "custom": Case(partial(models.tiny_custom, layers=4)),
    "mean-pooled": Case(MeanPooled),
    "towers": Case(Towers, rows=two_texts, collate=pad_towers),
    "clip": Case(
        partial(models.tiny_clip, text_layers=3, vision_layers=3),
        rows=texts_with_images,
        collate=pad_with_images,
        probe=("text_projection", "visual_projection", "logit_scale"),
        last=("logit_scale", "text_model.layers[-1]", "visual_projection"),
        half=("logit_scale", "vision_model.layers[-1]"),
        metrics=False,
    ),
}


def run(case: Case, folder: Path, *, trainable=None, stages=(), cache=True, rows=None, held_out=None, **given):
    """Train three epochs, evaluating after each; return the trainer."""
    arguments = {
        "use_cpu": True,
        "report_to": "none",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 6,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "optim": "sgd",  # AdamW makes a whole step of the rounding of a gradient that should be 0
        "dataloader_pin_memory": False,
        "cache_frozen": cache,
        "cache_frozen_always": True,
        "seed": 3,
    }
    plan = FreezePlan(trainable=list(trainable) if isinstance(trainable, tuple) else trainable, stages=list(stages))
    options = {key: given.pop(key) for key in ("trainer", "compute_metrics", "model") if key in given}
    trainer = options.pop("trainer", FreezeTrainer)(
        options.pop("model", None) or case.build(),
        FreezeTrainingArguments(str(folder), **{**arguments, **given}),
        train_dataset=case.rows(seed=0) if rows is None else rows,
        eval_dataset=case.rows(11, seed=1) if held_out is None else held_out,
        data_collator=case.collate,
        freeze_plan=plan,
        compute_metrics=options.pop("compute_metrics", summed if case.metrics else None),
    )
    trainer.train()
    return trainer


def summed(prediction):
    """Numbers that show any change of what evaluation returns."""
    parts = prediction.predictions if isinstance(prediction.predictions, tuple) else [prediction.predictions]
    return {f"part{index}": float(np.abs(part).sum()) for index, part in enumerate(parts)}


def logged(trainer):
    """What the runs logged, without times."""
    times = ("runtime", "per_second", "flos")
    return [
        {name: value for name, value in entry.items() if not any(time in name for time in times)}
        for entry in trainer.state.log_history
    ]


@contextmanager
def kept_sets():
    """Note, stage by stage, of which sets features are in use."""
    kept = []
    enter = FeatureCache.enter

    def noting(self, *given):
        enter(self, *given)
        kept.append(self.kept)

    FeatureCache.enter = noting
    try:
        yield kept
    finally:
        FeatureCache.enter = enter
