"""A folder of `save_trained_only` that is damaged or meets another base: named, and the model is left as it was."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

from hf_freeze import (
    FreezeError,
    FreezePlan,
    FreezeTrainer,
    PlanError,
    UnsupportedSetupError,
    load_trained,
    merge_trained,
)
from hf_freeze.training.trained_file import TRAINED_NAME
from tests.models import tiny_bert, tiny_custom, tiny_distilbert, tiny_roberta
from tests.training.staged import trainer
from tests.training.trained_runs import HEAD, TWO, base_folder, classifier, refused, same, trained


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path)


@pytest.fixture
def folder(tmp_path, base):
    trained(tmp_path / "run", base, plan=TWO, max_steps=4)
    return tmp_path / "run" / "checkpoint-4"


def tensor_places(path: Path) -> dict[str, int]:
    """Name -> a byte in the middle of the tensor."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    return {name: 8 + length + sum(one["data_offsets"]) // 2 for name, one in header.items()}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_in_any_tensor_is_named(folder, base) -> None:
    path = folder / TRAINED_NAME
    places = tensor_places(path)
    assert len(places) == 18
    for name, place in places.items():
        flip(path, place)
        refused(classifier(base), folder, f"{name}' is not what was written")
        flip(path, place)
    load_trained(classifier(base), folder)


def test_a_flipped_bit_anywhere_in_the_header_is_refused(folder, base) -> None:
    path = folder / TRAINED_NAME
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    for place in range(8, 8 + length, 37):
        flip(path, place)
        with pytest.raises(FreezeError, match="cannot be read"):
            load_trained(classifier(base), folder)
        flip(path, place)


@pytest.mark.parametrize("left", [0, 5, 1000, -1])
def test_a_truncated_file_is_refused(folder, base, left) -> None:
    path = folder / TRAINED_NAME
    path.write_bytes(path.read_bytes()[:left])
    refused(classifier(base), folder, "cannot be read")
    made = trainer(folder.parent, model=classifier(base), plan=TWO, save_trained_only=True, max_steps=4)
    with pytest.raises(FreezeError, match="checkpoint-4' is not whole.*newest whole one is .*checkpoint-3"):
        made.train(resume_from_checkpoint=str(folder))


def in_the_middle(data: bytes) -> int:
    return len(data) // 2


def in_the_frame(data: bytes) -> int:
    return data.index(b"PK\x01\x02") + 8  # now it passes for encrypted


@pytest.mark.parametrize(
    ("name", "place"),
    [("optimizer.pt", in_the_middle), ("optimizer.pt", in_the_frame), ("rng_state.pth", in_the_middle)],
)
def test_a_flipped_bit_in_a_state_of_the_run_is_named_with_the_checkpoint_before(folder, base, name, place) -> None:
    flip(folder / name, place((folder / name).read_bytes()))
    made = trainer(folder.parent, model=classifier(base), plan=TWO, save_trained_only=True, max_steps=5)
    with pytest.raises(FreezeError, match=f"checkpoint-4' is not whole: '{name}' cannot be read.*newest.*checkpoint-3"):
        made.train(resume_from_checkpoint=str(folder))


def test_a_file_without_a_description_is_refused(folder, base) -> None:
    save_file({"classifier.weight": torch.zeros(2, 16)}, folder / TRAINED_NAME)
    refused(classifier(base), folder, "its description is not what was written")


def test_a_base_that_was_updated_is_refused_by_its_first_tensor(folder, base, tmp_path) -> None:
    model = classifier(base)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[3] += 1e-6
    name = "bert.encoder.layer.0.output.dense.bias"
    refused(model, folder, f"belongs to '{base}' .*{name}' of this model differs")
    model.bert.save_pretrained(base)
    with pytest.raises(FreezeError, match=name):
        merge_trained(folder, tmp_path / "out")
    with pytest.raises(FreezeError, match=name):
        trained(tmp_path / "again", base, plan=TWO, resume=folder)
    assert not (tmp_path / "out").exists()


