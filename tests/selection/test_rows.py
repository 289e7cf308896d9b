"""Rows of a matrix as a selection: what is meant, what is refused, and how they go with the rest of the language."""

import pytest
import torch
import transformers as hf
from torch import nn

from hf_freeze import FreezePlan, SelectionError, Stage, UnsupportedSetupError
from hf_freeze.selection.cuts import cut_at
from hf_freeze.selection.language import evaluate
from hf_freeze.selection.model_map import map_model
from tests.models import SIZES, seeded, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tiny_vit

WORDS = "bert.embeddings.word_embeddings.weight"


class Tables(nn.Module):
    """A model of one's own, with a second table, a vector, a convolution and a head."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 4, **options), nn.Embedding(8, 4)
        self.scale, self.mix, self.out = nn.Parameter(torch.ones(4)), nn.Conv1d(4, 4, 3), nn.Linear(4, 20)


def picked(selection, model=None):
    words = cut_at(map_model(model or tiny_bert()), [selection])
    return set(evaluate(selection, words).names)


def masked_bert(**config):
    return seeded(hf.BertForMaskedLM, hf.BertConfig(**SIZES, num_hidden_layers=2, **config))


@pytest.mark.parametrize(
    ("selection", "rows"),
    [
        ("embeddings[-3:]", {f"{WORDS}[61:64]"}),
        ("embeddings[61:64]", {f"{WORDS}[61:64]"}),
        ("bert.embeddings.word_embeddings[61:]", {f"{WORDS}[61:64]"}),
        ("embeddings.word_embeddings.weight[-1]", {f"{WORDS}[63:64]"}),
        ("*.word_embeddings[:2]", {f"{WORDS}[0:2]"}),
        ('"bert.embeddings.word_embeddings"[5, -2:]', {f"{WORDS}[5:6]", f"{WORDS}[62:64]"}),
        ("embeddings[3,1:4]", {f"{WORDS}[1:4]"}),
        ("embeddings[:]", {WORDS}),
        (["embeddings[-4:]", "!embeddings[-2]"], {f"{WORDS}[60:62]", f"{WORDS}[63:64]"}),
        ("bert.embeddings.word_embeddings & embeddings[-3:]", {f"{WORDS}[61:64]"}),
        ("embeddings[:10] & embeddings[8:12]", {f"{WORDS}[8:10]"}),
        ("classifier[0]", {"classifier.weight[0:1]"}),
        ("head[1:]", {"classifier.weight[1:2]"}),
    ],
)
def test_rows_are_members_like_tensors(selection, rows):
    assert picked(selection) == rows


def test_all_but_some_rows_are_the_other_rows():
    plan = FreezePlan(freeze=["all", "!embeddings[-3:]"]).resolve(tiny_bert())
    assert plan.stages[0] == {f"{WORDS}[61:64]"}
    assert plan.size_of(plan.stages[0]) == 3 * 16
    assert "embeddings (bert.embeddings.word_embeddings.weight[61:64])" in str(plan)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_t5, masked_bert])
def test_embeddings_mean_the_matrix_with_a_row_per_token(build):
    model = build()
    [name] = picked("embeddings[-2:]", model)
    assert name.endswith("[62:64]")
    weights = dict(model.named_parameters(remove_duplicate=False))
    assert weights[name.removesuffix("[62:64]")] is model.get_input_embeddings().weight


def test_rows_of_a_tied_matrix_have_every_alias():
    plan = FreezePlan(trainable="cls.predictions.decoder[-3:]").resolve(masked_bert())
    assert plan.names[0] == {"cls.predictions.decoder.weight[61:64]", f"{WORDS}[61:64]"}


def test_layers_stay_layers():
    assert picked("layers[1]") == {name for name, _ in tiny_bert().named_parameters() if ".layer.1." in name}


def test_two_spellings_of_the_same_rows_are_one_plan():
    one = FreezePlan(trainable=["head", "embeddings[-3:]"]).resolve(tiny_bert())
    two = FreezePlan(trainable=["head", "embeddings[61:63]", "embeddings[63]"]).resolve(tiny_bert())
    assert one.fingerprint == two.fingerprint
    other = FreezePlan(trainable=["head", "embeddings[-4:]"]).resolve(tiny_bert())
    assert one.fingerprint != other.fingerprint


def test_rows_stand_in_stages():
    stages = [Stage(step=1, unfreeze="embeddings[-3:]"), Stage(step=2, freeze="embeddings[-1]", unfreeze="norms")]
    plan = FreezePlan(trainable="head", stages=stages).resolve(tiny_bert())
    trains = [{name for name in names if name.startswith(WORDS)} for names in plan.stages]
    assert trains == [set(), {f"{WORDS}[61:63]", f"{WORDS}[63:64]"}, {f"{WORDS}[61:63]"}]


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ("embeddings[64:]", "past the end: .* has 64 rows, 0 to 63. .*resize_token_embeddings"),
        ("embeddings[61:65]", "past the end"),
        ("embeddings[64]", "past the end"),
        ("embeddings[-65]", "past the end"),
        ("embeddings[-99:]", "past the end"),
        ("embeddings[5:5]", "empty slice"),
        ("embeddings[9:3]", "empty slice"),
        ("embeddings[::2]", "step of 2"),
        ("embeddings[::-1]", "step of -1"),
        ("embeddings[x]", "'x' is not an index or a slice"),
        ("embeddings[]", "'' is not an index or a slice"),
        ("bert.embeddings.LayerNorm.weight[1:]", r"only a matrix has rows .* shape \(16,\)"),
        ("norms[0]", "only a matrix has rows"),
        ("classifier.bias[0]", "only a matrix has rows"),
        ("bert.encoder.layer[0]", "a stack of layers. Write 'layers\\[0\\]'"),
        ("backbone[1:]", "could mean rows of several matrices. Say which: 'bert.embeddings.position_embeddings"),
        ("word_embedings[1:]", "Nearest: .*word_embeddings"),
        ("all[1:]", "'all' is not a matrix"),
        ("embeddings[1:] & embeddings[:1]", "none matches all of them"),
    ],
)
def test_rows_that_there_are_not_are_refused(selection, said):
    with pytest.raises(SelectionError, match=said):
        FreezePlan(trainable=["head", selection]).resolve(tiny_bert())


def test_rows_of_a_model_of_ones_own():
    assert picked(["tokens[-3:]", "out[-3:]"], Tables()) == {"tokens.weight[17:20]", "out.weight[17:20]"}
    with pytest.raises(SelectionError, match=r"several matrices. Say which: 'places\[-3:\]', 'tokens\[-3:\]'"):
        picked("embeddings[-3:]", Tables())
    with pytest.raises(SelectionError, match=r"'mix.weight' has the shape \(4, 4, 3\)"):
        picked("mix[0]", Tables())
    with pytest.raises(SelectionError, match="no matrix of word embeddings"):
        picked("embeddings[0]", tiny_vit())


def test_rows_that_cannot_train_apart_are_refused_with_the_reason():
    with pytest.raises(UnsupportedSetupError, match="its gradients are sparse"):
        picked("tokens[-3:]", Tables(sparse=True))
    with pytest.raises(UnsupportedSetupError, match="scales them to max_norm, frozen ones too"):
        picked("tokens[-3:]", Tables(max_norm=0.5))
    model = Tables()
    model.out.weight = nn.Parameter(torch.zeros(10, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UnsupportedSetupError, match="quantised"):
        picked("out[-3:]", model)
