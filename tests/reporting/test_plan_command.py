"""`hf-freeze plan` takes the flags of the arguments, prints the preview, and writes nothing but the picture."""

import json

import pytest
from peft import LoraConfig, get_peft_model

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
    assert main(["plan", model, *PLAN, *RUN, "--json", "--plot", "pictures/plan.png", "--tokens", "5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [stage["step"] for stage in printed["stages"]] == [0, 4]
    assert (printed["max_steps"], printed["batch"]) == (12, "4 rows of 5 tokens")
    assert {group["name"]: group["learning_rate"] for group in printed["stages"][1]["groups"]}[
        "layers.1 from stage 1"
    ] == 0.005
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pictures"]
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["plan.png"]


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
        (["--auto_class", "Nothing"], "'Nothing' is not a model class"),
        (["--auto_class", "AutoTokenizer"], "'AutoTokenizer' is not a model class"),
        (
            ["--auto_class", "AutoModelForImageClassification"],
            "cannot build a model from a BertConfig. These can: AutoModel,",
        ),
        (["--auto_class", "LlamaForSequenceClassification"], "cannot build a model from a BertConfig"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "warmup_stable_decay with --lr_scheduler_kwargs None"),
        (["--lr_scheduler_type", "cosine_with_min_lr", "--max_steps", "5"], "Give its settings as JSON"),
        (["--per_device_train_batch_size", "0", "--rows", "10"], "--per_device_train_batch_size 0 is not a count"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0 is not a count"),
        (["--rows", "-5"], "--rows -5 is not a count"),
        (["--tokens", "0"], "--tokens 0 is not a count"),
        (["--num_train_epochs", "0", "--rows", "9"], "--num_train_epochs 0 trains nothing"),
        (["--accelerator_config", '{"nothing": 1}'], "nothing"),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "load_best_model_at_end"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(model, capsys, tmp_path, flags, message):
    assert main(["plan", model, *flags, "--use_cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "nonesuch"}', "The configuration in 'broken' cannot be loaded"),
        ("{}", "The configuration in 'broken' cannot be loaded"),
        (
            '{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}',
            "BertConfig describes no model that can be built",
        ),
        ("{", "hf-freeze: "),
    ],
)
def test_a_configuration_that_makes_no_model_is_one_line(capsys, tmp_path, monkeypatch, config, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(config)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "broken", "--trainable", "head", "--use_cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_adapters_stand_for_the_model_that_they_name(model, capsys):
    adapted = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    adapted.peft_config["default"].base_model_name_or_path = model
    adapted.save_pretrained("adapters")
    assert main(["plan", model, *PLAN, *RUN]) == 0
    expected = capsys.readouterr().out
    assert main(["plan", "adapters", *PLAN, *RUN]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{expected}adapters holds PEFT adapters: this is their model model, without them.\n"


@pytest.mark.parametrize(
    ("config", "message"),
    [('{"base_model_name_or_path": null}', "does not name their model"), ("[]", "cannot be read"), ("{", "cannot be")],
)
def test_adapters_that_name_no_model_are_refused(capsys, tmp_path, config, message):
    (tmp_path / "adapter_config.json").write_text(config)
    assert main(["plan", str(tmp_path), "--trainable", "head", "--use_cpu"]) == 2
    assert message in capsys.readouterr().err


def test_the_help_lists_what_matters_for_a_plan(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    printed = capsys.readouterr().out
    for flag in ("--freeze", "--unfreeze_stages", "--group_lrs", "--layer_lr_decay", "--learning_rate", "--rows"):
        assert f"  {flag}" in printed
    assert len(printed.splitlines()) < 110


def test_a_rotation_is_shown_by_one_period_and_by_which_layers_come_when(model, capsys):
    assert main(["plan", model, "--freeze_recipe", "rotate:layers=1,every=5,order=ascending", "--use_cpu"]) == 0
    printed = capsys.readouterr().out
    assert "The rotation, from step 0 layers[0]; 5 layers[1]; 10 the next cycle, in the same order." in printed
    assert len(printed.splitlines()) < 12
