"""The examples: the quickstart and what serves its model, run as their users run them, and all others."""

import ast
import math
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze import binary_margin, load_threshold
from tests.forked import run_ranks
from tests.launch import ROOT, accelerate_launch

EXAMPLES = ROOT / "examples"
GUIDE = (EXAMPLES / "README.md").read_text(encoding="utf-8")
SMALL = ["--use_cpu", "--max_rows", "240", "--num_train_epochs", "2", "--max_length", "48"]
SPAM = "WINNER!! You have won a 1000 pound prize. To claim call 09061701461 now. Claim code KL341."
HAM = "Ok, I will be home at six. Do you want me to bring something for dinner?"


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[str, Path]:
    """What one process printed, and the folder that it wrote."""
    return quickstart(tmp_path_factory.mktemp("alone") / "out", "--debug_sample", processes=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[str, Path]:
    """What two processes printed, and the folder that they wrote."""
    return quickstart(tmp_path_factory.mktemp("two") / "out", "--num_train_epochs", "1", processes=2)


def quickstart(folder: Path, *flags: str, processes: int) -> tuple[str, Path]:
    flags = (*SMALL, *flags, "--output_dir", str(folder))
    launch = run_ranks if processes == 1 else accelerate_launch
    return launch(EXAMPLES / "quickstart.py", *flags, processes=processes, timeout=300), folder


def refused(folder: Path, *flags: str) -> str:
    """What the quickstart printed on its way out with exit code 1."""
    return run_ranks(
        EXAMPLES / "quickstart.py", *SMALL, *flags, "--output_dir", folder, processes=1, timeout=120, expect=1
    )


def figures(output: str, name: str) -> list[float]:
    """The numbers in the row `name` of the table."""
    (row,) = re.findall(rf"^{name} {{2,}}([\d. ]+)$", output, flags=re.MULTILINE)
    return [float(figure) for figure in row.split()]


def test_the_plan_and_the_summary_are_printed_before_training(alone) -> None:
    output, _ = alone
    assert re.search(r"0  start   3,697,538  16\.3%  layers\[4:6\], rest, head", output)
    assert re.search(r"layers\[3\]\s+1,774,464\s+0 ", output)
    assert re.search(r"layers\[4\]\s+1,774,464\s+1,774,464 ", output)


def test_the_table_says_what_trained_how_fast_and_how_well(alone) -> None:
    output, _ = alone
    assert "what trained        3,697,538 of 22,713,986 parameters" in output
    assert re.search(r"^rows per second     \d+\.\d while training$", output, flags=re.MULTILINE)
    for name in ("f1", "precision", "recall", "average precision"):
        assert all(0 <= figure <= 1 for figure in figures(output, name))


def test_the_confusion_matrix_adds_up_to_the_rows_and_gives_the_figures(alone) -> None:
    output, _ = alone
    cells = [figures(output, f"{actual} called {called}") for actual in ("ham", "spam") for called in ("ham", "spam")]
    f1, precision, recall = (figures(output, name) for name in ("f1", "precision", "recall"))
    for column, (rows, (_, fp, fn, tp)) in enumerate(
        zip(figures(output, "rows"), zip(*cells, strict=True), strict=True)
    ):
        assert sum(cell[column] for cell in cells) == rows
        assert precision[column] == pytest.approx(tp / max(tp + fp, 1), abs=1e-3)
        assert recall[column] == pytest.approx(tp / max(tp + fn, 1), abs=1e-3)
        assert f1[column] == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1), abs=1e-3)


