"""Other shapes of sentence-transformers: modules behind the encoder, two encoders, none, a sparse one."""

from tempfile import TemporaryDirectory
from typing import Any

import transformers as hf
from datasets import Dataset

from tests.trainers.kinds import Kind, encoder_modules, of, save, text, tokenizer


def pairs(**columns: Any) -> Dataset:
    return Dataset.from_dict({"a": [text(i) for i in range(32)], "b": [text(i + 1) for i in range(32)], **columns})


def similarity(*modules: Any) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer, losses

    model = SentenceTransformer(modules=[*modules], device="cpu")
    data = pairs(label=[float(i % 2) for i in range(32)])
    return {"model": model, "train_dataset": data, "loss": losses.CosineSimilarityLoss(model)}


def dense() -> dict[str, Any]:
    from sentence_transformers import models as parts

    return similarity(*encoder_modules(), parts.Dense(16, 8), parts.Normalize())


def static() -> dict[str, Any]:
    from sentence_transformers import models as parts

    words = tokenizer().backend_tokenizer
    return similarity(parts.StaticEmbedding(words, embedding_dim=16), parts.Dense(16, 8))


def router() -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer, losses
    from sentence_transformers import models as parts

    queries, documents = [*encoder_modules()], [*encoder_modules()]
    both = parts.Router.for_query_document(query_modules=queries, document_modules=documents)
    model = SentenceTransformer(modules=[both], device="cpu")
    return {"model": model, "train_dataset": pairs(), "loss": losses.MultipleNegativesRankingLoss(model)}


def sparse() -> dict[str, Any]:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder import losses
    from sentence_transformers.sparse_encoder import models as parts

    hf.set_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    with TemporaryDirectory() as folder:
        save(hf.BertForMaskedLM(hf.BertConfig(**shape, num_hidden_layers=4, pad_token_id=0)), folder)
        encoder = parts.MLMTransformer(folder, max_seq_length=16)
    model = SparseEncoder(modules=[encoder, parts.SpladePooling()], device="cpu")
    ranking = losses.SparseMultipleNegativesRankingLoss(model)
    loss = losses.SpladeLoss(model, ranking, document_regularizer_weight=1e-3, query_regularizer_weight=1e-3)
    return {"model": model, "train_dataset": pairs(), "loss": loss}


TRAINER = of("sentence_transformers", "SentenceTransformerTrainer")
NEEDS = {"needs": "sentence_transformers"}
SENTENCE_KINDS = [
    Kind("Dense", TRAINER, dense, **NEEDS),
    Kind("StaticEmbedding", TRAINER, static, last="1", more="embeddings", **NEEDS),
    Kind(
        "Router",
        TRAINER,
        router,
        last="0.sub_modules.query.layers[-1]",
        more="0.sub_modules.document.layers[-1]",
        settings={"router_mapping": {"a": "query", "b": "document"}},
        **NEEDS,
    ),
    Kind("SparseEncoder", of("sentence_transformers", "SparseEncoderTrainer"), sparse, **NEEDS),
]
