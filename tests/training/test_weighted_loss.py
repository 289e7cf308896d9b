"""class_weights, pos_weight and focal_gamma: one loss, however the window is cut (processes: see test_weighted_ranks)."""

import math

import numpy as np
import pytest
import torch
import transformers
import transformers as hf
from datasets import Dataset
from packaging.version import Version
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from transformers import HfArgumentParser, Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezeError, FreezeTrainer, FreezeTrainingArguments, debug_sample
from hf_freeze.errors import PlanError, UnsupportedSetupError
from hf_freeze.training.class_weights import LossWeights
from hf_freeze.training.weighted_loss import WeightedLoss
from tests.installed import GPU, USE_CPU
from tests.models import SIZES, seeded, text_rows, tiny_bert, tiny_custom, tiny_gpt2_lm
from tests.nearness import assert_near
from tests.training.runs import arguments, freeze_trainer, training_logs, weights
from tests.training.test_loss_scaling import NO_DROPOUT, bert
from tests.training.weighted_runs import (
    CLASS_WEIGHTS,
    SGD,
    WEIGHTS,
    WINDOW,
    one_logit,
    reference_loss,
    relative_gap,
    rows_for,
    run,
    several_labels,
    tokens,
)

QUICK = (bert, one_logit)
BUILDS = [pytest.param(build, marks=() if build in QUICK else pytest.mark.slow) for build in WEIGHTS]


def collated(rows):
    return hf.default_data_collator(rows)


def reference(build, rows, steps=3, declared=None):
    """Plain torch on whole windows: the losses, those without weights, and the weights it ends with."""
    model = build().train()
    batch = collated(rows)
    labels = batch.pop("labels")
    losses = []
    for _ in range(steps):
        logits = model(**batch).logits
        loss = reference_loss(build, logits, labels, declared)
        plain = {"class_weights": [1.0] * logits.shape[-1]} if logits.shape[-1] in (2, 3) else {"pos_weight": 1.0}
        plain = {"pos_weight": 1.0} if build is several_labels else plain
        losses.append((loss.item(), reference_loss(build, logits, labels, plain).item()))
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= SGD["learning_rate"] * parameter.grad
        model.zero_grad()
    return losses, weights(model)


@pytest.mark.smoke
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
def test_a_step_is_that_of_torchs_weighted_loss_on_the_whole_window_however_it_is_cut(tmp_path, build):
    # Before transformers 5.24 ModernBERT takes the padding out first, and rounds by how a window is cut.
    rounding = 3e-5 if build.__name__ == "modernbert" and Version(transformers.__version__) < Version("5.24") else 1e-6
    rows = rows_for(build, WINDOW)
    losses, expected = reference(build, rows)
    for size, accumulation in ((16, 1), (8, 2), (4, 4), (3, 6)):
        trainer = run(build, tmp_path, size, accumulation, rows=rows)
        assert relative_gap(weights(trainer.model), expected) <= rounding
        logs = training_logs(trainer)
        assert [(entry["loss"], entry["unweighted_loss"]) for entry in logs] == [
            pytest.approx(pair, rel=1e-5) for pair in losses
        ]


def test_the_last_window_of_an_epoch_may_be_shorter(tmp_path):
    """26 rows: windows of 16 and 10, in another order every epoch."""
    rows = rows_for(bert, 26)
    whole, cut = (run(bert, tmp_path, *shape, rows=rows, max_steps=5) for shape in ((16, 1), (4, 4)))
    assert relative_gap(weights(cut.model), weights(whole.model)) <= 1e-6


def test_without_the_sum_of_weights_as_count_the_cuts_differ(tmp_path):
    """What the tests above would miss if every micro-batch had the same share of each class."""

    class PerMicroBatch(FreezeTrainer):
        def get_batch_samples(self, *args, **kwargs):
            batches, count = super().get_batch_samples(*args, **kwargs)
            return batches, count * 0 + sum(batch["labels"].ne(-100).sum() for batch in batches)

    rows = rows_for(bert, WINDOW)
    gap = relative_gap(
        weights(run(bert, tmp_path, 4, 4, rows=rows, trainer=PerMicroBatch).model),
        weights(run(bert, tmp_path, 16, rows=rows).model),
    )
    assert gap > 1e-3


