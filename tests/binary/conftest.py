"""A tiny text classifier with its tokenizer, made from a config: no downloads."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "win", "cash", "now", "free", "prize", "see", "you", "at", "home", "mum", "later", "ok"]


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture
def make_model():
    def make(num_labels=2, **config):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = BertConfig(vocab_size=len(WORDS), num_labels=num_labels, initializer_range=0.5, **sizes, **config)
        return BertForSequenceClassification(config).eval()

    return make
