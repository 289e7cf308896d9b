"""What the report says, and which row it is about."""

import json

import pytest
import torch
import transformers as hf
from datasets import Dataset
from torch.utils.data import IterableDataset

from hf_freeze import BinaryClassificationMetrics, Check, FreezeError, SampleCheckError, SampleReport, debug_sample
from hf_freeze.debugging.sample_check import failed, ok, warning
from hf_freeze.debugging.table import without_consequences
from tests.debugging.subjects import named_rows, pooled, ragged_rows, tiny_lora, trainer_of, word_tokenizer
from tests.models import image_rows, text_batch, text_rows, tiny_bert, tiny_gpt2_lm, tiny_vit


def named_bert(**options):
    return tiny_bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1}, **options)


def test_the_screen_shows_sample_inputs_prediction_loss_and_model(tmp_path):
    trainer = trainer_of(named_bert(), tmp_path, rows=named_rows(["ham", "spam"]))
    report = debug_sample(trainer, index=1, backward=True, quiet=True)
    screen = str(report)
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    for part in (
        "row 1 of eval, 16 rows",
        "label            1 (spam)",
        "input_ids        1x",
        " int64 on cpu, ",
        "logits           1x2 float32 on cpu",
        "at 0.5: margin ",
        "no tuned threshold",
        "; cross entropy from the logits ",
        "; ln(2) = 0.6931",
        f"{count:,} of {count:,} parameters train (100.0 %); all in train mode",
        "bert.encoder     gradient ok 32",
        "ok      loss: The loss, ",
        "ok      gradients: 41 of 41 trainable parameters get a gradient.",
        " weights_finite, ",
        "0 failed, 0 warnings.",
    ):
        assert part in screen, part
    assert len(screen.splitlines()) <= 40
    assert max(map(len, screen.splitlines())) <= 120


def test_special_tokens_are_marked_and_counted():
    tokenizer = word_tokenizer()
    sample = {**tokenizer("w5 zz w6"), "labels": 1}
    for name, value in (("input_ids", 0), ("attention_mask", 0)):
        sample[name] = [*sample[name], value, value]
    report = debug_sample(tiny_bert(), sample, tokenizer=tokenizer, quiet=True)
    facts = report.facts["sample"]
    assert facts["text"] == "«[CLS]» w5 «[UNK]» w6 «[SEP]» «[PAD]» x 2"
    assert (facts["tokens"], facts["unknown"], facts["padding"]) == (5, 1, 2)


def test_label_probability_and_logits_are_the_models():
    model, row = tiny_bert().eval(), text_rows()[1]
    report = debug_sample(model, row, quiet=True)
    with torch.no_grad():
        output = model(**{key: torch.tensor([value]) for key, value in row.items()})
    assert torch.equal(report.logits, output.logits)
    assert report.probability == pytest.approx(float(output.logits.softmax(-1)[0, 1]), abs=1e-6)
    assert report.label == int(output.logits.argmax())
    assert report.loss == pytest.approx(float(output.loss), abs=1e-6)


@pytest.mark.parametrize("offset", [-0.01, 0.01])
@pytest.mark.parametrize("source", ["argument", "config", "metrics"])
def test_the_label_follows_the_tuned_threshold(tmp_path, source, offset):
    model, row = tiny_bert().eval(), text_rows()[1]
    margin = debug_sample(model, row, quiet=True).facts["output"]["margin"]
    threshold, options, metrics = margin + offset, {}, None
    if source == "argument":
        options = {"threshold": threshold}
    elif source == "config":
        model.config.decision_threshold = threshold
    else:
        metrics = BinaryClassificationMetrics(threshold=threshold)
    subject = model if metrics is None else trainer_of(model, tmp_path, compute_metrics=metrics)
    report = debug_sample(subject, row, quiet=True, **options)
    assert report.label == int(offset < 0)
    assert report.facts["output"]["distance"] == pytest.approx(-offset, abs=1e-6)
    assert f"tuned threshold {threshold:+.4f}" in str(report)


def test_three_classes_regression_and_tokens_have_readings_of_their_own():
    three = debug_sample(tiny_bert(num_labels=3), text_rows()[0], quiet=True)
    assert three.probability == pytest.approx(float(three.logits.softmax(-1).max()))
    one = debug_sample(tiny_bert(num_labels=1), {**text_rows()[0], "labels": 0.3}, quiet=True)
    assert (one.label, one.probability) == (None, None)
    assert one.facts["output"]["value"] == pytest.approx(float(one.logits))
    tokens = debug_sample(tiny_gpt2_lm(), {**text_rows()[0], "labels": text_rows()[0]["input_ids"]}, quiet=True)
    assert tokens.label is None
    assert tokens.facts["output"]["kind"] == "tokens"


