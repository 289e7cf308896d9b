"""Files of texts and labels are read as they are written, or refused in a line."""

import gzip
import json

import pytest
from datasets import ClassLabel, Dataset

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.comparison import labelled_texts
from hf_freeze.reporting.comparison.labelled_texts import load_texts

ROWS = [
    {"text": f"w{5 + index % 2} w{7 + index % 40} w{8 + index % 37}", "label": ("ham", "spam")[index % 2]}
    for index in range(80)
]


def load(path, **given):
    return load_texts(str(path), **{"text": "text", "label": "label", "rows": None, **given})


def written(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read(parts):
    """Text -> the name of its label."""
    names = parts["train"].features["label"].names
    return {row["text"]: names[row["label"]] for rows in parts.values() for row in rows}


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


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_labels_and_texts_that_look_like_nothing_are_what_is_written(tmp_path, kind):
    by = {"csv": ",", "tsv": "\t"}[kind]
    words = {"NA": "None", "null": "NA", "nan": "None", "0012": "NA", "1.50": "NA", "": "NA", "true": ""}
    lines = [f"{text}{by}{label}" for text, label in words.items()]
    lines += [f"t{index}{by}{('None', 'NA')[index % 2]}" for index in range(40)]
    found = read(load(written(tmp_path / f"t.{kind}", [f"text{by}label", *lines])))
    assert {text: found.get(text) for text in words} == {**words, "": None, "true": None}
    assert len(found) == 45


def test_other_columns_may_hold_what_they_like(tmp_path):
    rows = [f"{index if index < 70 else 'x'},t{index},{index % 2}" for index in range(80)]
    assert len(read(load(written(tmp_path / "t.csv", ["more,text,label", *rows])))) == 80


def test_quoted_texts_may_have_lines_and_commas_at_the_end_of_a_block_too(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled_texts, "_LARGEST_ROW", 64)
    texts = [f'a{index} "b", c\nd' for index in range(40)]
    rows = ['"' + text.replace('"', '""') + f'",{"xy"[index % 2]}' for index, text in enumerate(texts)]
    found = read(load(written(tmp_path / "t.csv", ["text,label", *rows])))
    assert found == {text: "xy"[index % 2] for index, text in enumerate(texts)}


def test_labels_that_have_names_keep_them(tmp_path):
    rows = [{"text": f"t{index}", "label": index % 2} for index in range(40)]
    data = Dataset.from_list(rows).cast_column("label", ClassLabel(names=["z", "a"]))
    data.to_parquet(tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet")["train"].features["label"].names == ["z", "a"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "", "t.csv' cannot be read as csv: "),
        ("t.json", "", "t.json' cannot be read as json: "),
        ("t.jsonl", "{]", "t.jsonl' cannot be read as jsonl: "),
        ("t.parquet", "no", "t.parquet' cannot be read as parquet: "),
        ("t.csv", "text,label\na,b,c\n", "cannot be read as csv: .*Expected 2 columns, got 3"),
        ("t.csv", "text,label\n", "t.csv' has no rows"),
        ("t.csv", "text,label\n,x\ny,\n", "No row has both a text, in 'text', and a label, in 'label'"),
        ("t.csv", "words,label\na,b\n", r"has no column 'text'; it has \['words', 'label'\]"),
        ("t.json", '[{"text": 1, "label": 0}]', r"'text' of .* has no texts, but Value\('int64'\)"),
        ("t.json", '[{"text": "a", "label": [0]}]', "'label' of .* has no single labels, but List"),
        ("t.csv", "text,label\na,x\nb,y\nc,y\n", "3 rows, 1 of them 'x', 2 of them 'y': too few to have both labels"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(FreezeError, match=said):
        load(tmp_path / name)


def test_a_label_too_rare_for_every_part_is_refused(tmp_path):
    rows = [f"t{index},{'rare' if index < 2 else 'often'}" for index in range(60)]
    with pytest.raises(FreezeError, match="60 rows, 58 of them 'often', 2 of them 'rare': too few to have both"):
        load(written(tmp_path / "t.csv", ["text,label", *rows]))
