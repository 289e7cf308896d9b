"""`hf-freeze plan` takes the flags of the arguments, prints the preview, and writes nothing but the picture."""

import json

import pytest

from hf_freeze import FreezeTrainingArguments, preview
from hf_freeze.reporting.cli import main
from tests.models import tiny_bert

PLAN = ["--trainable", "head", "norms", "--layer_lr_decay", "0.5", "--learning_rate", "0.01"]
PLAN += ["--unfreeze_stages", '[{"epoch": 1, "unfreeze": "layers[-1]"}]']
RUN = ["--rows", "16", "--per_device_train_batch_size", "4", "--use_cpu"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    tiny_bert().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    return "model"


def test_it_prints_what_preview_returns(model, capsys):
    assert main(["plan", model, *PLAN, *RUN]) == 0
    args = FreezeTrainingArguments(
        trainable=["head", "norms"],
        layer_lr_decay=0.5,
        learning_rate=0.01,
        unfreeze_stages=[{"epoch": 1, "unfreeze": "layers[-1]"}],
        per_device_train_batch_size=4,
        use_cpu=True,
    )
    assert capsys.readouterr().out == f"{preview(model, args, rows=16)}\n"


def test_json_and_picture(model, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["plan", model, *PLAN, *RUN, "--json", "--plot", "plan.png", "--tokens", "5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [stage["step"] for stage in printed["stages"]] == [0, 4]
    assert (printed["max_steps"], printed["batch"]) == (12, "4 rows of 5 tokens")
    assert {group["name"]: group["learning_rate"] for group in printed["stages"][1]["groups"]}["layers.1@1"] == 0.005
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "plan.png"]


def test_a_recipe_and_another_class(model, capsys):
    assert main(["plan", model, "--freeze_recipe", "gradual", "--auto_class", "AutoModelForMaskedLM", "--use_cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("BertForMaskedLM: ")
    assert "epoch 3" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainable", "haed"], "'haed' matches none"),
        (["--trainable", "head", "--freeze", "norms"], "exactly one of freeze= and trainable="),
        (["--plot", "plan.png"], "length of the run is not known"),
        (["--auto_class", "Nothing"], "'Nothing' is no model class"),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "load_best_model_at_end"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(model, capsys, tmp_path, flags, message):
    assert main(["plan", model, *flags, "--use_cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_help_lists_what_matters_for_a_plan(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    printed = capsys.readouterr().out
    for flag in ("--freeze", "--unfreeze_stages", "--group_lrs", "--layer_lr_decay", "--learning_rate", "--rows"):
        assert f"  {flag}" in printed
    assert len(printed.splitlines()) < 110
