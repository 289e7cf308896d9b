"""`hf-freeze debug` in the shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_freeze.reporting.cli import main
from tests.debugging.subjects import tiny_lora, word_tokenizer
from tests.models import tiny_bert


@pytest.fixture
def folder(tmp_path):
    model = tiny_bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1})
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_the_installed_command_prints_the_report(folder):
    command = [str(Path(sys.executable).with_name("hf-freeze"))]
    if not Path(command[0]).exists():
        command = [sys.executable, "-m", "hf_freeze.reporting.cli"]
    done = subprocess.run(
        [*command, "debug", str(folder), "--text", "w5 w6"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "«[CLS]» w5 w6 «[SEP]»" in done.stdout
    assert "0 failed, 0 warnings." in done.stdout


@pytest.mark.parametrize("label", ["spam", "1"])
def test_a_pair_with_a_label_full_checks_and_gradients(folder, capsys, label):
    options = ["--text_pair", "w7", "--label", label, "--checks", "full", "--backward", "--json"]
    assert main(["debug", str(folder), "--text", "w5", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sample"]["text"] == "«[CLS]» w5 «[SEP]» w7 «[SEP]»"
    assert report["sample"]["target_name"] == "spam"
    assert report["loss"]["kind"] == "cross entropy"
    assert set(report["gradients"].values()) == {"ok"}


def test_a_failed_check_is_exit_status_1(folder, capsys):
    model = tiny_bert()
    model.classifier.weight.data[:] = float("nan")
    model.save_pretrained(folder)
    assert main(["debug", str(folder), "--text", "w5"]) == 1
    assert "FAILED  weights_finite: classifier.weight" in capsys.readouterr().out


def test_an_adapter_folder_is_read_with_the_tokenizer_of_its_base(folder, tmp_path, capsys):
    model = tiny_lora()
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    assert main(["debug", str(tmp_path / "adapter"), "--text", "w5", "--threshold", "100", "--label", "0"]) == 0
    assert "0 (ham) at the tuned threshold +100.0000" in capsys.readouterr().out


def test_mistakes_are_exit_status_2_and_one_line(folder, tmp_path, capsys):
    assert main(["debug", str(folder), "--text", "w5", "--label", "eggs"]) == 2
    assert "neither a class id from 0 to 1 nor one of the model's labels ['ham', 'spam']" in capsys.readouterr().err
    assert main(["debug", str(tmp_path / "nowhere"), "--text", "w5"]) == 2
    assert capsys.readouterr().err.startswith("hf-freeze: ")
    with pytest.raises(SystemExit) as stopped:
        main(["debug"])
    assert stopped.value.code == 2
    assert torch.is_grad_enabled()
