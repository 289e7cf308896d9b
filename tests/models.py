"""Tiny models made from configurations, the same weights for the same seed, and a tiny data set to train them on."""

import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


def seeded(build, config, seed: int = 0) -> PreTrainedModel:
    """Build `build(config)` with weights that depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)


def tiny_bert(*, layers: int = 2, num_labels: int = 2, seed: int = 0, **config):
    config = hf.BertConfig(**{**SIZES, "num_hidden_layers": layers, "num_labels": num_labels, **config})
    return seeded(hf.BertForSequenceClassification, config, seed)


def tiny_roberta(*, layers: int = 2, num_labels: int = 2, seed: int = 0, **config):
    config = {**SIZES, **SPECIAL, "num_hidden_layers": layers, "num_labels": num_labels, **config}
    return seeded(hf.RobertaForSequenceClassification, hf.RobertaConfig(**config), seed)


def tiny_distilbert(*, layers: int = 2, num_labels: int = 2, seed: int = 0, **config):
    sizes = {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 32, "n_heads": 2, "max_position_embeddings": 32}
    config = hf.DistilBertConfig(**{**sizes, "n_layers": layers, "num_labels": num_labels, **config})
    return seeded(hf.DistilBertForSequenceClassification, config, seed)


def tiny_llama(*, layers: int = 2, num_labels: int = 2, seed: int = 0, **config):
    sizes = {**SIZES, **SPECIAL, "num_key_value_heads": 2}
    config = hf.LlamaConfig(**{**sizes, "num_hidden_layers": layers, "num_labels": num_labels, **config})
    return seeded(hf.LlamaForSequenceClassification, config, seed)


def tiny_gpt2(*, layers: int = 2, num_labels: int = 2, seed: int = 0, **config):
    sizes = {**SPECIAL, "vocab_size": VOCABULARY, "n_embd": 16, "n_head": 2, "n_positions": 32}
    config = hf.GPT2Config(**{**sizes, "n_layer": layers, "num_labels": num_labels, **config})
    return seeded(hf.GPT2ForSequenceClassification, config, seed)


def tiny_gpt2_lm(*, layers: int = 2, seed: int = 0, **config):
    """Its `lm_head.weight` is tied to `transformer.wte.weight`."""
    sizes = {**SPECIAL, "vocab_size": VOCABULARY, "n_embd": 16, "n_head": 2, "n_positions": 32}
    return seeded(hf.GPT2LMHeadModel, hf.GPT2Config(**{**sizes, "n_layer": layers, **config}), seed)


def tiny_vit(*, layers: int = 2, num_labels: int = 2, seed: int = 0, **config):
    sizes = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 8,
    }
    config = hf.ViTConfig(**{**sizes, "num_hidden_layers": layers, "num_labels": num_labels, **config})
    return seeded(hf.ViTForImageClassification, config, seed)


def tiny_resnet(*, depths: tuple[int, ...] = (1, 2), num_labels: int = 2, seed: int = 0, **config):
    """It has BatchNorm."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "layer_type": "basic"}
    config = hf.ResNetConfig(**{**sizes, "depths": list(depths), "num_labels": num_labels, **config})
    return seeded(hf.ResNetForImageClassification, config, seed)


def tiny_t5(*, layers: int = 2, decoder_layers: int = 3, seed: int = 0, **config):
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = {**sizes, **special, "num_layers": layers, "num_decoder_layers": decoder_layers, **config}
    return seeded(hf.T5ForConditionalGeneration, hf.T5Config(**config), seed)


def tiny_bart(*, layers: int = 2, decoder_layers: int = 3, seed: int = 0, **config):
    sizes = {**SEQ2SEQ, **SPECIAL, "decoder_start_token_id": 2, "max_position_embeddings": 32}
    config = {**sizes, "encoder_layers": layers, "decoder_layers": decoder_layers, **config}
    return seeded(hf.BartForConditionalGeneration, hf.BartConfig(**config), seed)


def tiny_clip(*, text_layers: int = 2, vision_layers: int = 3, seed: int = 0):
    text = {**SIZES, **SPECIAL, "num_hidden_layers": text_layers, "projection_dim": 8}
    vision = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 8,
        "num_hidden_layers": vision_layers,
        "projection_dim": 8,
    }
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return seeded(hf.CLIPModel, config, seed)


class BackboneWithHead(nn.Module):
    """What users write: a Hugging Face backbone in a field, a head of one's own, and a loss when there are labels."""

    def __init__(self, backbone: PreTrainedModel, num_labels: int = 2) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(backbone.config.hidden_size, num_labels)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.backbone(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        logits = self.out(self.dropout(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def tiny_custom(*, layers: int = 2, num_labels: int = 2, seed: int = 0) -> BackboneWithHead:
    def build(config):
        return BackboneWithHead(hf.BertModel(config), num_labels)

    return seeded(build, hf.BertConfig(**{**SIZES, "num_hidden_layers": layers}), seed)


def text_rows(count: int = 16, *, length: int = 8, num_labels: int = 2, seed: int = 0) -> list[dict]:
    """Rows for text classification, padded to one length; the first token says what the label is."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        label = index % num_labels
        real = int(torch.randint(length // 2, length + 1, (), generator=generator))
        tokens = torch.randint(3 + num_labels, VOCABULARY, (real,), generator=generator).tolist()
        tokens[0] = 3 + label
        padding = [0] * (length - real)
        mask = [1] * real + padding
        rows.append({"input_ids": tokens + padding, "attention_mask": mask, "labels": label})
    return rows


def text_batch(count: int = 4, **kwargs) -> dict[str, torch.Tensor]:
    """Return the same rows as one batch of tensors."""
    rows = text_rows(count, **kwargs)
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def image_rows(count: int = 8, *, size: int = 16, num_labels: int = 2, seed: int = 0) -> list[dict]:
    """Rows for image classification: random pixels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"pixel_values": torch.randn(3, size, size, generator=generator), "labels": index % num_labels}
        for index in range(count)
    ]