def test_a_window_in_which_nothing_weighs_anything_leaves_the_weights_alone(tmp_path):
    rows = [{**row, "labels": -100 if index % 2 else 0} for index, row in enumerate(text_rows(16))]
    trainer = run(
        lambda: bert(num_labels=3),
        tmp_path,
        4,
        2,
        rows=rows,
        declared={"class_weights": [0, 1, 1]},
        verify_freeze=False,
    )
    assert training_logs(trainer)[0]["loss"] == 0
    assert relative_gap(weights(trainer.model), weights(bert(num_labels=3))) == 0


@pytest.mark.parametrize("use_cpu", USE_CPU)
@pytest.mark.parametrize("strange", [2, -1])
def test_a_label_that_the_model_does_not_have_is_named(tmp_path, strange, use_cpu):
    rows = [{**row, "labels": strange if index == 7 else index % 2} for index, row in enumerate(text_rows(16))]
    with pytest.raises(UnsupportedSetupError, match=f"has the label {strange}, and the model has 2 classes"):
        run(bert, tmp_path, 16, rows=rows, use_cpu=use_cpu)


def test_a_loss_over_several_steps_is_logged_as_their_mean(tmp_path):
    each = training_logs(run(bert, tmp_path, 4, 4))
    together = training_logs(run(bert, tmp_path, 4, 4, logging_steps=3))
    for name in ("loss", "unweighted_loss"):
        assert together[0][name] == pytest.approx(np.mean([entry[name] for entry in each]), rel=1e-5)


def test_data_parallel_on_several_devices_of_one_process_is_not_counted_twice(tmp_path):
    """The Trainer multiplies the loss by n_gpu; the logits were gathered before the loss."""
    rows = rows_for(bert, WINDOW)

    class TwoDevices(FreezeTrainer):
        def __init__(self, model, args, **kwargs):
            super().__init__(model, args, **kwargs)
            self.args._n_gpu = 2

        def _wrap_model(self, model, *args, **kwargs):
            return model

    trainer = run(bert, tmp_path, 16, rows=rows, trainer=TwoDevices)
    assert relative_gap(weights(trainer.model), reference(bert, rows)[1]) <= 1e-6


# --- evaluation