def test_to_dict_is_json_also_with_infinite_logits():
    model = tiny_bert()
    model.classifier.bias.data[0] = float("inf")
    for subject in (model, tiny_bert(), tiny_gpt2_lm()):
        row = text_rows()[0]
        report = debug_sample(
            subject, {**row, "labels": row["input_ids"]} if subject is tiny_gpt2_lm else row, quiet=True
        )
        text = json.dumps(report.to_dict(), allow_nan=False)
        assert {"ok", "checks", "logits", "probability", "label", "sample", "inputs", "model"} <= json.loads(
            text
        ).keys()


def test_a_failed_check_raises_only_when_asked():
    model = tiny_bert()
    model.classifier.weight.data[:] = float("nan")
    report = debug_sample(model, text_rows()[0], quiet=True)
    assert not report.ok
    assert [check.name for check in report.failed] == ["weights_finite"]
    assert report["weights_finite"].status == "failed"
    with pytest.raises(SampleCheckError, match=r"1 of \d+ checks failed.\nweights_finite: classifier.weight") as raised:
        debug_sample(model, text_rows()[0], quiet=True, raise_on_failure=True)
    assert isinstance(raised.value, FreezeError)
    assert isinstance(raised.value.report, SampleReport)


def test_a_warning_is_ok_and_does_not_raise():
    report = debug_sample(tiny_bert(), "w7 " * 60, tokenizer=word_tokenizer(), quiet=True, raise_on_failure=True)
    assert report["truncated"].status == "warning"
    assert report.ok


def test_a_printed_report_is_on_the_screen_once(capsys):
    report = debug_sample(tiny_bert(), text_rows()[0])
    print(report)
    assert capsys.readouterr().out == f"{report}\n"
    shown = debug_sample(tiny_bert(), text_rows()[0], quiet=False)
    assert capsys.readouterr().out == f"{shown}\n"
    assert repr(report) == f"SampleReport(ok=True, checks={len(report.checks)}, not ok=[], label={report.label})"


def test_a_consequence_is_left_out_and_a_cause_is_not():
    checks = [warning("inputs", ""), failed("loss", ""), ok("gradients", ""), failed("optimizer", "")]
    assert [check.name for check in without_consequences(checks)] == ["inputs", "gradients", "optimizer"]
    assert without_consequences([Check("loss", "failed", "")]) == (Check("loss", "failed", ""),)


# --- which row


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(text_rows())


