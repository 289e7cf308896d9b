"""`hf-freeze` ends in an exit status and one line, whatever was typed and whatever the files hold."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from peft import LoraConfig, get_peft_model

from hf_freeze.errors import FreezeError
from hf_freeze.reporting import cli
from hf_freeze.reporting.cli import main
from tests.debugging.subjects import word_tokenizer
from tests.installed import since
from tests.models import tiny_bert

CHECKED = since("5.8", "it takes any value in a configuration, and fails where the model uses it")
ROWS = [{"text": f"w{5 + index % 2} w{7 + index}", "label": ("ham", "spam")[index % 2]} for index in range(30)]
HUGE = "9" * 30


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_bert(id2label={0: "ham", 1: "spam"}, label2id={"ham": 0, "spam": 1}).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(saved, tmp_path, monkeypatch):
    """A folder with a model and a file of texts, which is the current one."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys, *typed):
    """Run a command that has to be refused; return the one line it ends with."""
    capsys.readouterr()
    try:
        status = main(typed)
    except SystemExit as stopped:  # argparse: usage, then one line
        status = stopped.code
        error = capsys.readouterr().err.splitlines()[-1]
    else:
        error = capsys.readouterr().err
        assert error.endswith("\n")
        assert error.count("\n") == 1, error
    assert status == 2, error
    assert "unexpected" not in error
    assert "Traceback" not in error
    return error


def commands(model, data="texts.jsonl"):
    return {
        "plan": ["plan", model, "--trainable", "head", "--use_cpu"],
        "debug": ["debug", model, "--text", "w5 w6"],
        "compare": ["compare", model, data, "--use_cpu", "--plans", "full", "--folder", "kept"],
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--freeze_recipe", "gradual:every_epochs=[1"], "is not option=number"),
        (["--freeze_recipe", "gradual:every_epochs="], "is not option=number"),
        (["--freeze_recipe", "gradual:every_epochs={a: 1}"], "is not option=number"),
        (["--freeze_recipe", "gradual:every_epochs=1:2"], "is not option=number"),
        (["--freeze_recipe", "gradual:every_epochs=nan"], "every_epochs must be above 0"),
        (["--freeze_recipe", "gradual:layers_per_stage=1e400"], "layers_per_stage a whole number"),
        (["--freeze_recipe", "last-layers:k=1.5"], "whole number of at least 1"),
        (["--freeze_recipe", "last-layers:k=*"], "is not option=number"),
        (["--freeze_recipe", "lp-ft:probe=inf"], "between 0 and 1"),
        (["--freeze_recipe", ""], "is not a recipe"),
        (["--freeze_recipe", "lp-ft:probe=2e0"], "between 0 and 1"),
        (["--trainable", "re:("], "not a valid regular expression"),
        (["--trainable", ""], "empty term"),
        (["--trainable", "head", "--unfreeze_stages", "nothing.yaml"], "cannot be read"),
        (["--trainable", "head", "--unfreeze_stages", '[{"epoch": "a", "unfreeze": "all"}]'], "epoch"),
        (["--trainable", "head", "--group_lrs", "{"], "is not JSON"),
        (["--trainable", "head", "--group_lrs", '{"head": "a"}'], "not a finite number"),
        (["--learning_rate", "-1"], "--learning_rate -1"),
        (["--learning_rate", "nan"], "--learning_rate nan"),
        (["--learning_rate", "1e400"], "--learning_rate inf"),
        (["--weight_decay", "-1"], "--weight_decay -1"),
        (["--warmup_steps", "inf"], "--warmup_steps inf"),
        (["--warmup_steps", "nan"], "--warmup_steps nan"),
        (["--num_train_epochs", "nan", "--rows", "9"], "--num_train_epochs nan"),
        (["--unfreeze_warmup", "-1"], "--unfreeze_warmup -1"),
        (["--layer_lr_decay", "nan"], "layer_lr_decay=nan"),
        (["--rows", HUGE], f"--rows {HUGE}"),
        (["--tokens", HUGE], f"--tokens {HUGE}"),
        (["--rows", "ten"], "invalid int value"),
        (["--optim", "nonesuch"], "invalid choice"),
        (["--lr_scheduler_kwargs", "[1]", "--max_steps", "5"], "lr_scheduler_kwargs"),
        (["--accelerator_config", "nothing.json"], "nothing.json"),
        (["--nonsense"], "unrecognized arguments"),
        (["--auto_class", ""], "not a model class"),
    ],
)
def test_a_mistake_in_a_flag_of_plan_is_one_line(here, capsys, given, said):
    own = [] if given[0] in ("--freeze_recipe", "--trainable") else ["--trainable", "head"]
    assert said in refusal(capsys, "plan", "model", "--use_cpu", *own, *given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((["--label", label], "a class id from 0 to 1") for label in ("nan", "inf", "1.7", "1e400", "", "x", "0x1")),
        (["--label=-inf"], "a class id from 0 to 1"),
        *((["--seed", seed], "give numbers from 0 to 4294967295") for seed in ("-1", "4294967296", HUGE)),
        (["--seed", "1.5"], "invalid int value"),
        *((["--threshold", value], "give a finite margin") for value in ("nan", "inf", "1e308")),
        (["--checks", "most"], "invalid choice"),
        (["--text_pair", "\udcff"], "is not UTF-8"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_a_mistake_in_a_flag_of_debug_is_one_line(here, capsys, given, said):
    assert said in refusal(capsys, "debug", "model", "--text", "w5", *given)


def test_a_model_with_one_output_takes_any_finite_label(here, capsys):
    tiny_bert(num_labels=1).save_pretrained("one")
    word_tokenizer().save_pretrained("one")
    assert main(["debug", "one", "--text", "w5", "--label", "1.7"]) == 0
    assert "a finite number" in refusal(capsys, "debug", "one", "--text", "w5", "--label", "nan")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--plans", "nonesuch"], "is not a recipe"),
        (["--plans", "gradual:every_epochs=[1"], "is not option=number"),
        (["--plans", ""], "is not a recipe"),
        (["--rows", "3"], "too few"),
        (["--rows", "1.5"], "invalid int value"),
        (["--max_length", HUGE], f"--max_length {HUGE}"),
        (["--batch_size", HUGE], f"--batch_size {HUGE}"),
        (["--seeds", "1", "1"], "different whole numbers"),
        (["--seeds", "x"], "invalid int value"),
        (["--positive", ""], "not one of the labels"),
        (["--text_column", "nothing"], "has no column 'nothing'"),
        (["--text_column", "label", "--label_column", "label"], "give two columns"),
        (["--folder", "texts.jsonl"], "texts.jsonl"),
        (["--folder", "texts.jsonl/kept"], "texts.jsonl"),
        (["--plot", "picture.doc"], "not a picture format"),
        (["--plot", "model"], "is a folder"),
        (["--plot", "texts.jsonl/a.png"], "texts.jsonl"),
    ],
)
def test_a_mistake_in_a_flag_of_compare_is_one_line(here, capsys, given, said):
    assert said in refusal(capsys, *commands("model")["compare"], *given)