@pytest.mark.parametrize("build", [bert, one_logit, tokens, several_labels], ids=lambda build: build.__name__)
def test_eval_loss_is_that_of_all_rows_with_and_without_weights(tmp_path, build):
    rows = rows_for(build, 10)
    trainer = freeze_trainer(build(), tmp_path, per_device_eval_batch_size=3, **WEIGHTS[build])
    found = trainer.evaluate(rows)
    (loss, plain), *_ = reference(build, rows, steps=1)[0]
    assert found["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["eval_unweighted_loss"] == pytest.approx(plain, rel=1e-5)
    assert trainer.predict(rows).metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_predictions_are_those_of_the_plain_trainer_with_labels_and_without(tmp_path):
    rows = rows_for(bert, 10)
    plain = Trainer(bert(), arguments(tmp_path, TrainingArguments))
    trainer = freeze_trainer(bert(), tmp_path, class_weights=CLASS_WEIGHTS)
    for data in (rows, [{key: value for key, value in row.items() if key != "labels"} for row in rows]):
        assert np.array_equal(trainer.predict(data).predictions, plain.predict(data).predictions)


class Tuples(nn.Module):
    """Returns a tuple, or without labels the bare logits, as modules of people's own do."""

    def __init__(self, bare):
        super().__init__()
        self.inner, self.bare = tiny_custom(), bare

    def forward(self, input_ids, attention_mask=None, labels=None):
        out = self.inner(input_ids, attention_mask, labels)
        if labels is None:
            return out["logits"] if self.bare else (out["logits"],)
        return out["loss"], out["logits"]


@pytest.mark.parametrize("build", [lambda _: Lossless(), lambda _: tiny_custom()], ids=["none", "its own"])
def test_models_without_a_configuration_train_with_a_list(tmp_path, build):
    args = arguments(tmp_path, class_weights=CLASS_WEIGHTS, label_names=["labels"], remove_unused_columns=False)
    model = seeded(build, None)
    trainer = FreezeTrainer(model, args, train_dataset=text_rows())
    trainer.train()
    with pytest.raises(UnsupportedSetupError, match="3 class weights, but 2 logits"):
        freeze_trainer(model, tmp_path, class_weights=[1, 2, 3], remove_unused_columns=False).train()


@pytest.mark.parametrize("bare", [True, False])
def test_models_that_return_tuples_train_and_predict(tmp_path, bare):
    rows = rows_for(bert, 10)
    trainer = freeze_trainer(seeded(Tuples, bare), tmp_path, rows=rows, class_weights=CLASS_WEIGHTS)
    trainer.train()
    found = trainer.predict(rows)
    logits = torch.from_numpy(found.predictions)
    assert logits.shape == (10, 2)
    labels = torch.tensor([row["labels"] for row in rows])
    assert found.metrics["test_loss"] == pytest.approx(float(reference_loss(bert, logits, labels)), rel=1e-5)


# --- the loss itself


def test_focal_loss_is_that_of_the_paper_with_class_weights_as_alpha():
    z, y = torch.randn(7, 3, requires_grad=True), torch.tensor([0, 1, 2, -100, 2, 1, 0])
    alpha = (0.5, 1.0, 4.0)
    p = z.softmax(-1)[torch.arange(7), y.clamp(min=0)][y != -100]
    expected = (torch.tensor(alpha)[y[y != -100]] * (1 - p) ** 1.5 * -p.log()).mean()
    found = WeightedLoss(LossWeights(classes=alpha, gamma=1.5))({"logits": z}, y)
    torch.testing.assert_close(found, expected)


def test_focal_loss_of_one_logit_is_the_papers():
    z, y = torch.randn(9, 1), torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0, 0])
    p = torch.where(y == 1, torch.sigmoid(z[:, 0]), torch.sigmoid(-z[:, 0]))
    expected = (torch.where(y == 1, 3.0, 1.0) * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(WeightedLoss(LossWeights(positives=(3.0,), gamma=2.0))((z,), y), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradients_are_finite_where_the_model_is_certain(gamma):
    for z, y in (
        (torch.tensor([[60.0, -60.0], [-60.0, 60.0]]), torch.tensor([0, 0])),
        (torch.tensor([[90.0], [-90.0], [400.0]]), torch.tensor([1, 1, 1])),
    ):
        z.requires_grad_(True)
        weights = LossWeights(gamma=gamma)
        WeightedLoss(weights)(z, y).backward()
        assert bool(z.grad.isfinite().all())


def test_focal_training_is_the_same_however_the_window_is_cut(tmp_path):
    declared = {"focal_gamma": 2.0, "class_weights": CLASS_WEIGHTS}
    whole, cut = (run(bert, tmp_path, *shape, declared=declared) for shape in ((16, 1), (4, 4)))
    assert relative_gap(weights(cut.model), weights(whole.model)) <= 1e-6


# --- resuming


def test_a_resumed_run_ends_bit_equal_and_logs_the_same(tmp_path):
    settings = {"class_weights": CLASS_WEIGHTS, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    saves = {"max_steps": 4, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2}
    rows = rows_for(bert, 30)
    whole = freeze_trainer(tiny_bert(), tmp_path, rows=rows, **settings, **saves)
    whole.train()
    again = freeze_trainer(tiny_bert(seed=1), tmp_path / "again", rows=rows, **settings, **saves)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(tensor, weights(whole.model)[name]) for name, tensor in weights(again.model).items())
    assert training_logs(again) == training_logs(whole)
    assert "unweighted_loss" in training_logs(again)[0]


def test_looking_at_the_loss_first_draws_no_random_number(tmp_path):
    """With dropout, weights of 1 train as no weights do."""
    plain = freeze_trainer(tiny_bert(), tmp_path, **SGD)
    plain.train()
    ones = freeze_trainer(tiny_bert(), tmp_path, class_weights=[1.0, 1.0], **SGD)
    ones.train()
    assert_near(weights(ones.model), weights(plain.model))
    assert "unweighted_loss" not in training_logs(plain)[0]


# --- declaring


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--class_weights", "balanced"], {"class_weights": "balanced"}),
        (["--class_weights", "[1, 5]"], {"class_weights": [1.0, 5.0]}),
        (["--class_weights", '{"spam": 5}'], {"class_weights": {"spam": 5.0}}),
        (["--pos_weight", "4.5"], {"pos_weight": 4.5}),
        (["--pos_weight", "[1, 2]", "--focal_gamma", "2"], {"pos_weight": [1.0, 2.0], "focal_gamma": 2.0}),
    ],
    ids=" ".join,
)
def test_weights_are_read_from_the_command_line(given, expected):
    (args,) = HfArgumentParser(FreezeTrainingArguments).parse_args_into_dataclasses(["--output_dir", "x", *given])
    assert {name: getattr(args, name) for name in expected} == expected
    args.to_json_string()