def test_a_base_that_was_moved_is_named_and_can_be_given(folder, base, tmp_path) -> None:
    base.rename(tmp_path / "moved")
    with pytest.raises(FreezeError, match=rf"base '{base}' of .* cannot be loaded.*--base"):
        merge_trained(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_trained(folder, tmp_path / "out", tmp_path / "moved")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_base_in_another_precision_is_told_apart(folder, base) -> None:
    model = classifier(base, dtype=torch.bfloat16)
    refused(model, folder, r"It was float32 and is bfloat16: load the base with dtype='float32'")


OTHERS = {
    "roberta": (tiny_roberta, "'bert..*' of this|belongs to a model with 'bert"),
    "distilbert": (tiny_distilbert, "belongs to a model with 'bert"),
    "fewer layers": (lambda: tiny_bert(layers=1), r"belongs to a model with 'bert.encoder.layer.2"),
    "more layers": (lambda: tiny_bert(layers=4), r"belongs to a model without 'bert.encoder.layer.3"),
    "more labels": (lambda: tiny_bert(layers=3, num_labels=5), r"'classifier.*' of shape \(2.*\(5"),
    "wider": (lambda: tiny_bert(layers=3, hidden_size=32), "of shape"),
    "no model of it": (lambda: torch.nn.Linear(2, 2), "which this one lacks"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_folder_of_another_architecture_is_refused(folder, other) -> None:
    build, match = OTHERS[other]
    refused(build(), folder, match)


def test_a_plan_that_trains_less_than_is_stored_is_refused(folder, base, tmp_path) -> None:
    with pytest.raises(PlanError, match="written under another plan"):
        trained(tmp_path / "less", base, plan=HEAD, resume=folder)


def test_merging_what_cannot_be_merged(folder, base, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FreezeError, match="full' exists. Give a new folder"):
        merge_trained(folder, tmp_path / "full")
    with pytest.raises(FreezeError, match="is not a folder that a Trainer with save_trained_only=True wrote"):
        merge_trained(base, tmp_path / "out")
    with pytest.raises(FreezeError, match="is not a folder"):
        merge_trained(tmp_path / "nowhere", tmp_path / "out")


def test_a_base_without_a_name_must_be_given(tmp_path) -> None:
    made = trained(tmp_path / "run", None, model=tiny_bert(layers=3), plan=HEAD, max_steps=1)
    folder = tmp_path / "run" / "checkpoint-1"
    with pytest.raises(FreezeError, match="built without a name"):
        merge_trained(folder, tmp_path / "out")
    tiny_bert(layers=3).save_pretrained(tmp_path / "base")
    merged = merge_trained(folder, tmp_path / "out", base=tmp_path / "base")
    assert same(BertForSequenceClassification.from_pretrained(merged), made.model) == []


def test_a_base_inside_the_output_folder_is_refused_before_training(tmp_path) -> None:
    base = base_folder(tmp_path / "run")
    with pytest.raises(FreezeError, match="is inside output_dir"):
        trainer(tmp_path / "run", model=classifier(base), plan=HEAD, save_trained_only=True)
    with pytest.raises(FreezeError, match="is inside output_dir"):
        trainer(base, model=classifier(base), plan=HEAD, save_trained_only=True)


def test_the_base_of_any_part_is_looked_for_in_all_that_is_written_over_or_deleted(tmp_path) -> None:
    model = tiny_custom()
    model.second = tiny_bert()
    plan = FreezePlan(trainable="out")
    model.backbone.save_pretrained(tmp_path / "away")
    model.second.save_pretrained(tmp_path / "run" / "checkpoint-9" / "encoder")
    model.backbone.name_or_path = str(tmp_path / "away")
    model.second.name_or_path = str(tmp_path / "run" / "checkpoint-9" / "encoder")
    with pytest.raises(FreezeError, match="encoder' is inside output_dir"):
        trainer(tmp_path / "run", model=model, plan=plan, save_trained_only=True)
    trainer(tmp_path / "other", model=model, plan=plan, save_trained_only=True)


def test_what_trained_is_not_saved_over_its_base(tmp_path, base) -> None:
    made = trainer(tmp_path / "run", model=classifier(base), plan=HEAD, save_trained_only=True)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(FreezeError, match="base' holds the base.*Save it to another folder"):
        made.save_model(str(base))
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_folder_is_not_its_own_base(folder, tmp_path) -> None:
    with pytest.raises(FreezeError, match="checkpoint-4' cannot be its own base"):
        merge_trained(folder, tmp_path / "out", base=folder)


def test_a_missing_file_is_named_with_the_checkpoint_before(folder, base) -> None:
    (folder / TRAINED_NAME).unlink()
    made = trainer(folder.parent, model=classifier(base), plan=TWO, save_trained_only=True, max_steps=4)
    with pytest.raises(FreezeError, match="checkpoint-4' is not whole: .*no file of weights.*newest.*checkpoint-3"):
        made.train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("only", [True, False])
def test_a_save_over_an_older_checkpoint_that_breaks_off_does_not_pass_for_it(
    tmp_path, base, only, monkeypatch
) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=2, only=only)

    def broken(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(FreezeTrainer, "_save_optimizer_and_scheduler", broken)
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path / "run", base, plan=HEAD, max_steps=2, only=only, seed=1, save_steps=2)
    monkeypatch.undo()
    with pytest.raises(FreezeError, match="checkpoint-2' is not whole: 'trainer_state.json'.*checkpoint-1'"):
        trained(tmp_path / "run", base, plan=HEAD, max_steps=3, only=only, resume=tmp_path / "run" / "checkpoint-2")


@pytest.mark.parametrize(("change", "said"), [({"hidden_act": "relu"}, "is not what was saved"), (None, "is missing")])
def test_a_configuration_that_was_edited_or_lost_is_named(folder, tmp_path, change, said) -> None:
    config = folder / "config.json"
    if change is None:
        config.unlink()
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(FreezeError, match=f"config.json' {said}"):
        merge_trained(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_that_no_file_can_hold_is_refused_before_training(tmp_path) -> None:
    model = tiny_custom()
    model.register_parameter("__metadata__", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(UnsupportedSetupError, match="'__metadata__' of this BackboneWithHead has a name"):
        trainer(tmp_path, model=model, plan=FreezePlan(trainable="out"), save_trained_only=True)


class Counting(torch.nn.Linear):
    """Has state that is no buffer."""

    def get_extra_state(self):
        return torch.zeros(1)

    def set_extra_state(self, state):
        pass


def renaming(model) -> None:
    def rename(module, state, prefix, metadata):
        for name in [*state]:
            state[f"inner.{name}"] = state.pop(name)

    model.register_state_dict_post_hook(rename)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda model: model.add_module("count", Counting(2, 2)), "count._extra_state"),
        (renaming, "inner.backbone.embeddings.word_embeddings.weight"),
    ],
    ids=["extra state", "renamed"],
)
def test_what_would_be_left_out_in_silence_is_refused_before_training(tmp_path, change, name) -> None:
    model = tiny_custom()
    change(model)
    with pytest.raises(
        UnsupportedSetupError, match=f"{name}' in the state_dict of this BackboneWithHead is the name of"
    ):
        trainer(tmp_path, model=model, plan=FreezePlan(trainable="out"), save_trained_only=True)


def test_a_module_of_ones_own_cannot_be_merged_whatever_base_is_given(tmp_path) -> None:
    trained(tmp_path / "run", None, model=tiny_custom(), plan=FreezePlan(trainable="out"), max_steps=1)
    with pytest.raises(FreezeError, match="BackboneWithHead, which is not a class of transformers.*load_trained"):
        merge_trained(tmp_path / "run" / "checkpoint-1", tmp_path / "out")
