"""suggest_layers by gradient and by spectrum: what is scored, the plans that follow, and that nothing is left behind."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertTokenizerFast

from hf_freeze import FreezeError, SelectionError, UnsupportedSetupError, plot_layers, suggest_layers
from hf_freeze.reporting.layers.block_suggestion import BlockSuggestion
from tests import models
from tests.models import image_rows, text_rows
from tests.training.staged import trainer


def by_gradient(model, rows, **given):
    return suggest_layers(model, rows, method="gradient", show_progress=False, **given)


def by_spectrum(model, **given):
    return suggest_layers(model, method="spectrum", **given)


def made(scores, *, method="gradient", k=1, has_head=True):
    return BlockSuggestion(method=method, scores=scores, k=k, has_head=has_head, rows=4, seconds=0.5)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, hidden):
        return self.norm(hidden + self.dense(hidden))


class Small(nn.Module):
    """Returns a loss for labels, as the Trainer has it."""

    def __init__(self, layers=3):
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(16, 4)
        self.layers = nn.ModuleList([Layer() for _ in range(layers)])
        self.classifier = nn.Linear(4, 2)

    def forward(self, input_ids, labels=None):
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.classifier(hidden.mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def small_rows(count=8):
    return [{"input_ids": [1 + i % 7, 3, 8], "labels": i % 2} for i in range(count)]


def test_the_score_of_a_block_is_the_norm_of_its_gradient_over_that_of_its_weights_averaged_over_batches():
    """But for normalisation layers."""
    model, rows = Small(), small_rows()
    found = by_gradient(model, rows, batch_size=4)
    expected = {"embeddings": model.embeddings, "layers[1]": model.layers[1], "head": model.classifier}
    ratios = {name: [] for name in expected}
    order = np.random.default_rng(0).permutation(8).tolist()
    for part in (order[:4], order[4:]):
        model.zero_grad()
        batch = {name: torch.tensor([rows[i][name] for i in part]) for name in ("input_ids", "labels")}
        model(**batch)["loss"].backward()
        for name, block in expected.items():
            counted = [p for path, p in block.named_parameters() if "norm" not in path]
            weights, gradients = zip(*((p.detach(), p.grad) for p in counted), strict=True)
            norms = [torch.cat([tensor.flatten() for tensor in kind]).norm().item() for kind in (gradients, weights)]
            ratios[name].append(norms[0] / norms[1])
    for name, found_by_hand in ratios.items():
        assert found.scores[name] == pytest.approx(sum(found_by_hand) / 2, rel=1e-4)
    assert list(found.scores) == ["embeddings", "layers[0]", "layers[1]", "layers[2]", "head"]


def test_a_bias_close_to_zero_does_not_put_its_block_first():
    model = Small()
    before = by_gradient(model, small_rows()).scores
    with torch.no_grad():
        model.layers[1].dense.bias.fill_(1e-12)
    assert by_gradient(model, small_rows()).scores["layers[1]"] < 2 * before["layers[1]"]


def test_the_plan_trains_the_best_blocks_wherever_they_are_and_the_head():
    scores = {"embeddings": 0.5, "layers[0]": 0.1, "layers[1]": 2.0, "layers[2]": 0.4, "head": 0.0}
    assert made(scores).plan.to_dict() == {"trainable": ["layers[1]", "head"]}
    assert made(scores, k=2).plan.to_dict() == {"trainable": ["embeddings", "layers[1]", "head"]}
    assert made({**scores, "head": 3.0}).plan.to_dict() == {"trainable": ["head"]}
    assert made({"layers[0]": 1.0}, has_head=False).plan.to_dict() == {"trainable": ["layers[0]"]}


def test_the_soft_plan_has_rates_in_proportion_and_freezes_what_has_no_gradient():
    soft = made({"embeddings": 0.0, "layers[0]": 0.5, "head": 2.0}).soft_plan
    assert soft.to_dict() == {"trainable": ["layers[0]", "head"], "lr_factors": {"layers[0]": 0.25, "head": 1.0}}
    with pytest.raises(FreezeError, match="soft_plan needs method='gradient'"):
        _ = made({"layers[0]": 0.5}, method="spectrum").soft_plan


def test_the_soft_plan_of_a_real_model_resolves_and_a_quarter_of_the_blocks_is_the_default():
    model = models.tiny_bert(layers=4)
    found = by_gradient(model, text_rows(16))
    assert found.k == 2  # of embeddings, 4 layers, rest and head
    found.soft_plan.resolve(model)
    assert len(found.plan.resolve(model).ever_trainable) < len(dict(model.named_parameters()))
    assert f"Plan: {found.plan.to_dict()}" in str(found)
    assert found.to_dict()["best"] == list(found.best)


def with_adapters():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return peft.get_peft_model(models.tiny_bert(layers=3), settings)


def handed_in_frozen():
    model = models.tiny_bert(layers=3)
    model.bert.encoder.layer.requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [with_adapters, handed_in_frozen])
def test_the_plans_train_what_was_scored_also_where_it_was_handed_in_frozen(tmp_path, make):
    model = make()
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    found = by_gradient(model, text_rows(16), k=6)
    by_spectrum(model)
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    for plan in (found.plan, found.soft_plan):
        fresh = make()
        weights = copy.deepcopy(fresh.state_dict())
        trainer(tmp_path, model=fresh, plan=plan, max_steps=2).train()
        moved = {name for name, value in fresh.state_dict().items() if not torch.equal(value, weights[name])}
        assert any("layer.1." in name for name in moved)
        assert any("classifier" in name for name in moved)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = models.tiny_bert(layers=2, hidden_dropout_prob=0.1).train(training)
    model.bert.encoder.layer[0].requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    before = {
        name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
    }
    values, state, hooks = copy.deepcopy(model.state_dict()), torch.get_rng_state(), len(model._forward_hooks)
    with torch.no_grad():
        first = by_gradient(model, text_rows(16))
    by_spectrum(model)
    assert first.scores == by_gradient(model, text_rows(16)).scores
    assert seen[0] is seen[-1] is True
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(model._forward_hooks) == hooks
    for name, parameter in model.named_parameters():
        requires, gradient = before[name]
        assert parameter.requires_grad is requires
        assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)


def test_the_scores_are_those_of_the_model_without_dropout():
    model = models.tiny_bert(layers=2, hidden_dropout_prob=0.5)
    found = [by_gradient(model.train(training), text_rows(16)).scores for training in (True, False)]
    assert found[0] == found[1]


def test_layers_handed_in_frozen_are_scored_like_the_others():
    model, free = Small(), Small()
    model.layers.requires_grad_(False)
    assert by_gradient(model, small_rows()).scores == by_gradient(free, small_rows()).scores


@pytest.mark.parametrize(
    "model", [models.tiny_t5(), models.tiny_gpt2_lm(), models.tiny_clip()], ids=lambda m: type(m).__name__
)
def test_several_stacks_and_models_without_a_head_rank_too(model):
    found = by_spectrum(model)
    layers = [name for name in found.scores if name.endswith("]")]
    assert list(found.scores) == layers
    found.plan.resolve(model)


def test_labels_of_a_language_model_and_images_do():
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [7, 6, 5, 4], "labels": [7, 6, 5, 4]}]
    assert by_gradient(models.tiny_gpt2_lm(), rows).rows == 2
    assert by_gradient(models.tiny_t5(), rows).plan.resolve(models.tiny_t5())
    assert "layers[2]" in by_gradient(models.tiny_resnet(), image_rows(6, size=32)).scores


def test_texts_are_tokenised_and_labels_that_are_texts_read_by_the_model(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "day"]))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    rows = [{"text": "good day" if i % 2 else "bad", "label": "ok" if i % 2 else "no"} for i in range(8)]
    model = models.tiny_bert(label2id={"no": 0, "ok": 1}, id2label={0: "no", 1: "ok"})
    numbers = [{**row, "label": i % 2} for i, row in enumerate(rows)]
    assert (
        by_gradient(model, rows, tokenizer=tokenizer).scores == by_gradient(model, numbers, tokenizer=tokenizer).scores
    )
    with pytest.raises(FreezeError, match="'no' is a text that the model does not know.*Give its number"):
        by_gradient(models.tiny_bert(), rows, tokenizer=tokenizer)


def signalled(layer, *, strength):
    """Give a layer's matrices several directions that stand out of noise, all by so much."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.dim() == 2:
                noise = torch.randn(parameter.shape, generator=draw)
                left, right = (torch.linalg.qr(torch.randn(size, 6, generator=draw)).Q for size in parameter.shape)
                made_of = noise + strength * left @ right.T
                parameter.copy_(made_of / torch.linalg.matrix_norm(made_of, 2))