@pytest.mark.parametrize("given", [np.array([1, 5]), torch.tensor([1.0, 5.0]), (1, 5), [np.float32(1), np.int64(5)]])
def test_arrays_are_lists(given):
    assert FreezeTrainingArguments("x", class_weights=given).class_weights == CLASS_WEIGHTS


NAMED = {"id2label": {0: "ham", 1: "spam", 2: "3"}, "label2id": {"ham": 0, "spam": 1, "3": 2}, "num_labels": 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"spam": 5}, (1, 5, 1)), ({1: 5, "0": 2}, (2, 5, 1)), ({"3": 2}, (1, 1, 2)), ([1, 0, 2], (1, 0, 2))],
    ids=str,
)
def test_weights_go_to_labels_by_name_or_number_and_the_others_weigh_1(tmp_path, given, expected):
    trainer = freeze_trainer(bert(**NAMED), tmp_path, class_weights=given)
    assert trainer.weighted_loss.weights.classes == expected


WRONG = {
    "unknown name": ({"class_weights": {"spma": 5}}, "'spma' is not a label of the model. Its labels: 0 'ham'"),
    "unknown number": ({"class_weights": {7: 5}}, "7 is not a label"),
    "twice": ({"class_weights": {"spam": 5, 1: 4}}, "gives label 'spam' two weights"),
    "too many": ({"class_weights": [1, 2, 3, 4]}, "4 weights, and the model 3 labels"),
    "one class alone": ({"class_weights": [0, 5, 0]}, "1 of 3 classes a weight above 0"),
    "nothing": ({"class_weights": [0, 0, 0]}, "0 of 3 classes a weight above 0"),
    "both": ({"class_weights": [1, 2, 3], "pos_weight": 5}, "Keep one"),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=list(WRONG))
def test_weights_that_do_not_fit_the_labels_are_refused_before_anything_is_written(tmp_path, given, said):
    with pytest.raises(PlanError, match=said):
        freeze_trainer(bert(**NAMED), tmp_path, **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"class_weights": [1, -5]}, "-5 is not a weight; give numbers from 1e-12 to 1e\\+12, or 0"),
        ({"class_weights": [1, math.nan]}, "nan is not a weight"),
        ({"class_weights": {"a": math.inf}}, "inf is not a weight"),
        ({"class_weights": [True, 5]}, "True is not a weight"),
        ({"class_weights": ["1", 5]}, "'1' is not a weight"),
        ({"class_weights": "Balanced"}, 'is not "balanced", a list'),
        ({"class_weights": 5}, 'is not "balanced", a list'),
        ({"pos_weight": 0}, "0 is not a weight; give numbers from 1e-12 to 1e\\+12."),
        ({"class_weights": [1, 1e300]}, "1e\\+300 is not a weight"),
        ({"class_weights": [1, 1e-40]}, "1e-40 is not a weight"),
        ({"class_weights": {}}, "names no label"),
        ({"focal_gamma": 1e9}, "is not an exponent; give a number from 0 to 100"),
        ({"pos_weight": "many"}, "is not a number"),
        ({"focal_gamma": -1}, "is not an exponent"),
        ({"focal_gamma": math.nan}, "is not an exponent"),
    ],
    ids=str,
)
def test_what_is_no_weight_is_refused_by_the_arguments(given, said):
    with pytest.raises(PlanError, match=said):
        FreezeTrainingArguments("x", **given)


