"""The summary says what is trainable, part by part, and where freezing was only meant."""

import pytest
import torch
from torch import nn

from hf_freeze import freeze, trainable_summary
from tests.models import tiny_bart, tiny_bert, tiny_gpt2_lm
from tests.selection.architectures import ARCHITECTURES


def rows(model):
    return {row.part: row for row in trainable_summary(model).rows}


def test_there_is_a_row_for_every_part_and_every_layer():
    model = tiny_bert()
    freeze(model, ["backbone", "!layers[-1]"])
    found = {part: (row.parameters, row.trainable) for part, row in rows(model).items()}
    assert found == {
        "embeddings": (1600, 0),
        "layers[0]": (2224, 0),
        "layers[1]": (2224, 2224),
        "rest": (272, 0),
        "head": (34, 34),
    }


@pytest.mark.parametrize("row", ARCHITECTURES[::9], ids=lambda row: row.name)
def test_the_rows_add_up_to_the_model(row):
    model = row.build()
    freeze(model, "norms")
    summary = trainable_summary(model)
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.trainable == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert summary.bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert 0 < summary.trainable < summary.parameters


def test_layers_of_several_stacks_are_told_apart():
    assert {"model.encoder.layers[1]", "model.decoder.layers[2]"} <= rows(tiny_bart()).keys()


def test_tied_weights_count_once():
    assert trainable_summary(tiny_gpt2_lm()).parameters == sum(p.numel() for p in tiny_gpt2_lm().parameters())


def test_dtypes_and_bytes_are_those_of_the_tensors():
    model = tiny_bert()
    model.bert.encoder.layer[0].to(torch.bfloat16)
    model.classifier.bias.data = model.classifier.bias.data.double()
    found = rows(model)
    assert (found["layers[0]"].dtype, found["layers[0]"].bytes) == ("bfloat16", 2224 * 2)
    assert (found["head"].dtype, found["head"].bytes) == ("float32, float64", 32 * 4 + 2 * 8)


def test_it_prints_as_a_table_with_a_total():
    model = tiny_bert()
    freeze(model, "backbone")
    assert str(trainable_summary(model)).splitlines() == [
        "part        parameters  trainable  dtype    MiB",
        "embeddings       1,600          0  float32  0.0",
        "layers[0]        2,224          0  float32  0.0",
        "layers[1]        2,224          0  float32  0.0",
        "rest               272          0  float32  0.0",
        "head                34         34  float32  0.0",
        "total            6,354         34           0.0",
    ]


@pytest.mark.parametrize(
    ("path", "selection"), [("bert.encoder", "'bert.encoder'"), ("classifier", "'classifier'"), ("", "'all'")]
)
def test_requires_grad_set_on_a_module_is_remarked_on_with_what_to_write_instead(path, selection):
    model = tiny_bert()
    assert not trainable_summary(model).remarks
    model.get_submodule(path).requires_grad = False
    (remark,) = trainable_summary(model).remarks
    assert remark.startswith(f"{path or 'model'}.requires_grad = ... was set on a module")
    assert f"freeze(model, {selection})" in remark
    assert f"{path or 'model'}.requires_grad_(False)" in remark


def test_what_the_remark_advises_freezes():
    model = tiny_bert()
    freeze(model, "bert.encoder")
    assert rows(model)["layers[0]"].trainable == 0
    assert not trainable_summary(model).remarks


def test_a_model_without_parameters_has_an_empty_table():
    summary = trainable_summary(nn.ReLU())
    assert (summary.parameters, summary.trainable, summary.bytes) == (0, 0, 0)
    assert str(summary).splitlines()[-1].split() == ["total", "0", "0", "0.0"]