def test_the_spectrum_puts_the_layer_first_whose_matrices_have_signal_above_noise():
    model = models.tiny_bert(layers=4, hidden_size=32)
    for index, layer in enumerate(model.bert.encoder.layer):
        signalled(layer, strength=40.0 if index == 2 else 0.0)
    found = by_spectrum(model)
    assert found.best == ("layers[2]",)
    assert found.plan.to_dict() == {"trainable": ["layers[2]", "head"]}
    assert found.scores == by_spectrum(model).scores


def test_ranks_are_within_one_kind_of_matrix():
    model = models.tiny_bert(layers=3, hidden_size=32)
    for layer in model.bert.encoder.layer:
        signalled(layer, strength=0.0)
    for kind in ("attention.self.query", "output.dense"):
        signalled(model.bert.encoder.layer[1].get_submodule(kind), strength=40.0)
    one = by_spectrum(model).scores
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight.mul_(0.01)  # of one kind alone
    assert by_spectrum(model).scores == pytest.approx(one)


@pytest.mark.parametrize("draw", ["gradient", "spectrum"])
def test_the_picture_names_the_blocks_and_marks_the_best(draw, tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_layers(made({"embeddings": 1.0, "layers[0]": 2.0}, method=draw), tmp_path / "blocks.png")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["embeddings", "layers[0]"]
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches]
    assert colours[0] != colours[1]
    with pytest.raises(FreezeError, match="is not a suggestion"):
        plot_layers({"layers[0]": 1.0})