# --- "balanced"


class Made(torch.utils.data.Dataset):
    """Makes each row when it is asked for, and counts how often."""

    def __init__(self, rows, labels=None):
        self.rows, self.made = rows, 0
        if labels is not None:
            self.targets = labels

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.made += 1
        return self.rows[index]


ROWS = [{**row, "labels": (0, 0, 0, 1, 0, 2, 0, 1)[index % 8]} for index, row in enumerate(text_rows(40))]
LABELS = [row["labels"] for row in ROWS]
SETS = {
    "list": ROWS,
    "datasets": Dataset.from_list(ROWS),
    "column called label": Dataset.from_list(ROWS).rename_column("labels", "label"),
    "with_transform": Dataset.from_list(ROWS).with_transform(
        lambda batch: {**batch, "labels": [(y + 1) % 3 for y in batch["labels"]]}
    ),
    "torch": Made(ROWS),
    "subset": Subset(Dataset.from_list(ROWS), range(0, 40, 3)),
    "concatenated": ConcatDataset([ROWS[:10], Dataset.from_list(ROWS[10:])]),
}


@pytest.mark.parametrize("name", SETS)
def test_balanced_weights_are_those_of_scikit_learn_on_all_rows(tmp_path, name):
    data = SETS[name]
    labels = [int(collated([data[row]])["labels"][0]) for row in range(len(data))]
    model = bert(num_labels=3)
    trainer = freeze_trainer(model, tmp_path, rows=data, class_weights="balanced", remove_unused_columns=False)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert trainer.weighted_loss.weights.classes == pytest.approx(expected)


def test_balanced_weights_count_tokens_and_leave_out_those_without_a_label(tmp_path):
    rows = rows_for(tokens, 12)
    trainer = freeze_trainer(tokens(), tmp_path, rows=rows, class_weights="balanced")
    labels = [label for row in rows for label in row["labels"] if label != -100]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert trainer.weighted_loss.weights.classes == pytest.approx(expected)


def test_labels_that_lie_beside_the_rows_are_read_there(tmp_path):
    data = Made(ROWS * 10, LABELS * 10)
    freeze_trainer(bert(num_labels=3), tmp_path, rows=data, class_weights="balanced")
    assert data.made < 20


class Stream(IterableDataset):
    def __iter__(self):
        yield from ROWS


@pytest.mark.parametrize(
    ("rows", "labels", "said"),
    [
        (ROWS, 4, "class 'LABEL_3' has no row in train_dataset"),
        (ROWS, 2, "has the label 2, and the model has 2 classes"),
        (Stream(), 3, "Stream has no rows by number"),
        ([{**row, "labels": 0.5} for row in ROWS], 3, "has the label 0.5"),
        ([{key: row[key] for key in ("input_ids", "attention_mask")} for row in ROWS], 3, 'none under "labels"'),
    ],
    ids=["absent class", "too large", "iterable", "fractions", "no labels"],
)
def test_what_cannot_be_balanced_is_refused(tmp_path, rows, labels, said):
    with pytest.raises(PlanError, match=said):
        freeze_trainer(bert(num_labels=labels), tmp_path, rows=rows, class_weights="balanced")


# --- losses that weights cannot replace


