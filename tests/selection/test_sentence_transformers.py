"""Models of sentence-transformers mean what the encoder inside means on its own."""

import pytest
import torch
import transformers as hf
from torch import nn

from hf_freeze import FreezePlan
from hf_freeze.selection.model_map import map_model
from tests.selection.user_modules import bert, with_children

st = pytest.importorskip("sentence_transformers")
models = pytest.importorskip("sentence_transformers.models")
pytestmark = pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")  # BertTokenizer of 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved encoder: sentence-transformers builds from folders alone."""
    path = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(97, 123))]
    (path / "vocab.txt").write_text("\n".join(words))
    hf.BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    bert().save_pretrained(path)
    return str(path)


def transformer(folder):
    return models.Transformer(folder)


def pooled(folder, *after):
    first = transformer(folder)
    return st.SentenceTransformer(modules=[first, models.Pooling(16), *after], device="cpu")


SHAPES = {
    "pooling": pooled,
    "dense": lambda folder: pooled(folder, models.Dense(16, 8)),
    "normalize": lambda folder: pooled(folder, models.Normalize()),
    "dense-and-normalize": lambda folder: pooled(folder, models.Dense(16, 8), models.Normalize()),
    "cnn": lambda folder: st.SentenceTransformer(
        modules=[transformer(folder), models.CNN(16, 8), models.Pooling(24)], device="cpu"
    ),
    "lstm": lambda folder: st.SentenceTransformer(
        modules=[transformer(folder), models.LSTM(16, 8), models.Pooling(16)], device="cpu"
    ),
    "router": lambda folder: st.SentenceTransformer(
        modules=[models.Router.for_query_document([one := transformer(folder)], [one]), models.Pooling(16)],
        device="cpu",
    ),
    "data-parallel": lambda folder: nn.DataParallel(pooled(folder)),
    "lightning": lambda folder: with_children(model=pooled(folder)),
    "in-a-field": lambda folder: with_children(encoder=pooled(folder), classifier=nn.Linear(16, 2)),
}
HEADS = {"dense": 2, "dense-and-normalize": 2, "in-a-field": 2}


def picked(model, selection):
    names = FreezePlan(trainable=selection).resolve(model).ever_trainable
    named = getattr(model, "module", model).named_parameters()
    return {id(parameter) for name, parameter in named if name in names}


@pytest.mark.parametrize("shape", SHAPES)
def test_roles_and_layers_are_those_of_the_bare_encoder(shape, folder):
    model = SHAPES[shape](folder)
    encoder = next(part for part in model.modules() if isinstance(part, hf.BertModel))

    for selection in ("layers[-1]", "embeddings", "norms", "rest"):
        assert picked(model, selection) == picked(encoder, selection), selection
    inside = {id(parameter) for parameter in encoder.parameters()}
    assert picked(model, "all") - inside == (picked(model, "head") if map_model(model).roles["head"] else set())
    if shape in HEADS:
        assert len(picked(model, "head")) == HEADS[shape]


def test_a_cross_encoder_and_a_sparse_one_keep_their_heads(folder, tmp_path):
    hf.BertForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(tmp_path / "cross")
    hf.BertForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "masked")
    for name in ("cross", "masked"):
        hf.BertTokenizer.from_pretrained(folder).save_pretrained(tmp_path / name)
    cross = st.CrossEncoder(str(tmp_path / "cross"), device="cpu")
    assert {name.rpartition("classifier")[2] for name in map_model(cross).roles["head"]} == {".weight", ".bias"}

    sparse = st.SparseEncoder(str(tmp_path / "masked"), device="cpu")
    inside = next(part for part in sparse.modules() if isinstance(part, hf.BertForMaskedLM))
    for selection in ("layers[-1]", "embeddings", "norms", "head"):
        assert picked(sparse, selection) == picked(inside, selection), selection


def test_static_embeddings_are_embeddings(folder):
    tokenizer = hf.BertTokenizerFast.from_pretrained(folder).backend_tokenizer
    model = st.SentenceTransformer(modules=[models.StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    assert map_model(model).roles["embeddings"] == set(map_model(model).parts)
    assert not torch.is_grad_enabled() or len(map_model(model).parts) == 1
