"""The quickstart, run as its users run it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze import binary_margin, load_threshold
from tests.launch import ROOT, accelerate_launch, free_port, run

EXAMPLES = ROOT / "examples"
SMALL = ["--use_cpu", "--max_rows", "240", "--num_train_epochs", "2", "--max_length", "48"]
SPAM = "WINNER!! You have won a 1000 pound prize. To claim call 09061701461 now. Claim code KL341."
HAM = "Ok, I will be home at six. Do you want me to bring something for dinner?"

pytestmark = pytest.mark.xdist_group("examples")  # one worker, so that each launch is made once


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[str, Path]:
    """What one process printed, and the folder that it wrote."""
    return quickstart(tmp_path_factory.mktemp("alone") / "out", processes=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[str, Path]:
    """What two processes printed, and the folder that they wrote."""
    return quickstart(tmp_path_factory.mktemp("two") / "out", processes=2)


def quickstart(folder: Path, *flags: str, processes: int) -> tuple[str, Path]:
    flags = (*SMALL, *flags, "--output_dir", str(folder))
    return accelerate_launch(EXAMPLES / "quickstart.py", *flags, processes=processes, timeout=300), folder


def refused(folder: Path, *flags: str) -> str:
    """What the quickstart printed on its way out with exit code 1."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(free_port())]
    return run(
        [*launch, str(EXAMPLES / "quickstart.py"), *SMALL, *flags, "--output_dir", str(folder)], timeout=120, expect=1
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
    assert output.rstrip().endswith("Verified: what is frozen stood still, what is trainable moved.")


@pytest.mark.distributed
def test_two_processes_print_once_and_end_with_equal_replicas(two) -> None:
    output, folder = two
    line = (
        "Verified: what is frozen stood still, what is trainable moved, and the weights of all 2 processes are equal."
    )
    assert output.count(line) == output.count("The plan:") == output.count("what trained") == 1
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {0: "ham", 1: "spam"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainable", "clasifier"], "'clasifier' matches none of the 105 parameters. Nearest: 'classifier'"),
        (["--freeze", "layers[:6]", "--trainable", "head"], "exactly one of freeze= and trainable="),
        (["--freeze", "layers[6]"], "layers[6]"),
    ],
)
def test_a_mistake_ends_with_its_message_alone_and_writes_nothing(tmp_path, flags, message) -> None:
    output = refused(tmp_path / "out", *flags)
    assert message in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith("quickstart.py: ")
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []


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


def test_one_sample_is_looked_at_before_training(tmp_path) -> None:
    output, _ = quickstart(tmp_path / "out", "--debug_sample", "--max_steps", "1", processes=1)
    report = output[output.index("\nsample ") : output.index("what trained")]
    assert re.search(r"gradient frozen \d+", report)
    assert "ok      plan: What requires a gradient is what the plan says." in report
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
    printed = run([sys.executable, str(EXAMPLES / "serve.py"), "--model", str(folder), *texts], timeout=120)
    labels = [line.split()[0] for line in printed.splitlines() if line.startswith(("ham ", "spam "))]

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        margin = binary_margin(model(**batch).logits)
    called = margin >= load_threshold(folder).threshold
    assert labels == [model.config.id2label[int(spam)] for spam in called]