def test_the_saved_model_loads_with_its_label_names_and_predicts(alone) -> None:
    _, folder = alone
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)([SPAM, HAM], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert model.config.id2label == {0: "ham", 1: "spam"}
    spam, ham = (logits[:, 1] - logits[:, 0]).tolist()
    assert spam > ham


def test_the_last_line_says_that_the_plan_was_kept(alone) -> None:
    output, _ = alone
    assert output.rstrip().endswith("Verified: frozen weights did not change, trainable ones did.")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_print_once_and_end_with_equal_replicas(two) -> None:
    output, folder = two
    line = "Verified: frozen weights did not change, trainable ones did, and the weights of all 2 processes are equal."
    assert output.count(line) == output.count("The plan:") == output.count("what trained") == 1
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {0: "ham", 1: "spam"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainable", "clasifier"], "'clasifier' matches none of the 105 parameters. Nearest: 'classifier'"),
        pytest.param(
            ["--freeze", "layers[:6]", "--trainable", "head"],
            "exactly one of freeze= and trainable=",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--freeze", "layers[6]"], "layers[6]", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_ends_with_its_message_alone_and_writes_nothing(tmp_path, flags, message) -> None:
    output = refused(tmp_path / "out", *flags)
    assert message in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith("quickstart.py: ")
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_without_rows_ends_with_one_line(tmp_path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n", encoding="utf-8")
    output = refused(tmp_path / "out", "--dataset_name", str(rows))
    assert f"{rows} cannot be read" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_data_and_model_can_be_given(alone, tmp_path) -> None:
    """A csv file with columns of other names and labels that are numbers."""
    texts = [f"{SPAM if index % 3 == 0 else HAM} {index}" for index in range(60)]
    rows = [f'"{text}",{int(text.startswith(SPAM))}' for text in texts]
    data = tmp_path / "rows.csv"
    data.write_text("\n".join(["message,kind", *rows]), encoding="utf-8")
    output, folder = quickstart(
        tmp_path / "out",
        *("--dataset_name", str(data), "--text_column", "message", "--label_column", "kind"),
        *("--model_name_or_path", str(alone[1]), "--trainable", "head", "--group_lrs", '{"head": 0.001}'),
        processes=1,
    )
    assert "what trained        770 of 22,713,986 parameters" in output
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {0: "0", 1: "1"}


def test_one_sample_is_looked_at_before_training(alone) -> None:
    output, _ = alone
    report = output[output.index("\nsample ") : output.index("what trained")]
    assert re.search(r"gradient frozen \d+", report)
    assert "ok      plan: Exactly what the plan trains requires a gradient." in report
    assert " checks: 0 failed" in report


@pytest.mark.slow
def test_the_script_for_the_main_job_reaches_what_the_readme_shows(tmp_path) -> None:
    """All rows, through quickstart.sh, called from elsewhere: its output goes to where it was called."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    done = subprocess.run(
        ["bash", EXAMPLES / "quickstart.sh", "--use_cpu"], cwd=tmp_path, capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert min(figures(done.stdout, "average precision")) > 0.95
    assert min(figures(done.stdout, "f1")) > 0.9
    assert (tmp_path / "outputs" / "quickstart" / "model.safetensors").exists()


def test_a_second_script_gives_the_labels_of_the_saved_threshold(alone) -> None:
    _, folder = alone
    texts = [SPAM, HAM, "Free entry! Text WIN to 80086", "Sorry, I'll call later"]
    printed = run_ranks(EXAMPLES / "serve.py", "--model", folder, *texts, processes=1)
    labels = [line.split()[0] for line in printed.splitlines() if line.startswith(("ham ", "spam "))]

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        margin = binary_margin(model(**batch).logits)
    called = margin >= load_threshold(folder).threshold
    assert labels == [model.config.id2label[int(spam)] for spam in called]


TESTED = {"quickstart.py", "serve.py"}  # above; each of the others has one `example` below


def example(name: str):
    """Decorate the test of examples/`name`: it is given what the example printed, as `printed`."""
    TESTED.add(name)
    given = pytest.mark.parametrize("printed", [name], ids=[name], indirect=True)
    few_rows = pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
    return lambda test: given(few_rows(test))


@pytest.fixture
def printed(request, tmp_path, monkeypatch, capsys) -> str:
    """What an example printed, run in this process: of its own it would take 6 seconds to import torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python itself does for a script
    monkeypatch.setattr(sys, "argv", [request.param])
    runpy.run_path(str(EXAMPLES / request.param), run_name="__main__")
    return capsys.readouterr().out


def number(text: str, printed: str) -> float:
    """The number in place of the only {} in `text`, which was printed once."""
    before, after = map(re.escape, text.split("{}"))
    (found,) = re.findall(rf"{before}(-?\d+(?:\.\d+)?){after}", printed)
    return float(found)


def all_examples() -> list[Path]:
    return sorted(EXAMPLES.glob("*.py"))


def test_every_example_has_a_test() -> None:
    assert len(all_examples()) > 15
    assert {path.name for path in all_examples()} == TESTED


@pytest.mark.parametrize("path", all_examples(), ids=lambda path: path.name)
def test_purpose_command_and_run_time_are_at_the_top(path) -> None:
    top = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    purpose, command, *_ = top.split("\n\n")
    assert purpose.endswith((".", "?"))
    assert f"examples/{path.stem}." in command
    assert re.search(r"\d+ seconds|takes seconds|takes a minute", top, flags=re.IGNORECASE)
    assert f"[`{path.name}`]({path.name})" in GUIDE


@example("freeze_with_callback.py")
def test_a_callback_freezes_in_a_plain_trainer_and_the_rest_learns(printed) -> None:
    assert re.search(r"^layers\[3\] +1,774,464 +0 ", printed, flags=re.M)
    assert re.search(r"^layers\[4\] +1,774,464 +1,774,464 ", printed, flags=re.M)
    assert "69 of 105 tensors did not change by a bit." in printed
    assert number("Accuracy {};", printed) > 0.9
    probability, label = re.search(r"-> probability ([\d.]+) of spam -> label (\d)", printed).groups()
    assert int(label) == (float(probability) >= 0.5)
    assert re.search(r"^21 checks: 0 failed, 0 warnings", printed, flags=re.M)


@example("arguments_from_yaml.py")
def test_stages_and_rates_come_from_the_yaml_file(printed) -> None:
    rows = dict(re.findall(r"^(\S.*?) {2,}(\d[\d., ]+)$", printed, flags=re.M))
    logged = {name: [float(value.replace(",", "")) for value in values.split()] for name, values in rows.items()}
    assert logged["stage"] == [0, 0, 1, 1, 2, 2]
    assert logged["trainable_params"] == [66, 66, 8610, 8610, 34306, 34306]
    assert logged["lr/head"] == [0.005] * 6
    assert logged["lr/layers.3"] == [0, 0, 0.004, 0.004, 0.004, 0.004]
    assert logged["lr/norms from stage 1"] == [0, 0, 0.001, 0.001, 0.001, 0.001]
    assert logged["loss"][-1] < logged["loss"][0] - 0.05


@example("custom_head.py")
def test_only_the_head_of_ones_own_moves(printed) -> None:
    assert "Moved: dense.weight, dense.bias, out.weight, out.bias." in printed
    assert number("Accuracy {} on", printed) > 0.9


@pytest.mark.slow
@example("train_new_tokens.py")
def test_rows_of_new_tokens_and_the_head_train_and_nothing_else(printed) -> None:
    moved = re.findall(r"^Moved: (\d+) of (\d+) rows of (\S+)\.$", printed, flags=re.M)
    assert moved[0] == ("3", "30525", "bert.embeddings.word_embeddings.weight")
    assert {name for *_, name in moved[1:]} == {"classifier.weight", "classifier.bias"}
    assert "The other rows are bit-equal: True" in printed
    assert number("Saved: {} kB.", printed) < 30
    assert "Loaded: bert.embeddings.word_embeddings.weight[30522:30525]" in printed
    assert re.search(r"^(spam|ham)  See you at lunch", printed, flags=re.M)


@example("only_my_layer.py")
def test_bert_stays_and_the_new_layer_leaves_its_own_initialisation(printed) -> None:
    assert re.findall(r"The new layer is the identity: (\w+)", printed) == ["True", "False"]
    assert "BERT is as it was: True" in printed
    assert number("precision {},", printed) > 0.8
    assert number(", recall {}\n", printed) > 0.8


@example("sigmoid_output.py")
def test_probabilities_are_read_as_such_and_refused_as_logits(printed) -> None:
    assert "The probability is unchanged: True" in printed
    assert re.search(r"Without head='probability': All 150 rows lie between .* probabilities, not logits", printed)
    assert number("On new rows f1 {};", printed) > 0.65


@pytest.mark.slow
@example("single_logit.py")
def test_a_single_logit_learns_by_bce_and_is_the_margin(printed) -> None:
    shown = re.findall(r"logit (\S+) -> probability (\S+) -> label (\d)", printed)
    assert [label for *_, label in shown] == ["0", "0", "1", "1"]
    for logit, probability, _ in shown:
        assert float(probability) == pytest.approx(1 / (1 + math.exp(-float(logit))), abs=0.006)
    assert number("'f1': {},", printed) > 0.75


@example("decoder_llama.py")
def test_a_decoder_trains_its_last_layer_and_the_norms_below(printed) -> None:
    below = "['model.layers.0.input_layernorm.weight', 'model.layers.0.post_attention_layernorm.weight']"
    assert f"Norms that train below the last layer: {below}" in printed
    assert number("Accuracy {} on", printed) > 0.85
    assert re.search(r"\bpadding\b.*\n?.* 0 failed", printed, flags=re.S)


@example("images_batchnorm.py")
def test_frozen_batchnorm_statistics_move_only_without_frozen_eval(printed) -> None:
    assert "frozen_eval=True: statistics that moved: 0 frozen, 6 trainable" in printed
    assert "frozen_eval=False: statistics that moved: 6 frozen, 6 trainable" in printed
    assert min(map(float, re.findall(r"accuracy (\S+)", printed))) > 0.9


@example("lora_and_norms.py")
def test_thawed_norms_are_saved_beside_the_adapter_and_loaded(printed) -> None:
    assert re.search(r"^adapter_model\.safetensors +\d", printed, flags=re.M)
    assert re.search(r"^trained\.safetensors +\d", printed, flags=re.M)
    assert number("Logits are off by {} after PeftModel", printed) > 0.01
    assert number("by {} after load_thawed, which loaded 26 tensors", printed) == 0


@pytest.mark.slow
@example("seq2seq.py")
def test_a_frozen_encoder_leaves_a_seq2seq_model_to_learn(printed) -> None:
    assert re.search(r"^encoder\.layers\[1\] +[\d,]+ +0 ", printed, flags=re.M)
    assert re.search(r"^decoder\.layers\[1\] +([\d,]+) +\1 ", printed, flags=re.M)
    assert number("Before: {} of", printed) < 0.1
    assert number("After: {} of", printed) > 0.8


@example("accelerate_loop.py")
def test_a_loop_without_a_trainer_freezes_and_saves_a_threshold(printed) -> None:
    rates = dict(re.findall(r"^(\S+) +lr (\S+)", printed, flags=re.M))
    assert (rates["head"], rates["layers.5"], rates["layers.3"]) == ("5.0e-04", "4.0e-04", "2.6e-04")
    assert "Trained in stages 0 to 1; what was frozen did not change." in printed
    assert number(": f1 {} on the 160 rows", printed) > 0.7
    (tuned,) = re.findall(r"^threshold (\S+) ", printed, flags=re.M)
    assert printed.rstrip().endswith(f"threshold {tuned}")


@pytest.mark.slow
@example("rare_class_costs.py")
def test_the_threshold_of_least_cost_finds_what_accuracy_hides(printed) -> None:
    rows = dict(re.findall(r"^(at .*?) {2,}(\d.*)$", printed, flags=re.M))
    half, tuned = (list(map(float, rows[name].split())) for name in ("at probability 0.5", "at the least cost"))
    assert half[0] > 0.95
    assert half[2] < 0.5 < tuned[2]
    assert tuned[-1] < half[-1] / 2


@pytest.mark.slow
@example("three_plans_compared.py")
def test_the_comparison_shows_what_frozen_layers_cost_a_probe_that_is_trained_to_the_end(printed) -> None:
    names = ("linear probe", "last two layers", "everything")
    rows = dict(re.findall(rf"^({'|'.join(names)}) +(\d.*)$", printed, flags=re.M))
    probe, partial, full = (rows[name].split() for name in names)
    assert (probe[0], partial[0], full[0]) == ("770", "3,697,538", "22,713,986")
    assert float(probe[2]) < float(partial[2]) + 0.05  # training loss
    assert float(probe[4]) > 0.7  # precision
    assert float(partial[3]) < float(probe[3]) - 0.05  # validation loss
    assert float(partial[5]) > float(probe[5]) + 0.2  # recall


TESTED.add("compare_sms.py")


@pytest.mark.slow
def test_the_command_compares_plans_on_sms_spam(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    flags = ["--rows", "120", "--plans", "linear-probe", "last-layers", "--max_length", "24", "--use_cpu"]
    monkeypatch.setattr(sys, "argv", ["compare_sms.py", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "compare_sms.py"), run_name="__main__")
    assert ended.value.code == 0
    table = capsys.readouterr().out
    assert re.findall(r"^(linear-probe|last-layers) +([\d,]+)", table, flags=re.M) == [
        ("linear-probe", "770"),
        ("last-layers", "3,697,538"),
    ]


@example("common_mistakes.py")
def test_every_mistake_is_named(printed) -> None:
    assert "bert.requires_grad = ... was set on a module: that is an attribute which torch never reads" in printed
    assert "After freeze(model, 'bert') 34 parameters train." in printed
    assert "'clasifier' matches none of the 41 parameters. Nearest: 'classifier'" in printed
    assert number("accuracy {}, recall", printed) > 0.97
    assert number(", recall {}.\n", printed) < 0.2
    assert re.search(r"Accuracy 0\.98\d hides a recall of 0\.1", printed)
    assert number("F1 {} there", printed) > number("there, {} on the others", printed) + 0.05


@example("gradual_unfreezing.py")
def test_layers_thaw_from_the_top_down(printed) -> None:
    stages = re.findall(r"^step +(\d+) +stage (\d) +loss (\S+) +([\d,]+) parameters train$", printed, flags=re.M)
    assert [(stage, count) for _, stage, _, count in stages] == [
        ("0", "66"),
        ("1", "18,210"),
        ("2", "35,298"),
        ("3", "53,858"),
    ]
    assert float(stages[-1][2]) < float(stages[0][2]) - 0.2
    assert "The weights of 1 processes differ by 0.0." in printed


@pytest.mark.slow
@pytest.mark.distributed
def test_gradual_unfreezing_keeps_two_processes_equal() -> None:
    printed = accelerate_launch(EXAMPLES / "gradual_unfreezing.py", processes=2)
    assert len(re.findall(r"^step +\d+ +stage \d", printed, flags=re.M)) == 4
    assert "The weights of 2 processes differ by 0.0." in printed


@pytest.mark.slow
@pytest.mark.distributed
def test_the_loop_without_a_trainer_is_one_run_on_two_processes(tmp_path, monkeypatch) -> None:
    printed = accelerate_launch(EXAMPLES / "accelerate_loop.py", str(tmp_path), processes=2)
    assert printed.count("what was frozen did not change") == 1
    assert len(re.findall(r"^threshold \S+ .* on the 160 rows", printed, flags=re.M)) == 1
