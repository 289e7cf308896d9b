"""Every shape that a Trainer or a user holds in hand becomes one margin and one class per row."""

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_freeze import FreezeError, binary_margin
from hf_freeze.binary.labelled_rows import binary_labels

PAIRS = [[0.0, 2.0], [1.5, 0.5], [-1.0, -1.0]]
MARGINS = [2.0, -1.0, 0.0]
HIDDEN = np.zeros((3, 4, 5))


@pytest.mark.parametrize(
    "logits",
    [
        PAIRS,
        np.array(PAIRS),
        np.array(PAIRS, np.float16),
        MARGINS,
        np.array(MARGINS),
        np.array(MARGINS)[:, None],
        (np.array(PAIRS), HIDDEN),
        (HIDDEN, np.array(PAIRS)),
        {"loss": None, "logits": np.array(PAIRS), "attentions": HIDDEN},
        {"scores": np.array(PAIRS)},
        [np.array(PAIRS[:2]), np.array(PAIRS[2:])],
        [(np.array(PAIRS[:1]), HIDDEN[:1]), (np.array(PAIRS[1:]), HIDDEN[1:])],
    ],
)
def test_every_shape_of_numpy_logits_gives_one_float32_margin_per_row(logits):
    margin = binary_margin(logits)
    assert margin.dtype == np.float32
    assert margin.tolist() == MARGINS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: SequenceClassifierOutput(logits=x), lambda x: [x[:2], x[2:]]])
def test_torch_logits_give_a_torch_margin(dtype, wrap):
    margin = binary_margin(wrap(torch.tensor(PAIRS, dtype=dtype, requires_grad=True)))
    assert margin.dtype == torch.float32
    assert not margin.requires_grad
    assert margin.tolist() == MARGINS


def test_half_precision_is_upcast_before_the_subtraction():
    # In bfloat16 the difference of these two rounds to 256.
    pair = torch.tensor([[-1.0078125, 256.0]], dtype=torch.bfloat16)
    assert binary_margin(pair).tolist() == [257.0078125]
    assert float(pair[0, 1] - pair[0, 0]) != 257.0078125


def test_the_other_class_may_be_the_positive_one():
    assert binary_margin(PAIRS, positive=0).tolist() == [-2.0, 1.0, 0.0]
    assert binary_margin(MARGINS, positive=0).tolist() == [-2.0, 1.0, 0.0]
    with pytest.raises(FreezeError, match="positive=2"):
        binary_margin(PAIRS, positive=2)


@pytest.mark.parametrize(
    "logits", [np.zeros((4, 3)), torch.zeros(4, 7), np.zeros((4, 0)), np.float64(1.0), np.zeros((2, 2, 3))]
)
def test_logits_that_are_not_binary_are_an_error(logits):
    with pytest.raises(FreezeError, match=r"Logits of shape .* are not binary"):
        binary_margin(logits)


def test_a_tuple_without_any_logits_is_an_error():
    with pytest.raises(FreezeError, match=r"None of \[\(3, 4, 5\), 'str'\]"):
        binary_margin((HIDDEN, "logits"))


def softmaxed(n, dtype=torch.float32):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).softmax(-1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_ends_in_softmax_is_an_error(dtype):
    with pytest.raises(FreezeError, match=r"probabilities, not logits.*softmax"):
        binary_margin(softmaxed(64, dtype))


def test_a_model_that_ends_in_sigmoid_is_an_error():
    with pytest.raises(FreezeError, match="probabilities, not logits.*sigmoid"):
        binary_margin(np.linspace(0.01, 0.99, 64))


@pytest.mark.parametrize(
    "logits",
    [
        softmaxed(31),
        np.linspace(0.0, 1.0, 31),
        np.linspace(0.1, 0.4, 64),  # an untrained head: a small positive bias
        np.linspace(-0.1, 0.9, 64),
        np.random.default_rng(0).random((64, 2)),
        np.full((64, 2), np.nan),
    ],
)
def test_logits_that_only_resemble_probabilities_are_accepted(logits):
    assert len(binary_margin(logits)) == len(logits)


def test_logits_can_be_vouched_for():
    assert binary_margin(np.linspace(0.0, 1.0, 64), head="logits")[-1] == 1.0


@pytest.mark.parametrize("form", [lambda p: p, lambda p: p[:, None], lambda p: np.stack([1 - p, p], 1)])
@pytest.mark.parametrize("tensor", [np.asarray, torch.as_tensor])
def test_probabilities_become_log_odds(form, tensor):
    p = np.array([0.1, 0.5, 0.9])
    margin = binary_margin(tensor(form(p)), head="probability")
    np.testing.assert_allclose(np.asarray(margin), np.log(p / (1 - p)), rtol=1e-6, atol=1e-7)


def test_certain_probabilities_become_infinite_margins():
    assert binary_margin(np.array([0.0, 1.0]), head="probability").tolist() == [-np.inf, np.inf]


def test_values_outside_zero_and_one_are_no_probabilities():
    with pytest.raises(FreezeError, match=r"run from -0\.1 to 1\.2"):
        binary_margin(np.array([-0.1, 1.2]), head="probability")


def test_an_unknown_head_is_an_error():
    with pytest.raises(FreezeError, match="head='sigmoid'"):
        binary_margin(MARGINS, head="sigmoid")


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1],
        [False, True, True],
        np.array([0.0, 1.0, 1.0], np.float32),
        np.array([[0], [1], [1]]),
        np.array([[1, 0], [0, 1], [0, 1]]),
        torch.tensor([0, 1, 1]),
        torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.bfloat16),
        [np.array([0, 1]), np.array([1])],
        {"labels": np.array([0, 1, 1])},
        (np.array([0, 1, 1]), np.zeros((3, 2, 2))),
    ],
)
def test_every_form_of_labels_gives_one_class_per_row(labels):
    positive, counted = binary_labels(labels)
    assert positive.tolist() == [False, True, True]
    assert counted.all()
    assert binary_labels(labels, positive=0)[0].tolist() == [True, False, False]


def test_names_become_classes_through_label2id():
    label2id = {"ham": 0, "spam": 1}
    assert binary_labels(["ham", "spam"], label2id=label2id)[0].tolist() == [False, True]
    with pytest.raises(FreezeError, match=r"eggs.*\['ham', 'spam'\]"):
        binary_labels(["ham", "eggs"], label2id=label2id)
    with pytest.raises(FreezeError, match=r"names \(ham, spam\)\. Give id2label"):
        binary_labels(["ham", "spam"])


@pytest.mark.parametrize("labels", [[0, 1, -100], [0.0, 1.0, -100.0], np.array([[1, 0], [0, 1], [-100, -100]])])
def test_rows_labelled_minus_100_do_not_count(labels):
    assert binary_labels(labels)[1].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "include 2"),
        ([-1, 1], "include -1"),
        ([0.0, 0.3, 1.0], r"include 0\.3"),
        ([0.0, np.nan], "include nan"),
        (list(range(20)), "include 2, 3, 4, 5, 6 and 13 more"),
        (np.array([[1, 1], [0, 1]]), r"one-hot, but .* \[1, 1\]"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
    ],
)
def test_labels_that_are_not_binary_are_an_error_that_names_them(labels, message):
    with pytest.raises(FreezeError, match=message):
        binary_labels(labels)
