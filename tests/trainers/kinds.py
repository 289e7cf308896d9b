"""Trainer classes of several libraries, each with the smallest model and data that it trains on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from tests.models import tiny_bert

WORDS = [f"w{index}" for index in range(60)]
LLAMA = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "pad_token_id": 0}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
ROWS = [{"input_ids": [5 + i % 7, 6, 7, 8 + i % 5], "attention_mask": [1] * 4, "labels": i % 2} for i in range(32)]


@dataclass
class Kind:
    """`build` returns the arguments of the constructor beside `args`; `last` picks the last block, `more` one below."""

    name: str
    trainer: Callable[[], type]
    build: Callable[[], dict[str, Any]]
    last: str = "layers[-1]"
    more: str = "layers[-2]"
    settings: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    needs: str = "transformers"

    @property
    def param(self) -> Any:
        missing = find_spec(self.needs) is None
        return pytest.param(self, id=self.name, marks=[pytest.mark.skipif(missing, reason=f"needs {self.needs}")])


def tokenizer() -> hf.PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    made = hf.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    made.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return made


def save(model: hf.PreTrainedModel, folder: str) -> None:
    """Write what `from_pretrained` reads, on every process: `save_pretrained` does on the main one only."""
    model.config.architectures = [type(model).__name__]
    model.config.to_json_file(f"{folder}/config.json")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # tied ones would share memory
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    tokenizer().save_pretrained(folder)


def text(seed: int, words: int = 8) -> str:
    return " ".join(WORDS[(seed * step) % 60] for step in range(1, words + 1))


def llama(kind: str = "LlamaForCausalLM", **config: Any) -> nn.Module:
    hf.set_seed(0)
    return getattr(hf, kind)(hf.LlamaConfig(**LLAMA, **HEADS, **config))


def sequence_to_sequence() -> dict[str, Any]:
    hf.set_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 4, "num_heads": 2, "vocab_size": 64}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**shape, decoder_start_token_id=0, dropout_rate=0.1))
    rows = [{"input_ids": [5 + i % 7, 6, 7, 8], "labels": [5 + i % 3, 6, 1]} for i in range(32)]
    return {"model": model, "train_dataset": rows}


def supervised() -> dict[str, Any]:
    data = Dataset.from_dict({"text": [text(i, 5 + i % 4) for i in range(32)]})
    return {"model": llama(), "train_dataset": data, "processing_class": tokenizer()}


def reward() -> dict[str, Any]:
    chosen, rejected = ([text(i + shift) for i in range(32)] for shift in (0, 7))
    data = Dataset.from_dict({"chosen": chosen, "rejected": rejected})
    model = llama("LlamaForSequenceClassification", num_labels=1)
    return {"model": model, "train_dataset": data, "processing_class": tokenizer()}


def preference() -> dict[str, Any]:
    columns = {name: [text(i + shift, 4) for i in range(32)] for name, shift in PREFERENCE.items()}
    # Without ref_model=, TRL loads the reference by the name in the model's configuration.
    return {
        "model": llama(),
        "ref_model": llama(),
        "train_dataset": Dataset.from_dict(columns),
        "processing_class": tokenizer(),
    }


PREFERENCE = {"prompt": 0, "chosen": 3, "rejected": 7}


def desired() -> dict[str, Any]:
    columns = {"prompt": [text(i, 4) for i in range(32)], "completion": [text(i + 3, 4) for i in range(32)]}
    data = Dataset.from_dict({**columns, "label": [i % 2 == 0 for i in range(32)]})
    return {"model": llama(), "ref_model": llama(), "train_dataset": data, "processing_class": tokenizer()}


def rewarded() -> dict[str, Any]:
    """The model is given by its path: RLOO loads the reference by the name in the model's configuration."""
    data = Dataset.from_dict({"prompt": [text(i, 4) for i in range(32)]})
    return {
        "model": saved_llama().name,
        "reward_funcs": variety,
        "train_dataset": data,
        "processing_class": tokenizer(),
    }


@cache
def saved_llama() -> TemporaryDirectory[str]:
    folder: TemporaryDirectory[str] = TemporaryDirectory()
    save(llama(), folder.name)
    return folder