@pytest.mark.parametrize("command", ["plan", "debug", "compare"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "There is no folder ''"),
        ("no/such/folder", "There is no folder 'no/such/folder'"),
        ("./nowhere", "There is no folder './nowhere'"),
        ("/nowhere", "There is no folder '/nowhere'"),
        ("nowhere", "There is no folder 'nowhere'"),
        ("empty", "holds no model: it has no config.json"),
        ("run", "Its newest checkpoint is 'run/checkpoint-20'"),
        ("texts.jsonl", "is a file"),
    ],
)
def test_a_model_that_is_not_there_is_one_line_about_folders(here, capsys, command, name, said):
    (here / "empty").mkdir()
    for step in (3, 20):
        (here / "run" / f"checkpoint-{step}").mkdir(parents=True)
    message = refusal(capsys, *commands(name)[command])
    assert said in message
    assert "epo id" not in message  # that the hub calls its names so helps nobody who mistyped a folder


@pytest.mark.parametrize("command", ["plan", "debug", "compare"])
@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "many"},
        {"hidden_size": None},
        {"hidden_size": 31},
        {"num_hidden_layers": "2"},
        {"num_attention_heads": 0},
        {"vocab_size": -5},
        {"hidden_act": "nonesuch"},
        pytest.param({"hidden_act": 3}, marks=CHECKED),
        pytest.param({"layer_norm_eps": "small"}, marks=CHECKED),
        {"model_type": "nonesuch"},
        {"model_type": None},
        {"id2label": ["ham", "spam"]},
    ],
    ids=json.dumps,
)
def test_a_configuration_with_a_wrong_value_is_one_line(here, capsys, command, change):
    file = here / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert "'model'" in refusal(capsys, *commands("model")[command])


@pytest.mark.parametrize("command", ["plan", "debug"])  # a comparison names the labels itself
def test_labels_that_are_no_mapping_are_one_line(here, capsys, command):
    file = here / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "label2id": "ham"}))
    assert "label2id" in refusal(capsys, *commands("model")[command])


