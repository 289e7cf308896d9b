"""One step means the same however it is cut into micro-batches (and processes: see test_distributed)."""

import logging

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeTrainer
from hf_freeze.training.loss_scaling import count_labels, ignores_count
from tests.models import (
    SIZES,
    SPECIAL,
    seeded,
    text_batch,
    text_rows,
    tiny_bert,
    tiny_custom,
    tiny_distilbert,
    tiny_gpt2_lm,
    tiny_llama,
    tiny_roberta,
)
from tests.nearness import assert_near
from tests.training.runs import arguments, freeze_trainer, training_logs, weights

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**config):
    return tiny_bert(**NO_DROPOUT, **config)


def roberta():
    return tiny_roberta(**NO_DROPOUT)


def distilbert():
    return tiny_distilbert(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)


def modernbert():
    config = hf.ModernBertConfig(
        **{**SIZES, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 2, "num_labels": 2}
    )
    return seeded(hf.ModernBertForSequenceClassification, config)


def deberta():
    return seeded(hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config(**SIZES, num_hidden_layers=2, **NO_DROPOUT))


def electra():
    config = hf.ElectraConfig(**SIZES, num_hidden_layers=2, embedding_size=16, **NO_DROPOUT)
    return seeded(hf.ElectraForSequenceClassification, config)


def causal_lm():
    return tiny_gpt2_lm(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def module_without_kwargs():
    model = tiny_custom()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def regression():
    return bert(num_labels=1)


CLASSIFIERS = [bert, roberta, distilbert, modernbert, tiny_llama, deberta, electra]
OTHERS = [causal_lm, module_without_kwargs, regression]

# A whole window at once; in equal parts; in parts of which the last is smaller: 3, 3, 3, 3, 3, 1.
CUTS = {"16x1": (16, 1), "4x4": (4, 4), "ragged 3x6": (3, 6)}


def rows_for(build):
    if build is causal_lm:
        return [
            {**row, "labels": [t if t else -100 for t in row["input_ids"]]} for row in text_rows(16, length=9, seed=3)
        ]
    rows = text_rows(16)
    return [{**row, "labels": float(row["labels"])} for row in rows] if build is regression else rows


def run(build, folder, cut, *, trainer=FreezeTrainer, **overrides):
    size, accumulation = CUTS[cut]
    model = build()
    settings = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 2, "max_grad_norm": 1e9, **overrides}
    done = freeze_trainer(
        model,
        folder,
        trainer=trainer,
        rows=rows_for(build),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **settings,
    )
    done.train()
    return [entry["grad_norm"] for entry in training_logs(done)], weights(model), training_logs(done)


def assert_same(one, other):
    (norms, tensors, logs), (other_norms, other_tensors, other_logs) = one, other
    assert other_norms == pytest.approx(norms, rel=1e-5)
    assert [entry["loss"] for entry in other_logs] == pytest.approx([entry["loss"] for entry in logs], rel=1e-5)
    assert_near(other_tensors, tensors)


@pytest.mark.parametrize("build", [*CLASSIFIERS, *OTHERS], ids=lambda build: build.__name__)
def test_gradients_weights_and_logged_losses_are_the_same_however_the_window_is_cut(tmp_path, build):
    whole = run(build, tmp_path, "16x1")
    for cut in ("4x4", "ragged 3x6"):
        assert_same(whole, run(build, tmp_path, cut))


def test_without_the_correction_they_are_not(tmp_path):
    """transformers issue 47688: what the other tests in this file would miss if the Trainer mended it."""
    norms = [run(bert, tmp_path, cut, trainer=_Plain)[0][0] for cut in ("16x1", "4x4")]
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-3)


class _Plain(FreezeTrainer):
    training_step = Trainer.training_step


def test_a_model_that_honours_the_count_gets_what_the_plain_trainer_gives_it(tmp_path):
    """Bit-equal: the causal loss divides by the count itself, and must be left alone."""
    ours = run(causal_lm, tmp_path, "ragged 3x6")
    model = causal_lm()
    plain = Trainer(
        model,
        arguments(
            tmp_path,
            TrainingArguments,
            optim="sgd",
            learning_rate=0.5,
            max_steps=2,
            max_grad_norm=1e9,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=6,
        ),
        train_dataset=rows_for(causal_lm),
    )
    plain.train()
    assert all(torch.equal(tensor, ours[1][name]) for name, tensor in weights(model).items())