def variety(completions: list[str], **columns: Any) -> list[float]:
    """Reward each completion by how many letters it has, so that two of a prompt seldom get the same."""
    return [float(len(completion) % 7) for completion in completions]


def sentence_encoder() -> dict[str, Any]:
    from sentence_transformers import losses

    model = sentence_transformer()
    columns = {"a": [text(i) for i in range(32)], "b": [text(i + 1) for i in range(32)]}
    data = Dataset.from_dict({**columns, "label": [i % 2 for i in range(32)]})
    loss = losses.SoftmaxLoss(model, 16, 2)
    return {"model": model, "train_dataset": data, "loss": loss}


def sentence_transformer() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(modules=list(encoder_modules()), device="cpu")


def encoder_modules() -> Any:
    from sentence_transformers import models as parts

    hf.set_seed(0)
    config = hf.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    with TemporaryDirectory() as folder:
        save(hf.BertModel(config), folder)
        encoder = parts.Transformer(folder, max_seq_length=16)
    return encoder, parts.Pooling(16)


def cross_encoder() -> dict[str, Any]:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    with TemporaryDirectory() as folder:
        save(tiny_bert(layers=4, num_labels=1), folder)
        model = CrossEncoder(folder, num_labels=1, device="cpu", max_length=16)
    columns = {"a": [text(i) for i in range(32)], "b": [text(i + 1) for i in range(32)]}
    data = Dataset.from_dict({**columns, "label": [float(i % 2) for i in range(32)]})
    return {"model": model, "train_dataset": data, "loss": BinaryCrossEntropyLoss(model)}


class TeacherTrainer(hf.Trainer):
    """Distillation as people write it: the second parameter is not `args`, and there is a loss of its own."""

    def __init__(self, model=None, teacher=None, args=None, **kwargs):
        self.teacher = teacher
        super().__init__(model=model, args=args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        with torch.no_grad():
            wanted = self.teacher(**inputs).logits
        loss = outputs.loss + nn.functional.mse_loss(outputs.logits, wanted)
        return (loss, outputs) if return_outputs else loss


def distillation() -> dict[str, Any]:
    return {"model": tiny_bert(layers=4), "teacher": tiny_bert(layers=4, seed=1).eval(), "train_dataset": ROWS}


def of(module: str, name: str) -> Callable[[], type]:
    from importlib import import_module

    return lambda: getattr(import_module(module), name)


SHORT = {"bf16": False, "max_length": 16}
GENERATED = {"bf16": False, "num_generations": 2, "max_completion_length": 6}
LAST_OF_T5 = {"last": "decoder.layers[-1]", "more": "decoder.layers[-2]"}
TRL = {"lora": True, "needs": "trl"}
KINDS = [
    Kind("Trainer", lambda: hf.Trainer, lambda: {"model": tiny_bert(layers=4), "train_dataset": ROWS}),
    Kind("Seq2Seq", lambda: hf.Seq2SeqTrainer, sequence_to_sequence, **LAST_OF_T5),
    Kind("own", lambda: TeacherTrainer, distillation),
    Kind("SFT", of("trl", "SFTTrainer"), supervised, settings=SHORT, **TRL),
    Kind("Reward", of("trl", "RewardTrainer"), reward, settings=SHORT, **TRL),
    Kind("DPO", of("trl", "DPOTrainer"), preference, settings=SHORT, **TRL),
    Kind("KTO", of("trl", "KTOTrainer"), desired, settings=SHORT, **TRL),
    Kind("GRPO", of("trl", "GRPOTrainer"), rewarded, settings=GENERATED, **TRL),
    Kind("RLOO", of("trl", "RLOOTrainer"), rewarded, settings=GENERATED, **TRL),
    Kind(
        "SentenceTransformer",
        of("sentence_transformers", "SentenceTransformerTrainer"),
        sentence_encoder,
        needs="sentence_transformers",
    ),
    Kind(
        "CrossEncoder", of("sentence_transformers", "CrossEncoderTrainer"), cross_encoder, needs="sentence_transformers"
    ),
]
