"""Whatever lies where a threshold is read, a sentence with the file's name comes of it."""

import json
import re

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from hf_freeze import (
    BinaryClassificationMetrics,
    BinaryClassificationPipeline,
    FreezeError,
    FreezeTrainer,
    ThresholdResult,
    ThresholdWarning,
    load_threshold,
    save_threshold,
)
from hf_freeze.binary.saved_threshold import (
    THRESHOLD_FILE,
    find_threshold,
    set_config_threshold,
    threshold_saved_with_weights,
)
from tests.binary.damaged import CONFIGS, SIDECARS, config
from tests.binary.test_served import arguments
from tests.binary.test_trainer import dataset

OLD = ThresholdResult(threshold=0.25)


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("damage", SIDECARS)
def test_a_damaged_sidecar_is_named_with_what_is_wrong(tmp_path, damage):
    content, message = SIDECARS[damage]
    put(tmp_path / THRESHOLD_FILE, content)
    for read in (load_threshold, find_threshold):
        with pytest.raises(FreezeError, match=f"(?s)decision_threshold.json.*{message}"):
            read(tmp_path)


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config_is_named_with_what_is_wrong(tmp_path, damage):
    content, message = CONFIGS[damage]
    put(tmp_path / "config.json", content)
    for read in (load_threshold, find_threshold):
        with pytest.raises(FreezeError, match=f"(?s)config.json.*{message}"):
            read(tmp_path)


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_threshold_is_not_half_added_to_a_folder_whose_config_cannot_be_read(tmp_path, damage):
    content, _ = CONFIGS[damage]
    put(tmp_path / "config.json", content)
    if damage in ("cut off", "not UTF-8", "a list", "null", "a key twice"):
        with pytest.raises(FreezeError, match=r"config\.json"):
            save_threshold(OLD, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    else:
        save_threshold(OLD, tmp_path)  # what was wrong with the old threshold is gone with it
        assert load_threshold(tmp_path) == OLD


@pytest.mark.parametrize("name", [THRESHOLD_FILE, "config.json"])
@pytest.mark.parametrize("kind", ["a folder", "a dangling link"])
def test_what_is_no_file_is_named(tmp_path, name, kind):
    if kind == "a folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(FreezeError, match=f"{re.escape(name)} cannot be read"):
        load_threshold(tmp_path)


def test_a_folder_in_the_place_of_the_sidecar_is_said_before_weights_are_written(tmp_path):
    (tmp_path / THRESHOLD_FILE).mkdir()
    with pytest.raises(FreezeError, match="is a folder"), threshold_saved_with_weights(OLD, tmp_path):
        pytest.fail("the weights were written")


def test_a_file_in_the_place_of_the_folder_and_another_thing_than_a_result_are_refused(tmp_path):
    put(tmp_path / "model", "")
    with pytest.raises(FreezeError, match="is a file"):
        save_threshold(OLD, tmp_path / "model")
    with pytest.raises(FreezeError, match="0.3 is not a ThresholdResult"):
        save_threshold(0.3, tmp_path)
    with pytest.raises(FreezeError, match="folder=None is not a path"):
        save_threshold(OLD, None)


@pytest.mark.parametrize(
    ("sidecar", "said"),
    [
        (ThresholdResult(threshold=0.5), r"says 0\.5 for class 1, config.json 0\.25 for class 1"),
        (ThresholdResult(threshold=0.25, positive=0), r"says 0\.25 for class 0, config.json 0\.25 for class 1"),
        (ThresholdResult(threshold=0.25, head="probability"), r"says 0\.25 for class 1 of probabilities, config"),
    ],
)
def test_a_sidecar_that_disagrees_with_the_config_in_anything_that_decides_is_said(tmp_path, sidecar, said):
    put(tmp_path / "config.json", config(decision_threshold=0.25, decision_positive=1))
    sidecar.save(tmp_path / THRESHOLD_FILE)
    with pytest.warns(ThresholdWarning, match=said):
        assert load_threshold(tmp_path) == OLD


@pytest.mark.parametrize("value", ["0.3", [1], True, float("nan"), {}])
def test_a_model_with_a_broken_threshold_is_not_served(tmp_path, make_model, tokenizer, value):
    model = make_model()
    model.config.decision_threshold = value
    for serve in (load_threshold, lambda model: BinaryClassificationPipeline(model=model, tokenizer=tokenizer)):
        with pytest.raises(FreezeError, match=r"config of this Bert\w+ has a decision_threshold that cannot be used"):
            serve(model)


class Plain:
    def __init__(self, config):
        self.config = config


@pytest.mark.parametrize("config", [None, {"hidden": 8}, (1, 2), "bert"])
def test_a_config_that_takes_no_attributes_is_left_alone(config):
    model = Plain(config)
    set_config_threshold(model, OLD)
    set_config_threshold(model, None)
    assert model.config == config
    with pytest.raises(FreezeError, match=r"has no config\.decision_threshold"):
        load_threshold(model)


def test_a_config_of_the_users_own_carries_the_threshold_as_well():
    model = Plain(type("Config", (), {})())
    set_config_threshold(model, OLD)
    assert load_threshold(model) == OLD


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("head", ["logits", "probability"])
def test_a_config_alone_says_all_that_decides(tmp_path, make_model, positive, head):
    model, result = make_model(), ThresholdResult(threshold=0.25, positive=positive, head=head)
    set_config_threshold(model, result)
    model.save_pretrained(tmp_path)
    assert load_threshold(model) == load_threshold(tmp_path) == result
    set_config_threshold(model, OLD)
    assert load_threshold(model) == OLD


@pytest.mark.filterwarnings("ignore::hf_freeze.ThresholdWarning")
@pytest.mark.parametrize("damage", ["not UTF-8", "threshold a text", "positive 2", "curve a text"])
@pytest.mark.parametrize("when", ["resume", "best"])
def test_a_damaged_checkpoint_is_not_resumed_nor_loaded_as_the_best(tmp_path, make_model, damage, when):
    def make(**changes):
        saving = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "trainable": ["all"]}
        return FreezeTrainer(
            make_model(),
            arguments(tmp_path, **saving, **changes),
            train_dataset=dataset(64, 0),
            eval_dataset=dataset(101, 1),
            compute_metrics=BinaryClassificationMetrics(n_boot=0),
        )

    trainer = make()
    trainer.train()
    content, message = SIDECARS[damage]
    for folder in tmp_path.glob("checkpoint-*"):
        put(folder / THRESHOLD_FILE, content)
    if when == "resume":
        with pytest.raises(FreezeError, match=f"decision_threshold.json.*{message}"):
            make(max_steps=6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        return
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.raises(FreezeError, match=f"decision_threshold.json.*{message}"):
        trainer._load_best_model()


def test_a_result_made_with_numpy_numbers_is_saved_and_read_back(tmp_path):
    for threshold in (np.float32(0.5), np.float64(0.5), np.int64(1), 1):
        result = ThresholdResult(threshold=threshold, positive=np.int64(0), value=np.float32(0.5), tp=np.int64(3))
        save_threshold(result, tmp_path)
        assert load_threshold(tmp_path) == result
        assert json.loads((tmp_path / THRESHOLD_FILE).read_text())["positive"] == 0


def test_a_model_saved_on_a_config_with_a_text_where_a_number_belongs_is_named(tmp_path, make_model):
    model = make_model()
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    put(tmp_path / "config.json", json.dumps({**content, "decision_threshold": "high"}))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(FreezeError, match="'high' must be a finite number"):
        load_threshold(loaded)
    with pytest.raises(FreezeError, match=r"config\.json has a decision_threshold that cannot be used"):
        load_threshold(tmp_path)
