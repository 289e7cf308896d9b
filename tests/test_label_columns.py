"""One definition of the label column, seen from the functions that read rows."""

import pytest
import transformers as hf
from datasets import Dataset

from hf_freeze import FreezeError, debug_sample, extract_features, suggest_layers
from hf_freeze.label_columns import label_columns
from hf_freeze.reporting.layers.labelled_batches import LabelledBatches
from tests import models


def rows(column):
    return [{"input_ids": [5 + i % 2, 6, 7, 8], "attention_mask": [1] * 4, column: i % 2} for i in range(24)]


@pytest.mark.parametrize("form", [list, Dataset.from_list])
@pytest.mark.parametrize("column", ["label", "labels", "label_ids"])
def test_every_function_takes_the_same_columns_for_the_label(column, form):
    data = form(rows(column))
    assert extract_features(models.tiny_bert(), data)[column]
    assert suggest_layers(models.tiny_bert(), data, folds=2, show_progress=False).rows == 24
    if column == "label_ids":
        return  # transformers' default collator itself takes lists alone there, which debug_sample reports
    assert "loss" in str(debug_sample(models.tiny_bert(), data[0], seed=0))


def test_a_column_that_was_named_comes_before_the_models_own():
    assert label_columns(models.tiny_bert(), given=["label_ids", "stars"])[:3] == ("label_ids", "stars", "labels")


def test_a_number_that_forward_takes_is_no_label_column():
    class Smoothed(hf.BertForSequenceClassification):
        def forward(self, input_ids, labels=None, label_smoothing=0.1):
            return super().forward(input_ids, labels=labels)

    assert label_columns(Smoothed(models.tiny_bert().config))[0] == "labels"
    assert "label_smoothing" not in label_columns(Smoothed(models.tiny_bert().config))


def test_where_an_answer_begins_is_no_class():
    model = hf.BertForQuestionAnswering(models.tiny_bert().config)
    answers = [{**row, "start_positions": 1, "end_positions": 2} for row in rows("other")]
    for row in answers:
        del row["other"]
    with pytest.raises(FreezeError, match="no labels to learn"):
        suggest_layers(model, answers, folds=2, show_progress=False)

    both = [{**row, "label": index % 2} for index, row in enumerate(answers)]
    batch = LabelledBatches(model, None, None)(both)
    assert batch["labels"].tolist() == [0, 1] * 12
    assert not {"start_positions", "end_positions"} & batch.keys()
