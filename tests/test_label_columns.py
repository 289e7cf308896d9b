"""One definition of the label column, seen from the functions that read rows."""

import pytest
import transformers as hf
from datasets import Dataset

from hf_freeze import FreezeError, debug_sample, extract_features, suggest_layers
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
