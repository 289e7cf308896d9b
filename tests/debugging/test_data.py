"""Labels, heads and images that are right, or cannot be judged: nothing is said, and little is read."""

import pytest
import torch
import transformers as hf
from datasets import Dataset
from torch.utils.data import Subset

from hf_freeze import BinaryClassificationMetrics, Stage, debug_sample
from hf_freeze.debugging.label_survey import MOST_ROWS_MADE, survey_labels
from tests.debugging.data_faults import (
    ONE_STRANGER,
    Encoded,
    Lazy,
    image_processor,
    images_trainer,
    processed,
    relabelled,
)
from tests.debugging.faults import FAULTS, freeze_trainer
from tests.debugging.subjects import pooled, ragged_rows, token_rows, trainer_of, word_tokenizer
from tests.models import seeded, text_rows, tiny_bert, tiny_custom, tiny_gpt2_lm, tiny_llama


def bad(report):
    return {check.name for check in report.checks if check.status != "ok"}


def test_every_label_of_a_column_is_read_and_no_row_is_made_for_it():
    made = []

    def transform(batch):
        made.extend(batch["labels"])
        return batch

    rows = Dataset.from_list(text_rows(2000)).with_transform(transform)
    report = debug_sample(tiny_bert(), dataset=rows)
    assert "all 2,000 labels of the data set given were read" in report["label_range"].message
    assert len(made) <= 4


def test_labels_in_an_attribute_are_read_without_their_rows():
    rows = Encoded(relabelled(ONE_STRANGER * 100, text_rows(1600)))
    report = debug_sample(tiny_bert(), dataset=rows, index=0)
    assert "Row 15 of the data set given has the label 2" in report["label_range"].message
    assert rows.made <= 4


def test_rows_that_must_be_made_are_few_and_counted():
    report = debug_sample(tiny_bert(), dataset=Lazy(text_rows(500)), index=0)
    said = report["label_range"].message
    assert bad(report) == set()
    assert int(said.split("fit the head: ")[1].split(" of 500")[0]) <= MOST_ROWS_MADE


def test_a_collator_that_puts_labels_right_is_believed(tmp_path):
    collate = hf.DataCollatorWithPadding(trainer_of(tiny_bert(), tmp_path).processing_class)

    def capped(rows):
        return collate([{**row, "labels": min(row["labels"], 1)} for row in rows])

    trainer = trainer_of(tiny_bert(), tmp_path, rows=relabelled(ONE_STRANGER), data_collator=capped)
    assert bad(debug_sample(trainer, index=0)) == set()


def test_names_of_classes_are_labels_where_a_text_is_read_by_its_model():
    model = tiny_bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1})
    rows = [{"text": f"w{5 + i} w6", "label": ("ham", "spam")[i % 2]} for i in range(20)]
    report = debug_sample(model, dataset=rows, tokenizer=word_tokenizer())
    assert bad(report) == set()
    assert "all 20 labels" in report["label_range"].message
    rows[17]["label"] = "eggs"
    assert bad(debug_sample(model, dataset=rows, tokenizer=word_tokenizer(), index=0)) == {"label_dtype"}


def test_ratings_from_zero_to_two_are_a_regression_unless_metrics_are_binary(tmp_path):
    rows = relabelled([float(i % 3) for i in range(16)])
    assert bad(debug_sample(trainer_of(tiny_bert(num_labels=1), tmp_path, rows=rows), index=0)) == set()
    trainer = trainer_of(tiny_bert(num_labels=1), tmp_path, rows=rows, compute_metrics=BinaryClassificationMetrics())
    assert "label_range" in bad(debug_sample(trainer, index=2))


def test_few_rows_or_an_evaluation_set_need_not_have_every_class(tmp_path):
    assert (
        bad(debug_sample(trainer_of(tiny_bert(num_labels=3), tmp_path, rows=relabelled([0] * 8, ragged_rows(8)))))
        == set()
    )
    options = {"rows": relabelled([0] * 16), "train_dataset": ragged_rows()}
    assert bad(debug_sample(trainer_of(tiny_bert(), tmp_path, **options))) == set()


def test_ignored_labels_are_no_classes():
    assert bad(debug_sample(tiny_bert(), dataset=relabelled([0, 1] * 7 + [0, -100], text_rows()), index=0)) == set()


@pytest.mark.parametrize("labels", [[0, 1, 2] * 20, [[0, 1], [2]] * 30, [0.5, float("nan"), None] * 20])
def test_a_survey_names_each_value_with_its_first_row(labels):
    found = survey_labels(
        [{"labels": label} for label in labels], "data", ["labels"], labels.__getitem__, known_row=0, ids={}
    )
    flat = [(value, row) for row, one in enumerate(labels) for value in (one if isinstance(one, list) else [one])]
    expected = {repr(value): min(row for other, row in flat if repr(other) == repr(value)) for value, _ in flat}
    assert {repr(value): row for value, row in found.first.items()} == expected
    assert found.is_complete


