"""A threshold stays with the weights that it was tuned for."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from hf_freeze import FreezeError, ThresholdResult, ThresholdWarning, load_threshold, save_threshold, tune_threshold
from hf_freeze.binary.saved_threshold import (
    THRESHOLD_FILE,
    find_threshold,
    set_config_threshold,
    threshold_saved_with_weights,
)

OLD = ThresholdResult(threshold=-0.5)


@pytest.fixture
def model():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=16, num_labels=2, **sizes))


@pytest.fixture
def tuned():
    return tune_threshold([float(i) for i in range(200)], [0] * 100 + [1] * 100)


def test_a_saved_folder_gives_back_all_that_tuning_found(tmp_path, model, tuned):
    with threshold_saved_with_weights(tuned, tmp_path, model=model):
        model.save_pretrained(tmp_path)
    assert load_threshold(tmp_path) == tuned
    assert load_threshold(str(tmp_path)).curve == tuned.curve
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_model_loaded_from_the_folder_knows_its_threshold(tmp_path, model, tuned):
    with threshold_saved_with_weights(tuned, tmp_path, model=model):
        model.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.decision_threshold == tuned.threshold
    assert load_threshold(loaded).threshold == tuned.threshold


def test_a_folder_with_only_a_config_gives_the_margin(tmp_path, model):
    set_config_threshold(model, ThresholdResult(threshold=0.25, positive=0))
    model.save_pretrained(tmp_path)
    assert load_threshold(tmp_path) == ThresholdResult(threshold=0.25, positive=0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 reads it
def test_a_peft_folder_has_the_threshold_beside_the_adapter(tmp_path, model, tuned):
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with threshold_saved_with_weights(tuned, tmp_path, model=adapted):
        adapted.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert load_threshold(tmp_path) == tuned
    assert load_threshold(adapted.merge_and_unload()).threshold == tuned.threshold


def test_a_threshold_can_be_added_to_a_folder_that_was_saved_before(tmp_path, model, tuned):
    model.save_pretrained(tmp_path)
    assert save_threshold(tuned, tmp_path, model=model) == tmp_path / THRESHOLD_FILE
    assert load_threshold(tmp_path) == tuned
    assert BertForSequenceClassification.from_pretrained(tmp_path).config.decision_threshold == tuned.threshold
    assert model.config.decision_threshold == tuned.threshold


def test_only_the_process_that_saves_writes(tmp_path, model, tuned):
    with threshold_saved_with_weights(tuned, tmp_path, model=model, should_save=False):
        pass
    assert save_threshold(tuned, tmp_path, should_save=False) is None
    assert list(tmp_path.iterdir()) == []
    assert model.config.decision_threshold == tuned.threshold


def test_killed_between_weights_and_sidecar_the_config_speaks_for_the_new_weights(tmp_path, model, tuned):
    """The older sidecar would have labelled with a threshold for other weights."""
    save_threshold(OLD, tmp_path)
    saving = threshold_saved_with_weights(tuned, tmp_path, model=model)
    saving.__enter__()
    model.save_pretrained(tmp_path)  # and here the process dies
    assert load_threshold(tmp_path).threshold == tuned.threshold


def test_killed_between_weights_and_sidecar_a_peft_folder_has_no_threshold_rather_than_a_wrong_one(tmp_path, tuned):
    save_threshold(OLD, tmp_path)
    with pytest.raises(KeyboardInterrupt), threshold_saved_with_weights(tuned, tmp_path):
        raise KeyboardInterrupt
    with pytest.raises(FreezeError, match=r"has neither decision_threshold\.json nor"):
        load_threshold(tmp_path)


def test_where_sidecar_and_config_disagree_the_config_is_right_and_it_is_said(tmp_path, model, tuned):
    set_config_threshold(model, tuned)
    model.save_pretrained(tmp_path)
    OLD.save(tmp_path / THRESHOLD_FILE)
    with pytest.warns(ThresholdWarning, match=r"says -0.5 for class 1, config.json 99.5 for class 1.*interrupted"):
        assert load_threshold(tmp_path).threshold == tuned.threshold


def test_weights_saved_before_anything_was_tuned_have_no_threshold(tmp_path, model):
    save_threshold(OLD, tmp_path, model=model)
    with threshold_saved_with_weights(None, tmp_path, model=model):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / THRESHOLD_FILE).exists()
    assert "decision_threshold" not in json.loads((tmp_path / "config.json").read_text())


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch, tuned):
    save_threshold(OLD, tmp_path)

    def half_a_file(self, *args, **kwargs):
        self.write_bytes(b'{"threshold": 9')
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        save_threshold(tuned, tmp_path)
    assert load_threshold(tmp_path) == OLD


def test_a_folder_or_a_model_without_a_threshold_is_an_error(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert find_threshold(tmp_path) is None
    with pytest.raises(FreezeError, match="neither"):
        load_threshold(tmp_path)
    with pytest.raises(FreezeError, match="not a folder"):
        load_threshold(tmp_path / "missing")
    with pytest.raises(FreezeError, match=r"has no config.decision_threshold.*PEFT"):
        load_threshold(model)
    set_config_threshold(object(), OLD)  # a model without a config is left alone
