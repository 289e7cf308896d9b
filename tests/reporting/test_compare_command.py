"""`hf-freeze compare` in the shell."""

import json

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from hf_freeze.reporting.cli import main
from hf_freeze.reporting.comparison import compare_command
from hf_freeze.reporting.comparison.comparison import Comparison
from tests.debugging.subjects import word_tokenizer
from tests.models import tiny_bert

ROWS = [
    {"text": f"w{5 + index % 2} w{7 + index % 40} w{8 + index % 37}", "label": ("ham", "spam")[index % 2]}
    for index in range(80)
]


@pytest.fixture
def folder(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def command(folder, *more):
    files = [str(folder / "model"), str(folder / "texts.jsonl")]
    return main(["compare", *files, "--use_cpu", "--folder", str(folder / "kept"), "--learning_rate", "1e-2", *more])


def test_some_plans_are_compared_drawn_and_gone_on_with(folder, capsys):
    pytest.importorskip("matplotlib")
    plans = ["--plans", "linear-probe", "layer-decay", "last-layers:k=1", "--plot", str(folder / "drawn" / "it.png")]
    assert command(folder, *plans) == 0
    printed = capsys.readouterr()
    rows = [line.split()[0] for line in printed.out.splitlines()[1:4]]
    assert rows == ["linear-probe", "layer-decay", "last-layers:k=1"]
    assert "test F1" in printed.out
    assert printed.err.count("seed 42: validation loss") == 3
    assert (folder / "drawn" / "it.png").exists()
    before = {path: path.stat().st_mtime_ns for path in (folder / "kept" / "runs").iterdir()}
    assert len(before) == 3
    assert command(folder, *plans, "--json") == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == rows
    assert {path: path.stat().st_mtime_ns for path in (folder / "kept" / "runs").iterdir()} == before


def test_rows_that_are_only_evaluated_come_longest_first(folder, monkeypatch):
    lines = [{"text": " ".join(["w5"] * (1 + index % 13)), "label": ("ham", "spam")[index % 2]} for index in range(26)]
    lines = [{**line, "text": f"{line['text']} w{index + 6}"} for index, line in enumerate(lines)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = {}
    monkeypatch.setattr(compare_command, "compare", lambda *_, **named: given.update(named) or Comparison(runs=[]))
    assert command(folder) == 0
    for part in ("eval_dataset", "test_dataset"):
        lengths = [len(row["input_ids"]) for row in given[part]]
        assert lengths == sorted(lengths, reverse=True)
        assert len(set(lengths)) > 1
    lengths = [len(row["input_ids"]) for row in given["train_dataset"]]
    assert lengths != sorted(lengths, reverse=True)


def test_mistakes_are_one_line_and_exit_status_2(folder, capsys):
    assert command(folder, "--positive", "eggs") == 2
    assert capsys.readouterr().err == "hf-freeze: --positive 'eggs' is not one of the labels ['ham', 'spam'].\n"
    assert command(folder, "--label_column", "class") == 2
    assert "has no column 'class'; it has ['text', 'label']" in capsys.readouterr().err
    assert main(["compare", str(folder / "model"), str(folder / "texts.doc")]) == 2
    assert "is not a file that ends in one of csv, tsv" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--rows", "0"], "--rows 0: give a number above 0, at most 1,000,000,000,000."),
        (["--rows", "-5"], "--rows -5: give a number above 0, at most 1,000,000,000,000."),
        (["--batch_size", "0"], "--batch_size 0: give a number above 0, at most 1,000,000,000,000."),
        (["--max_length", "0"], "--max_length 0: give a number above 0, at most 1,000,000,000,000."),
        (["--epochs", "0"], "--epochs 0.0: give a number above 0, at most 1,000,000,000,000."),
        (["--epochs", "inf"], "--epochs inf: give a number above 0, at most 1,000,000,000,000."),
        (["--learning_rate", "0"], "--learning_rate 0.0: give a number above 0, at most 1,000,000,000,000."),
        (["--learning_rate", "nan"], "--learning_rate nan: give a number above 0, at most 1,000,000,000,000."),
        (["--seeds", "1", "-1"], "--seeds -1: give numbers from 0 to 4294967295."),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_a_file_is_looked_for(given, said, capsys):
    assert main(["compare", "no-model", "no-file.csv", *given]) == 2
    assert capsys.readouterr().err == f"hf-freeze: {said}\n"


def test_a_length_that_leaves_nothing_of_the_text_is_refused(folder, capsys):
    with_cls = AutoTokenizer.from_pretrained(folder / "model")
    with_cls.backend_tokenizer.post_processor = TemplateProcessing(
        single="w5 $0 w6", special_tokens=[("w5", 5), ("w6", 6)]
    )
    with_cls.save_pretrained(folder / "model")
    assert command(folder, "--max_length", "2") == 2
    assert "--max_length 2 leaves no token of the text: the tokenizer adds 2 itself" in capsys.readouterr().err


def test_a_comparison_of_a_csv_file_goes_on_too(folder, capsys):
    (folder / "texts.csv").write_text("text,label\n" + "\n".join(f"{row['text']},{row['label']}" for row in ROWS))
    files = [str(folder / "model"), str(folder / "texts.csv"), "--plans", "full", "--folder", str(folder / "kept")]
    for _ in range(2):
        assert main(["compare", *files, "--use_cpu"]) == 0
    assert len(list((folder / "kept" / "runs").iterdir())) == 1


def test_without_a_rate_it_is_the_trainers(folder, monkeypatch):
    given = {}
    monkeypatch.setattr(compare_command, "compare", lambda *_, **named: given.update(named) or Comparison(runs=[]))
    files = [str(folder / "model"), str(folder / "texts.jsonl")]
    assert main(["compare", *files, "--use_cpu"]) == 0
    assert given["args"].learning_rate == 5e-5


@pytest.mark.parametrize("given", [[], ["model"]])
def test_model_and_data_have_to_be_named(given, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *given])
    assert stopped.value.code == 2
    assert "are required: " in capsys.readouterr().err
