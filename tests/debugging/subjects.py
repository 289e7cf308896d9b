"""What the tests of debug_sample look at: a tokenizer of whole words, models that users write, Trainers around them."""

import torch
import transformers as hf
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional

from tests.models import SIZES, VOCABULARY, seeded, text_rows, tiny_bert
from tests.quiet import quiet_arguments

WORDS = [f"w{i}" for i in range(5, VOCABULARY)]


def word_tokenizer(*, size: int = VOCABULARY, **options):
    """`w5 w6` are the ids 5 and 6, between «[CLS]» (2) and «[SEP]» (3); «[PAD]» is 0, «[UNK]» 1."""
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    words |= {f"w{i}": i for i in range(5, size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    options = {"model_max_length": 32, "model_input_names": ["input_ids", "attention_mask"], **special, **options}
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def ragged_rows(count: int = 16, *, num_labels: int = 2) -> list[dict]:
    """Rows of different lengths, for a collator that pads."""
    rows = []
    for row in text_rows(count, num_labels=num_labels):
        real = sum(row["attention_mask"])
        rows.append({"input_ids": row["input_ids"][:real], "attention_mask": [1] * real, "labels": row["labels"]})
    return rows


def named_rows(names: list[str], rows: list[dict] | None = None) -> Dataset:
    """The rows as a data set whose labels have names."""
    rows = rows or ragged_rows()
    ids = Sequence(Value("int64"))
    features = Features({"input_ids": ids, "attention_mask": ids, "labels": ClassLabel(names=names)})
    return Dataset.from_list(rows, features=features)


def arguments(folder, **options):
    return quiet_arguments(folder, cls=hf.TrainingArguments, **options)


def trainer_of(model, folder, *, cls=hf.Trainer, rows=None, tokenizer="words", args=None, **options):
    options = {"eval_dataset": ragged_rows() if rows is None else rows, **options}
    if tokenizer is not None:
        options["processing_class"] = word_tokenizer() if tokenizer == "words" else tokenizer
    return cls(model, arguments(folder) if args is None else args, **options)


class Pooled(nn.Module):
    """A classifier without transformers: embeddings, a masked mean, a head. `output` says what forward returns."""

    def __init__(self, *, columns: int = 2, output: str = "dict", masked: bool = True, loss=None) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(16, columns)
        self.output, self.masked = output, masked
        self.loss = loss or (functional.cross_entropy if columns > 1 else self.binary)

    @staticmethod
    def binary(logits, labels):
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())

    def logits(self, input_ids, attention_mask):
        weight = torch.ones_like(input_ids) if attention_mask is None or not self.masked else attention_mask
        hidden = (self.body(self.embed(input_ids)) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        return self.head(hidden)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.logits(input_ids, attention_mask)
        loss = None if labels is None else self.loss(logits, labels)
        if self.output == "tensor":
            return logits
        if self.output == "tuple":
            return (logits,) if loss is None else (loss, logits)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def pooled(seed: int = 0, **options) -> Pooled:
    return seeded(lambda _: Pooled(**options), None, seed)


def tiny_wav2vec2(**options):
    sizes = {**SIZES, "num_hidden_layers": 2, "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 4)}
    extra = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    config = hf.Wav2Vec2Config(**{**sizes, **extra, "num_feat_extract_layers": 2, "num_labels": 2, **options})
    return seeded(hf.Wav2Vec2ForSequenceClassification, config)


def audio_rows(count: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_values": torch.randn(800, generator=generator), "labels": i % 2} for i in range(count)]


def token_rows(count: int = 8) -> list[dict]:
    """Rows for language models: every token is a label, padding is not."""
    return [
        {
            "input_ids": row["input_ids"],
            "attention_mask": row["attention_mask"],
            "labels": [i if m else -100 for i, m in zip(row["input_ids"], row["attention_mask"], strict=True)],
        }
        for row in text_rows(count)
    ]


def tiny_lora(build=tiny_bert, **options):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        build(), LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], **options})
    )


def checkpoint_activations(model, *, reentrant=True):
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