# --- heads


def moved(model, *, head):
    """The model after a step that moved its head."""
    layer = getattr(model, head)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    batch = {key: torch.tensor([row[key] for row in text_rows()]) for key in text_rows()[0]}
    for _ in range(3):
        optimizer.zero_grad()
        output = model(**batch)
        (output["loss"] if isinstance(output, dict) else output.loss).backward()
        optimizer.step()
    model.zero_grad()
    return model


@pytest.mark.parametrize(("build", "head"), [(tiny_bert, "classifier"), (tiny_custom, "out"), (pooled, "head")])
def test_a_trained_head_may_stay_frozen(build, head):
    model = moved(build(), head=head)
    getattr(model, head).requires_grad_(False)
    report = debug_sample(model, dataset=text_rows())
    assert bad(report) == set()
    assert "newly initialised" in report["head"].message


def test_a_head_without_a_bias_that_came_with_its_checkpoint_may_stay_frozen(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    model.score.requires_grad_(False)
    assert bad(debug_sample(model, dataset=text_rows())) == set()


def test_a_new_head_of_a_loaded_backbone_may_not(tmp_path):
    hf.BertModel(tiny_bert().config).save_pretrained(tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert bad(debug_sample(model.requires_grad_(True), dataset=text_rows())) == set()
    model.classifier.requires_grad_(False)
    report = debug_sample(model, dataset=text_rows())
    assert "classifier looks newly initialised, and it is frozen" in report["head"].message


def test_a_head_that_a_later_stage_trains_is_no_fault(tmp_path):
    trainer = freeze_trainer(tiny_bert(), tmp_path, trainable="layers[-1]", stages=[Stage(step=2, unfreeze="head")])
    report = debug_sample(trainer)
    assert bad(report) == set()
    assert report["head"].message == "The head trains."


def test_nothing_is_said_of_a_model_that_does_not_train():
    report = debug_sample(tiny_bert().requires_grad_(False), dataset=text_rows())
    assert "head" not in {check.name for check in report.checks}


# --- images


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_normalize": False},
        {"image_mean": [0.4] * 3, "image_std": [0.2] * 3},
    ],
)
def test_pixels_of_the_processor_itself_are_right(tmp_path, options):
    processor = image_processor(**options)
    assert "inputs" not in bad(debug_sample(images_trainer(tmp_path, processed(processor), processor)))


def test_an_image_of_one_colour_is_not_judged_by_its_range(tmp_path):
    rows = [
        {"pixel_values": torch.full((3, 16, 16), value), "labels": i % 2} for i, value in enumerate([-1.0, 0.5] * 4)
    ]
    assert bad(debug_sample(images_trainer(tmp_path, rows), index=1)) == set()


def test_accumulation_is_named_in_the_loss(tmp_path):
    plants = {fault.name: fault.plant for fault in FAULTS}
    trainer, _ = plants["the loss is divided by the accumulation steps twice"](tmp_path)
    assert "gradient_accumulation_steps=4" in debug_sample(trainer)["loss"].message


def test_an_output_that_is_tied_to_frozen_embeddings_is_not_called_new():
    model = tiny_gpt2_lm()
    model.transformer.wte.requires_grad_(False)
    assert bad(debug_sample(model, dataset=token_rows())) == set()


def test_answers_lie_in_texts_of_their_own_lengths():
    model = seeded(hf.BertForQuestionAnswering, tiny_bert().config)
    rows = [
        {"input_ids": [5 + i] * (6 + i), "attention_mask": [1] * (6 + i), "start_positions": i, "end_positions": i + 1}
        for i in range(16)
    ]
    assert bad(debug_sample(model, dataset=rows, index=0)) == set()


def test_an_attribute_that_is_not_what_rows_hold_is_not_taken_for_the_labels():
    rows = Encoded(text_rows())
    rows.labels = [1, 2] * 8
    assert bad(debug_sample(tiny_bert(), dataset=rows, index=0)) == set()


def test_a_class_may_be_missing_from_what_is_looked_at_where_training_has_it(tmp_path):
    trainer = trainer_of(tiny_bert(), tmp_path, train_dataset=ragged_rows())
    assert bad(debug_sample(trainer, dataset=relabelled([0] * 16))) == set()


def test_labels_of_a_subset_are_read_without_its_rows():
    rows = Encoded(relabelled(ONE_STRANGER * 100, text_rows(1600)))
    report = debug_sample(tiny_bert(), dataset=Subset(rows, range(1600)), index=0)
    assert "Row 15 of the data set given has the label 2" in report["label_range"].message
    assert rows.made <= 4