def saturated():
    model = Small()
    model.forward = lambda input_ids, labels=None: {"loss": 0.0 * sum(p.sum() for p in model.parameters())}
    return model


def broken(change):
    model = models.tiny_bert()
    with torch.no_grad():
        change(model)
    return model


QUANTISED = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)


def quantised():
    model = models.tiny_bert()
    model.bert.encoder.layer[0].attention.self.query.weight = QUANTISED
    return model


@pytest.mark.parametrize(
    ("model", "rows", "given", "error", "match"),
    [
        (models.tiny_bert, text_rows(8), {"method": "grad"}, FreezeError, "method='grad' is not known. Give one of 'probe'"),
        (models.tiny_bert, text_rows(8), {"method": None}, FreezeError, "method=None is not known"),
        (models.tiny_bert, None, {}, FreezeError, "dataset=None.*labelled rows.*'spectrum'"),
        (models.tiny_bert, [], {}, FreezeError, "no rows"),
        (models.tiny_bert, [{"input_ids": [5, 6]}] * 4, {}, FreezeError, "no labels.*name the column 'label'"),
        (models.tiny_bert, [{"label": 1}] * 4, {}, FreezeError, "needs input_ids"),
        (models.tiny_bert, [{"input_ids": [5], "label": 7}] * 4, {}, FreezeError, "model raised IndexError: Target 7"),
        (models.tiny_bert, text_rows(8), {"k": 0}, FreezeError, "k=0 is not a whole number from 1 to 5"),
        (models.tiny_bert, text_rows(8), {"k": 6}, FreezeError, "k=6"),
        (models.tiny_bert, text_rows(8), {"k": True}, FreezeError, "k=True"),
        (models.tiny_bert, None, {"method": "spectrum", "k": 3}, FreezeError, "k=3 is not a whole number from 1 to 2"),
        (models.tiny_bert, text_rows(8), {"method": "probe", "k": 2}, FreezeError, "k=2 does not apply to method='probe'"),
        (models.tiny_bert, text_rows(8), {"stack": "encoder"}, FreezeError, "stack='encoder' does not apply to method='gradient'"),
        (models.tiny_bert, text_rows(8), {"scoring": "f1"}, FreezeError, "scoring='f1' does not apply to.*no probes"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), text_rows(8), {}, SelectionError, "no repeated stack"),
        (saturated, small_rows(), {}, FreezeError, "Every gradient is zero"),
        (
            lambda: broken(lambda m: m.bert.encoder.layer[1].output.dense.bias.fill_(float("nan"))),
            text_rows(8), {}, FreezeError, "The loss of a batch is nan",
        ),
        (
            lambda: broken(lambda m: m.bert.encoder.layer[1].output.dense.weight.fill_(float("inf"))),
            None, {"method": "spectrum"}, FreezeError, "output.dense.weight' holds NaN or infinity",
        ),
        (lambda: broken(lambda m: m.classifier.weight.zero_()), text_rows(8), {}, FreezeError, "All weights of 'head' are"),
        (quantised, text_rows(8), {}, UnsupportedSetupError, "quantised"),
        (quantised, None, {"method": "spectrum"}, UnsupportedSetupError, "quantised"),
        (lambda: models.tiny_bert().to("meta"), None, {"method": "spectrum"}, FreezeError, "on the meta device.*Load"),
        (lambda: models.tiny_bert().to("meta"), text_rows(8), {}, FreezeError, "on the meta device.*Load"),
        (lambda: Small().layers[0], text_rows(8), {}, SelectionError, "no repeated stack"),
    ],
)  # fmt: skip
def test_what_cannot_be_ranked_is_refused_with_what_to_do(model, rows, given, error, match):
    with pytest.raises(error, match=f"(?s){match}"):
        suggest_layers(model(), rows, show_progress=False, **{"method": "gradient", **given})


def test_a_model_that_returns_no_loss_is_told_what_to_return():
    class NoLoss(Small):
        def forward(self, input_ids, labels=None):
            return {"logits": super().forward(input_ids, labels)["logits"]}

    with pytest.raises(FreezeError, match="NoLoss returned no loss.*'spectrum' needs neither"):
        by_gradient(NoLoss(), small_rows())