class OwnLoss(FreezeTrainer):
    """The mean over the micro-batch, whatever the count."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class OwnSummedLoss(FreezeTrainer):
    """The sum over the micro-batch divided by the count of the window."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        loss = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / count
        return (loss, outputs) if return_outputs else loss


def mean_loss(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits, labels)


def summed_loss(outputs, labels, num_items_in_batch=None):
    count = len(labels) if num_items_in_batch is None else num_items_in_batch
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / count


@pytest.mark.smoke
@pytest.mark.parametrize(
    "overrides",
    [
        {"trainer": OwnLoss},
        {"trainer": OwnSummedLoss},
        {"compute_loss_func": mean_loss},
        {"compute_loss_func": summed_loss},
        {"label_smoothing_factor": 0.1},
    ],
    ids=["compute_loss", "compute_loss by count", "compute_loss_func", "compute_loss_func by count", "smoothing"],
)
def test_losses_of_the_users_own_are_the_same_however_the_window_is_cut(tmp_path, overrides):
    whole = run(bert, tmp_path, "16x1", **overrides)
    for cut in ("4x4", "ragged 3x6"):
        assert_same(whole, run(bert, tmp_path, cut, **overrides))


def test_the_last_window_of_an_epoch_may_be_shorter(tmp_path):
    """16 rows in micro-batches of 3, windows of 2: 6, 6 and 4 rows, in another order every epoch."""
    sizes = {"max_steps": 3, "rows": text_rows(16), "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 1e9}
    cut, reference = bert(), bert()
    trainer = freeze_trainer(cut, tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2, **sizes)
    trainer.train()
    whole = freeze_trainer(reference, tmp_path, per_device_train_batch_size=6, **sizes)
    whole.train()
    norms = [[entry["grad_norm"] for entry in training_logs(done)] for done in (trainer, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_the_look_at_the_loss_leaves_no_trace():
    class Noisy(nn.Module):
        """It draws random numbers in eval mode too, as diffusion losses do."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.frozen = nn.Dropout(0.5).eval()
            self.on = nn.Dropout(0.5)

        def forward(self, x):
            return self.on(self.frozen(self.norm(x + torch.rand_like(x)))).square().mean()

    model, x = Noisy(), torch.randn(8, 4)
    before, state = weights(model), torch.random.get_rng_state()
    assert ignores_count(lambda count: model(x), model, torch.tensor(8))
    assert not ignores_count(lambda count: model(x) / count, model, torch.tensor(8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert [module.training for module in (model, model.norm, model.frozen, model.on)] == [True, True, False, True]


def test_train_flags_return_even_when_the_loss_raises():
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(ZeroDivisionError):
        ignores_count(lambda count: 1 / 0, model, torch.tensor(1))
    assert all(module.training for module in model.modules())


def test_a_run_that_looked_at_the_loss_drew_the_same_random_numbers(tmp_path):
    """With dropout on: 4x4 as corrected against the plain Trainer whose loss is told not to be scaled."""
    ours = tiny_bert()
    settings = {"optim": "sgd", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 1}
    freeze_trainer(ours, tmp_path, **settings).train()
    theirs = tiny_bert()
    theirs.accepts_loss_kwargs = False
    Trainer(theirs, arguments(tmp_path, TrainingArguments, **settings), train_dataset=text_rows()).train()
    assert_near(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"labels": torch.tensor([1, 0, -100])}, 2),
        ({"labels": torch.tensor([[1, -100], [-100, -100]])}, 1),
        ({"labels": torch.tensor([0.5, 1.5])}, 2),
        ({"labels": [1, 2]}, None),
        ({}, None),
        (torch.zeros(2), None),
    ],
    ids=str,
)
def test_only_labels_that_enter_the_loss_are_counted(batch, expected):
    counted = count_labels(batch)
    assert (None if counted is None else counted.item()) == expected


def test_ctc_counts_rows():
    assert count_labels({"labels": torch.tensor([[1, -100], [2, 3]])}, per_row=True).item() == 2


def test_freeze_trainer_gives_no_warning_about_the_loss(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(bert, tmp_path, "4x4")
    assert not [record for record in caplog.records if "num_items_in_batch" in record.getMessage()]


@pytest.mark.smoke
def test_evaluation_loss_is_the_mean_over_rows(tmp_path):
    model = bert()
    trainer = freeze_trainer(model, tmp_path, per_device_eval_batch_size=3, gradient_accumulation_steps=2)
    loss = trainer.evaluate(text_rows(8))["eval_loss"]
    with torch.no_grad():
        assert loss == pytest.approx(model(**text_batch(8)).loss.item(), rel=1e-5)