@pytest.mark.parametrize("command", ["plan", "debug", "compare"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe\x00"], ids=repr)
def test_a_configuration_that_is_none_is_one_line(here, capsys, command, content):
    (here / "model" / "config.json").write_bytes(content)
    assert "'model'" in refusal(capsys, *commands("model")[command])


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00", b'{"a": 1}'], ids=repr)
def test_damaged_weights_and_tokenizers_are_one_line(here, capsys, file, content):
    path = here / "model" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for command in ("debug", "compare"):
        assert "'model'" in refusal(capsys, *commands("model")[command])


@pytest.mark.parametrize("base", ["", None, 5, "/nowhere"])
def test_adapters_without_their_model_are_one_line(here, capsys, base):
    adapted = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    adapted.save_pretrained("adapters")
    file = here / "adapters" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))
    for command in ("plan", "debug", "compare"):
        assert "'/nowhere'" if base == "/nowhere" else "'adapters'" in refusal(capsys, *commands("adapters")[command])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "cannot be read"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text\nx\n", "has no column 'label'"),
        ("a.csv", b"\xff\xfe\x00\x01\n\x80", "cannot be read"),
        ("a.csv", b'text,label\n"never closed,1\n', "cannot be read"),
        ("a.csv", b"text,label\nx,1,2,3\ny,0\n", "cannot be read"),
        ("a.csv", b"text,label\n,1\n,0\n", "No row has both"),
        ("a.csv", b"text,label\n" + b"x,1\n" * 30, "a comparison needs two"),
        ("a.csv", b"text,text,label\nx,y,1\n", "text"),
        ("a.csv.gz", b"text,label\nx,1\n", "cannot be read"),
        ("b.csv.gz", gzip.compress(b"text,label\nx,1\n", mtime=0)[:-12], "cannot be read"),
        ("a.json", b"", "cannot be read"),
        ("a.json", b"7", "cannot be read"),
        ("a.json", b"[]", "a.json"),
        ("a.json", b"[1, 2]", "a.json"),
        ("a.jsonl", b'{"text": "x"', "cannot be read"),
        ("a.jsonl", b'{"text": 1, "label": 1}', "has no texts"),
        ("a.jsonl", b'{"text": "x", "label": [1]}', "no single labels"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.xlsx", b"", "is not a file that ends in one of"),
        ("a", b"text,label\nx,1\n", "is not a file that ends in one of"),
    ],
)
def test_a_file_that_holds_no_texts_is_one_line(here, capsys, name, content, said):
    (here / name).write_bytes(content)
    assert said in refusal(capsys, *commands("model", name)["compare"])


def test_a_folder_with_the_name_of_a_file_and_no_file_are_one_line(here, capsys):
    (here / "a.csv").mkdir()
    for name in ("a.csv", "none.csv"):
        assert "is not a file that ends in one of" in refusal(capsys, *commands("model", name)["compare"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_one_line(here, capsys):
    (here / "texts.jsonl").chmod(0)
    assert "texts.jsonl" in refusal(capsys, *commands("model")["compare"])


class Ends(Exception):  # noqa: N818
    """An error that nobody planned for."""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FreezeError("two\n lines"), 2, "hf-freeze: two lines\n"),
        (PermissionError(13, "Permission denied", "x.csv"), 2, "hf-freeze: 'x.csv': Permission denied\n"),
        (BrokenPipeError(32, "Broken pipe"), 2, ""),
        (KeyboardInterrupt(), 130, "hf-freeze: interrupted.\n"),
        (Ends("eh"), 2, "hf-freeze: unexpected Ends: eh. 'hf-freeze --traceback ...' shows where; "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_has_an_exit_status_and_at_most_a_line(monkeypatch, capsys, error, status, said):
    def fails(options):
        raise error

    monkeypatch.setattr(cli, "add_debug", lambda commands: commands.add_parser("fail").set_defaults(run=fails))
    assert main(["fail"]) == status
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert printed.count("\n") == bool(said)
    with pytest.raises(type(error)):
        main(["--traceback", "fail"])


def started(*typed, **options):
    command = [sys.executable, "-m", "hf_freeze.reporting.cli", *typed]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


def test_a_reader_who_leaves_is_no_traceback(here):
    reading, writing = os.pipe()
    os.close(reading)
    process = started(*commands("model")["debug"], stdout=writing)
    os.close(writing)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert not any(word in error for word in (b"Traceback", b"ipe", b"hf-freeze")), error


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")  # noqa: PTH110
def test_an_output_that_is_full_is_one_line(here):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = started(*commands("model")["debug"], stdout=full)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2
    assert error.endswith(b"hf-freeze: No space left on device\n")
    assert b"Traceback" not in error


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_letter_gets_its_number(here):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = started(*commands("model")["debug"], stdout=subprocess.PIPE, env=environment)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert rb"\xab[CLS]\xbb" in out


def test_an_interrupted_comparison_is_one_line(here):
    # A shell starts what runs in its background deaf to Ctrl-C, and its children inherit that.
    process = started(
        *commands("model")["compare"],
        *("--epochs", "100000"),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            deadline = time.monotonic() + 300
            while not (here / "kept").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            error = _error_after_ctrl_c(process)
        finally:
            process.kill()
    assert process.returncode == 130, error
    assert error.splitlines()[-1].endswith(b"hf-freeze: interrupted.")
    # What Python says of an interrupt inside a `__del__` of a library is not ours.
    assert error.count(b"Traceback") == error.count(b"Exception ignored in"), error


def _error_after_ctrl_c(process):
    # Python swallows an interrupt that arrives inside a `__del__`: whoever sits there presses the keys again.
    for _ in range(12):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"still running after twelve interrupts, exit status {process.poll()}")
