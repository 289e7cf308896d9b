"""A damaged checkpoint is refused with the name of the file, before anything is trained."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezeError, FreezePlan, FreezeTrainerMixin, Plateau, Stage
from hf_freeze.training.whole import require_whole
from tests.models import text_rows, tiny_bert
from tests.trainers.own_kinds import ScaleTrainer
from tests.training.damaged import DAMAGES
from tests.training.runs import arguments, moved, weights
from tests.training.staged import trainer

PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(plateau=Plateau("eval_loss", patience=9, restore_best=True), unfreeze="layers[-1]")],
)
SAVING = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer(folder, plan=PLAN, **SAVING).train()
    return folder


def copied(saved, tmp_path):
    for step in (1, 2):
        shutil.copytree(saved / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path / "checkpoint-2"


def resume(folder, plan=PLAN, **values):
    made = trainer(folder.parent, plan=plan, **{**SAVING, "max_steps": 4, **values})
    before = weights(made.model)
    try:
        made.train(resume_from_checkpoint=True)
    except FreezeError:
        assert made.state.global_step == 2 or moved(before, made.model) == set()
        assert len(made.watch.weights) <= 1
        raise
    return made


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(saved, tmp_path, name) -> None:
    folder = copied(saved, tmp_path)
    damage, said = DAMAGES[name]
    damage(folder)
    with pytest.raises(FreezeError, match=f"(?s){said}"):
        resume(folder)


@pytest.fixture(scope="module")
def saved_by_callback(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with_callback(folder, **SAVING).train()
    return folder


def with_callback(folder, **values):
    return trainer(folder, plan=PLAN, cls=Trainer, trainer={"callbacks": [FreezeCallback(PLAN)]}, **values)


SEEN_BY_CALLBACK = ["step as text", "interval as text", "log of lists", "no batch size", "no optimizer", "no scheduler"]


@pytest.mark.parametrize("name", SEEN_BY_CALLBACK)
def test_a_callback_refuses_what_the_trainer_passes_over_or_stumbles_on(saved_by_callback, tmp_path, name) -> None:
    folder = copied(saved_by_callback, tmp_path)
    damage, said = DAMAGES[name]
    damage(folder)
    with pytest.raises(FreezeError, match=f"(?s){said}"):
        with_callback(tmp_path, **SAVING).train(resume_from_checkpoint=True)


def test_the_undamaged_one_resumes(saved, tmp_path) -> None:
    assert resume(copied(saved, tmp_path)).state.global_step == 4


def test_lost_random_states_are_said_and_the_run_resumes(saved, tmp_path, caplog) -> None:
    folder = copied(saved, tmp_path)
    resume(folder)
    assert "random numbers" not in caplog.text
    (folder / "rng_state.pth").unlink()
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    resume(folder)
    assert "rng_state.pth' is missing: this run draws other random numbers" in caplog.text


@pytest.mark.parametrize(("written", "on_this_node", "lost"), [([0], 2, 1), ([0, 1, 3], 4, 2), ([4, 6], 3, 5)])
def test_random_states_that_one_of_several_processes_did_not_write_are_named(
    saved, tmp_path, monkeypatch, written, on_this_node, lost
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_node))
    folder = copied(saved, tmp_path)
    for number in written:
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{number}.pth")
    with pytest.raises(FreezeError, match=f"'rng_state_{lost}.pth' is missing. Was one of the processes killed"):
        resume(folder)


@pytest.mark.parametrize(("written", "on_this_node"), [([0], 1), ([1], 1), ([0, 1], 4), ([4, 5], 2)])
def test_random_states_of_a_node_or_of_fewer_processes_are_whole(
    saved, tmp_path, monkeypatch, written, on_this_node
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_node))
    folder = copied(saved, tmp_path)
    for number in written:
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{number}.pth")
    require_whole(folder, optimizer=True)


def test_the_newest_whole_checkpoint_is_named(saved, tmp_path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "trainer_state.json").unlink()
    with pytest.raises(FreezeError, match="checkpoint-2' is not whole.*newest whole one is.*checkpoint-1'"):
        resume(folder)
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(FreezeError, match="No other checkpoint beside it is whole"):
        resume(folder)


@pytest.mark.parametrize("change", ["flipped", "foreign", "shape"])
def test_best_weights_that_changed_are_refused(saved, tmp_path, change) -> None:
    path = copied(saved, tmp_path) / "stage_best.safetensors"
    tensors = load_file(path)
    if change == "flipped":
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    elif change == "foreign":
        save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, path)
    else:
        save_file({name: tensor[:1].contiguous() for name, tensor in tensors.items()}, path)
    said = {"flipped": "has changed since", "foreign": "another stage or model", "shape": "of shape"}[change]
    with pytest.raises(FreezeError, match=f"stage_best.safetensors.*{said}"):
        resume(path.parent)


class Scaled(FreezeTrainerMixin, ScaleTrainer):
    """Trains a parameter beside the model."""


def test_what_trained_beside_the_model_and_changed_is_refused(tmp_path) -> None:
    saving = {"plan": FreezePlan(trainable="head"), "cls": Scaled, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, max_steps=1, **saving).train()
    path = tmp_path / "checkpoint-1" / "beside_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FreezeError, match="beside_model.safetensors' has changed since it was written"):
        trainer(tmp_path, max_steps=2, **saving).train(resume_from_checkpoint=str(path.parent))


def test_a_checkpoint_that_never_had_best_weights_resumes(tmp_path) -> None:
    trainer(tmp_path, plan=PLAN, **{**SAVING, "eval_steps": 3, "max_steps": 4}).train()
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert not list(tmp_path.glob("*/stage_best.safetensors"))
    assert resume(tmp_path / "checkpoint-2", eval_steps=3).state.global_step == 4


def plain(folder, **values):
    args = arguments(folder, TrainingArguments, save_strategy="steps", save_steps=1, max_steps=2, **values)
    args.output_dir = str(folder)
    Trainer(tiny_bert(layers=3), args, train_dataset=text_rows(20)).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize("values", [{}, {"save_only_model": True}], ids=str)
def test_a_change_of_plan_may_be_ignored_on_a_checkpoint_of_a_plain_trainer(tmp_path, values) -> None:
    folder = plain(tmp_path, **values)
    assert resume(folder, ignore_plan_change=True).state.global_step == 4
    assert resume(tmp_path / "checkpoint-4", max_steps=5).state.global_step == 5


def test_without_an_optimizer_the_same_plan_resumes_where_that_is_asked_for(saved, tmp_path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "optimizer.pt").unlink()
    assert resume(folder, ignore_plan_change=True).state.global_step == 4


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_the_state_of_another_optimizer_is_refused(saved, tmp_path, optim) -> None:
    folder = copied(saved, tmp_path)
    with pytest.raises(FreezeError, match=r"optimizer\.pt' holds the state of another optimizer than this run's"):
        resume(folder, optim=optim)


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_the_state_of_the_same_optimizer_is_gone_on_with(tmp_path, optim) -> None:
    trainer(tmp_path, plan=PLAN, **SAVING, optim=optim).train()
    assert resume(tmp_path / "checkpoint-2", optim=optim).state.global_step == 4


@pytest.mark.parametrize("other", [{"hidden_size": 32}, {"num_labels": 3}], ids=str)
def test_weights_of_another_size_are_refused(saved, tmp_path, other) -> None:
    folder = copied(saved, tmp_path)
    made = trainer(tmp_path, model=tiny_bert(layers=3, **other), plan=PLAN, **SAVING)
    with pytest.raises(FreezeError, match="model.safetensors.*of shape.*this model has it as"):
        made.train(resume_from_checkpoint=str(folder))


def test_weights_of_another_class_are_refused(saved, tmp_path) -> None:
    path = copied(saved, tmp_path) / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(FreezeError, match="holds no weight of this BertForSequenceClassification"):
        resume(path.parent, ignore_plan_change=True)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(("old", "is_refused"), [("classifier.weight", True), ("bert.pooler.dense.weight", False)])
def test_a_weight_that_trains_and_was_saved_by_another_name_is_missed(saved, tmp_path, old, is_refused, config) -> None:
    """transformers 5.0 saves the norms of a BERT that was loaded from files so, and its Trainer passes over them."""
    folder = copied(saved, tmp_path)
    if not config:
        (folder / "config.json").unlink()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["of.old"] = tensors.pop(old)
    save_file(tensors, path, metadata={"format": "pt"})
    made = trainer(tmp_path, plan=PLAN, **SAVING)
    if is_refused:
        with pytest.raises(FreezeError, match=f"holds no '{old}', which trains, but 'of.old'.*save_trained_only=True"):
            made.train(resume_from_checkpoint=str(folder))
        return
    assert old not in made.resolved_plan.ever_trainable
    made.train(resume_from_checkpoint=str(folder))
    assert torch.equal(made.model.get_parameter(old), tensors["of.old"])