class Router(nn.Module):
    """A small term beside the cross entropy, as mixtures of experts have."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_custom()

    def forward(self, input_ids, attention_mask=None, labels=None):
        out = self.inner(input_ids, attention_mask, labels)
        return out if labels is None else {**out, "loss": out["loss"] + 1e-3 * out["logits"].square().sum()}


class Lossless(nn.Module):
    """Leaves the loss to the Trainer."""

    def __init__(self):
        super().__init__()
        self.inner = tiny_custom()

    def forward(self, input_ids, attention_mask=None):
        return self.inner(input_ids, attention_mask)


class NeedsLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = tiny_custom()

    def forward(self, input_ids, labels, attention_mask=None):
        return self.inner(input_ids, attention_mask, labels)


class Doubled(FreezeTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class OwnLoss(FreezeTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def answering():
    config = hf.BertConfig(**SIZES, num_hidden_layers=2, **NO_DROPOUT)
    return seeded(hf.BertForQuestionAnswering, config)


SPANS = [{**row, "start_positions": 1, "end_positions": 2} for row in text_rows(16)]
SPANS = [{key: value for key, value in row.items() if key != "labels"} for row in SPANS]
NEXT_TOKENS = [{**row, "labels": row["input_ids"]} for row in text_rows(16)]
REFUSED = {
    "next token": (tiny_gpt2_lm, NEXT_TOKENS, FreezeTrainer, {"focal_gamma": 1.0}, "one of the next token"),
    "spans": (answering, SPANS, FreezeTrainer, {"class_weights": [1, 2]}, 'has no tensor "labels"'),
    "a term beside it": (lambda: seeded(lambda _: Router(), None), None, FreezeTrainer, {}, "with a term beside it"),
    "labels needed": (lambda: seeded(lambda _: NeedsLabels(), None), None, FreezeTrainer, {}, "does not run"),
    "scaled": (bert, None, Doubled, {}, "under Doubled is 1.38882, and the cross entropy of its logits 0.694409"),
    "scaled without a loss": (lambda: seeded(lambda _: Lossless(), None), None, Doubled, {}, "of Doubled returns"),
    "compute_loss": (bert, None, OwnLoss, {}, "never calls compute_loss_func"),
    "pos_weight for classes": (bert, None, FreezeTrainer, {"pos_weight": 5}, "ids of 2 classes"),
    "class weights for several labels": (
        lambda: bert(num_labels=3),
        [{**row, "labels": [1.0, 0.0, 1.0]} for row in text_rows(16)],
        FreezeTrainer,
        {"class_weights": [1, 2, 3]},
        "Give pos_weight= instead",
    ),
    "regression": (
        one_logit,
        [{**row, "labels": 2.5} for row in text_rows(16)],
        FreezeTrainer,
        {"pos_weight": 5},
        "takes labels from 0 to 1",
    ),
}


@pytest.mark.parametrize(("build", "rows", "trainer", "given", "said"), REFUSED.values(), ids=list(REFUSED))
def test_a_loss_that_is_more_than_a_plain_one_is_refused_before_the_first_step(
    tmp_path, build, rows, trainer, given, said
):
    model = build()
    before = weights(model)
    settings = {
        "label_names": ["labels"],
        "remove_unused_columns": False,
        **(given or {"class_weights": CLASS_WEIGHTS}),
    }
    made = freeze_trainer(model, tmp_path, rows=rows, trainer=trainer, **settings)
    with pytest.raises(UnsupportedSetupError, match=said):
        made.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ({}, {"class_weights": [1, 2], "compute_loss_func": lambda *_, **__: None}, "compute_loss_func=<lambda>"),
        ({}, {"class_weights": [1, 2], "label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"num_labels": 1}, {"class_weights": [1, 2]}, "the model has one logit: give pos_weight="),
        ({"num_labels": 1, "problem_type": "regression"}, {"pos_weight": 2}, "problem_type is 'regression'"),
        ({"problem_type": "single_label_classification"}, {"pos_weight": 2}, "Give class_weights= instead"),
        ({"problem_type": "multi_label_classification"}, {"class_weights": [1, 2]}, "give pos_weight= instead"),
    ],
    ids=lambda given: " ".join(map(str, given)) if isinstance(given, dict) else None,
)
def test_what_contradicts_itself_is_refused_when_the_trainer_is_built(tmp_path, model, given, said):
    with pytest.raises(FreezeError, match=said):
        freeze_trainer(bert(**model), tmp_path, **given)
    assert not (tmp_path / "run").exists()


def test_the_look_at_the_loss_leaves_the_problem_type_alone(tmp_path):
    trainer = run(one_logit, tmp_path, 16)
    assert trainer.model.config.problem_type is None


def test_a_plain_trainer_that_would_ignore_weights_is_refused(tmp_path):
    args = arguments(tmp_path, class_weights=CLASS_WEIGHTS)
    with pytest.raises(UnsupportedSetupError, match="this Trainer would ignore it"):
        Trainer(bert(), args, train_dataset=text_rows(), callbacks=[FreezeCallback(trainable="head")])


def test_the_model_card_and_the_log_say_that_probabilities_are_shifted(tmp_path, caplog):
    trainer = run(bert, tmp_path, 16)
    trainer.create_model_card()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    for said in (card, caplog.text):
        assert "cross entropy with class weights {LABEL_0: 1, LABEL_1: 5}. Weights shift the probabilities" in said
        assert "calibrate" in said


# --- debug_sample


@pytest.mark.parametrize("build", [bert, one_logit, tokens, several_labels], ids=lambda build: build.__name__)
def test_debug_sample_finds_the_weighted_loss_of_a_row_right(tmp_path, build):
    rows = [row for row in rows_for(build) if row["labels"] != -100]
    for declared in (WEIGHTS[build], {**WEIGHTS[build], "focal_gamma": 2.0}):
        trainer = freeze_trainer(build(), tmp_path, rows=rows, **declared)
        found = debug_sample(trainer, dataset="train", index=0)["loss"]
        assert found.status == "ok", found.message
        assert " with " in found.message


class Unweighted(FreezeTrainer):
    """Loses the weights on the way: a compute_loss of its own."""

    compute_loss = OwnLoss.compute_loss


def test_debug_sample_names_weights_that_are_not_applied(tmp_path):
    forgetful = freeze_trainer(bert(), tmp_path, trainer=Unweighted, class_weights=CLASS_WEIGHTS)
    plain = Trainer(bert(), arguments(tmp_path, class_weights=CLASS_WEIGHTS), train_dataset=text_rows())
    for trainer, said in ((forgetful, "It is the loss without weights"), (plain, "Trainer does not apply it")):
        found = debug_sample(trainer, dataset="train", index=1)["loss"]
        assert (found.status, said in found.message) == ("failed", True), found.message


class RoundedLoss(hf.BertForSequenceClassification):
    """Its loss has the precision of bfloat16, as under autocast on a GPU, and comes out as float32."""

    def forward(self, input_ids, attention_mask, labels=None):
        outputs = super().forward(input_ids, attention_mask, labels=labels)
        if labels is not None:
            outputs.loss = (1.003 * outputs.loss).bfloat16().float()
        return outputs


def rounded():
    return seeded(RoundedLoss, hf.BertConfig(**SIZES, num_hidden_layers=1))


def test_a_loss_that_mixed_precision_rounded_is_still_the_plain_one(tmp_path):
    given = {"rows": rows_for(bert), "declared": {"class_weights": CLASS_WEIGHTS}}
    assert training_logs(run(rounded, tmp_path, 16, **given, bf16=True))
    with pytest.raises(UnsupportedSetupError, match="and the cross entropy of its logits"):
        run(rounded, tmp_path, 16, **given)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("use_cpu", [pytest.param(False, marks=GPU)])
def test_weights_work_under_mixed_precision(tmp_path, precision, use_cpu):
    assert training_logs(run(bert, tmp_path, 16, use_cpu=use_cpu, **{precision: True}))
