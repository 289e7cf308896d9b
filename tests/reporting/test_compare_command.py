"""`hf-freeze compare` in the shell, and the files that it reads."""

import gzip
import json

import pytest
from datasets import Dataset

from hf_freeze.errors import FreezeError
from hf_freeze.reporting import compare_command, labelled_texts
from hf_freeze.reporting.cli import main
from hf_freeze.reporting.labelled_texts import load_texts
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
    monkeypatch.setattr(compare_command, "compare", lambda *_, **named: given.update(named))
    assert command(folder) == 0
    for part in ("eval_dataset", "test_dataset"):
        lengths = [len(row["input_ids"]) for row in given[part]]
        assert lengths == sorted(lengths, reverse=True)
        assert len(set(lengths)) > 1
    lengths = [len(row["input_ids"]) for row in given["train_dataset"]]
    assert lengths != sorted(lengths, reverse=True)


def test_mistakes_are_one_line_and_exit_status_2(folder, capsys):
    assert command(folder, "--positive", "eggs") == 2
    assert capsys.readouterr().err == "hf-freeze: --positive 'eggs' is none of the labels ['ham', 'spam'].\n"
    assert command(folder, "--label_column", "class") == 2
    assert "has no column 'class'; it has ['text', 'label']" in capsys.readouterr().err
    assert main(["compare", str(folder / "model"), str(folder / "texts.doc")]) == 2
    assert "is not a file that ends in one of csv, tsv" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "csv.gz"])
def test_files_of_every_kind_are_read(tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    data = Dataset.from_list([{"words": row["text"], "kind": row["label"], "more": 1} for row in ROWS])
    if kind == "parquet":
        data.to_parquet(path)
    elif kind.startswith("json"):
        data.to_json(path)
    else:
        data.to_csv(tmp_path / "plain.csv", sep="\t" if kind == "tsv" else ",")
        plain = (tmp_path / "plain.csv").read_bytes()
        path.write_bytes(gzip.compress(plain) if kind.endswith("gz") else plain)
    parts = load_texts(str(path), text="words", label="kind", rows=None)
    texts = {row["text"]: row["label"] for row in ROWS}
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 56, "test": 12, "validation": 12}
    for rows in parts.values():
        names = rows.features["label"].names
        assert all(texts[row["text"]] == names[row["label"]] for row in rows)
        assert sum(rows["label"]) == len(rows) // 2


def test_rows_are_kept_once_and_as_many_as_wanted(tmp_path):
    (tmp_path / "texts.jsonl").write_text(
        "\n".join(json.dumps(row) for row in [*ROWS, *ROWS, {"text": None, "label": "ham"}])
    )
    parts = load_texts(str(tmp_path / "texts.jsonl"), text="text", label="label", rows=40)
    texts = [text for rows in parts.values() for text in rows["text"]]
    assert len(texts) == len(set(texts)) == 40


def test_labels_that_are_not_two_are_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": str(i), "label": i % 3}) for i in range(30)))
    with pytest.raises(FreezeError, match="'label' has 3 values"):
        load_texts(str(tmp_path / "t.jsonl"), text="text", label="label", rows=None)


def test_without_a_file_the_rows_of_the_quickstart_are_used(monkeypatch, tmp_path):
    parts = load_texts(None, text="text", label="label", rows=200)
    assert parts["train"].features["label"].names == ["ham", "spam"]
    assert sum(map(len, parts.values())) == 200
    monkeypatch.setattr(labelled_texts, "SMS_SPAM", tmp_path / "none")
    with pytest.raises(FreezeError, match="in a clone of hf_freeze only"):
        load_texts(None, text="text", label="label", rows=None)


def test_without_a_model_that_of_the_quickstart_is_used_if_it_is_installed(monkeypatch):
    monkeypatch.setattr(labelled_texts, "find_spec", lambda name: None)
    with pytest.raises(FreezeError, match=r"hf_freeze\[examples\]"):
        labelled_texts.packaged_model()