class Mapped(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return text_rows()[index]


def ids(report):
    return report.facts["inputs"]["input_ids"]


@pytest.mark.parametrize(
    "rows",
    [
        text_rows(),
        Dataset.from_list(text_rows()),
        Mapped(),
        Streamed(),
        Dataset.from_list(text_rows()).to_iterable_dataset(),
    ],
    ids=["list", "datasets", "torch", "iterable", "streamed"],
)
def test_every_kind_of_data_set_gives_its_row(rows):
    reports = [debug_sample(tiny_bert(), dataset=rows, index=index, quiet=True) for index in (0, 3)]
    expected = [debug_sample(tiny_bert(), text_rows()[index], quiet=True) for index in (0, 3)]
    assert [torch.equal(a.logits, b.logits) for a, b in zip(reports, expected, strict=True)] == [True, True]


def test_a_seed_repeats_a_draw_and_is_printed():
    drawn = [debug_sample(tiny_bert(), dataset=text_rows(), seed=seed, quiet=True) for seed in (7, 7, *range(8))]
    places = [report.facts["sample"]["index"] for report in drawn]
    assert places[0] == places[1]
    assert len(set(places)) > 3
    assert f"row {places[0]} of the data set given, 16 rows, drawn with seed 7" in str(drawn[0])
    free = debug_sample(tiny_bert(), dataset=text_rows(), quiet=True)
    again = debug_sample(tiny_bert(), dataset=text_rows(), seed=free.facts["sample"]["seed"], quiet=True)
    assert again.facts["sample"]["index"] == free.facts["sample"]["index"]


def test_the_last_row_by_a_negative_index_and_a_row_by_position():
    last = debug_sample(tiny_bert(), dataset=text_rows(), index=-1, quiet=True)
    assert last.facts["sample"]["index"] == 15
    assert debug_sample(tiny_bert(), 5, dataset=text_rows(), quiet=True).facts["sample"]["index"] == 5


def test_a_text_a_pair_and_a_text_with_its_label():
    tokenizer = word_tokenizer()
    assert debug_sample(tiny_bert(), "w5 w6", tokenizer=tokenizer, quiet=True).facts["sample"]["tokens"] == 4
    assert debug_sample(tiny_bert(), ("w5 w6", "w7"), tokenizer=tokenizer, quiet=True).facts["sample"]["tokens"] == 6
    report = debug_sample(named_bert(), {"text": "w5", "label": "spam"}, tokenizer=tokenizer, quiet=True)
    assert report.facts["sample"]["target_name"] == "spam"
    assert report.loss is not None


def test_a_data_set_of_texts_is_tokenized_for_a_model_alone():
    rows = [{"text": "w5 w6", "label": 0}, {"text": "w7", "label": 1}]
    report = debug_sample(tiny_bert(), dataset=rows, index=1, tokenizer=word_tokenizer(), quiet=True)
    assert "w7" in report.facts["sample"]["text"]
    assert report["loss"].status == "ok"


def test_a_row_that_is_a_batch_already():
    report = debug_sample(tiny_bert(), {key: value[:1] for key, value in text_batch().items()}, quiet=True)
    assert ids(report)["shape"] == [1, 8]


@pytest.mark.smoke
def test_the_trainers_sets_by_name(tmp_path):
    trainer = trainer_of(tiny_bert(), tmp_path, rows={"one": text_rows(3), "two": text_rows(5)}, tokenizer=None)
    trainer.train_dataset = text_rows(7)
    origins = {
        name: debug_sample(trainer, dataset=name, quiet=True).facts["sample"]["origin"]
        for name in ("eval", "one", "two", "eval_two", "train")
    }
    assert [origin.split(", ")[1] for origin in origins.values()] == ["3 rows", "3 rows", "5 rows", "5 rows", "7 rows"]


def test_without_an_eval_set_the_training_set_is_taken_and_named(tmp_path):
    trainer = hf.Trainer(tiny_bert(), trainer_of(tiny_bert(), tmp_path).args, train_dataset=text_rows())
    assert "no eval set" in debug_sample(trainer, quiet=True).facts["sample"]["origin"]


# --- mistakes of the caller


def call(subject=None, **options):
    debug_sample(tiny_bert() if subject is None else subject, **{"quiet": True, **options})


MISTAKES = {
    "no data": ({}, "has no data of its own.*Give dataset="),
    "index out of range": ({"dataset": text_rows(), "index": 16}, "index=16 is out of range.*16 rows, 0 to 15"),
    "no rows": ({"dataset": []}, "has no rows"),
    "an iterable that ends": ({"dataset": Streamed(), "index": 99}, "ended before row 99"),
    "an iterator": ({"dataset": iter(text_rows())}, "would lose the row"),
    "several sets": ({"dataset": {"a": text_rows()}}, "dict of .'a'."),
    "no data set at all": ({"dataset": 3.5}, "neither rows by index"),
    "text without a tokenizer": ({"sample": "w5"}, "no tokenizer was found.*tokenizer="),
    "keys that the model does not need": (
        {"sample": {"attention_mask": [1, 1], "labels": 0}},
        "'attention_mask'.*needs input_ids",
    ),
    "an empty row": ({"sample": {}}, "has no keys"),
    "several rows": ({"sample": text_batch(4)}, "batch of 4 rows"),
    "a strange sample": ({"sample": 3.5}, "3.5 is a float"),
    "unknown checks": ({"checks": "all", "sample": text_rows()[0]}, "checks='all'"),
    "unknown threshold": ({"threshold": "best", "sample": text_rows()[0]}, "threshold='best'"),
    "no model": ({"subject": 3}, "int, neither a Trainer nor a torch module"),
    "meta device": ({"subject": tiny_vit().to("meta"), "dataset": image_rows()}, "meta device"),
    "lazy": ({"subject": torch.nn.LazyLinear(3), "dataset": text_rows()}, "lazy module"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_says_what_was_given_and_what_to_do(name):
    options, message = MISTAKES[name]
    with pytest.raises(FreezeError, match=message):
        call(**options)


def test_a_set_that_the_trainer_does_not_have(tmp_path):
    trainer = trainer_of(tiny_bert(), tmp_path)
    with pytest.raises(FreezeError, match="dataset='test' is not a data set of this Trainer; it has .'eval'."):
        call(trainer, dataset="test")
    with pytest.raises(FreezeError, match="has no train_dataset"):
        call(trainer, dataset="train")


def test_inputs_that_a_module_of_ones_own_needs_are_named():
    with pytest.raises(FreezeError, match=r"\['ids', 'labels'\].*forward needs input_ids"):
        call(pooled(), sample={"ids": [1, 2], "labels": 0})


# --- cost


@pytest.mark.parametrize("build", [tiny_bert, named_bert, tiny_lora])
def test_full_checks_cost_at_most_twelve_forward_passes(tmp_path, build):
    """Counted in rows times tokens; a backward pass counts as two forward passes."""
    model, counted = build(), []

    def count(module, args, kwargs):
        counted.append(kwargs["input_ids"].numel())

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    report = debug_sample(model, dataset=ragged_rows(), index=0, checks="full", backward=True, quiet=True)
    handle.remove()
    length = report.facts["inputs"]["input_ids"]["shape"][1]
    assert sum(counted) / length + 2 == pytest.approx(report.facts["cost"], abs=0.01)
    assert report.facts["cost"] <= 12
    fast = debug_sample(build(), dataset=ragged_rows(), index=0, quiet=True)
    assert fast.facts["cost"] <= 7
