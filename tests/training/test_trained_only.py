"""`save_trained_only`: checkpoints of what trained, exact in every way that they are read."""

import shutil

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, TrainerCallback, pipeline

from hf_freeze import FreezePlan, FreezeTrainer, Plateau, Stage, load_trained, merge_trained
from hf_freeze.training import digests
from tests.installed import since
from tests.models import tiny_bert, tiny_custom
from tests.training.staged import PLAN, STEPS, losses, optimizer_bytes, trainer
from tests.training.trained_runs import HEAD, TWO, base_folder, classifier, description, same, stored, trained

PLATEAUS = FreezePlan(
    trainable="head",
    stages=[
        Stage(plateau=Plateau("eval_loss", patience=1, min_delta=1e9, restore_best=True), unfreeze="layers[-1]"),
        Stage(plateau=Plateau("eval_loss", max_epochs=0.8), unfreeze="layers[-2]", freeze="head"),
        Stage(fraction=0.9, unfreeze=["embeddings", "head"]),
    ],
)
GROWING = FreezePlan(trainable="head", stages=[Stage(step=3, unfreeze="layers[-1]"), Stage(step=8, unfreeze="all")])


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path)


def test_a_checkpoint_holds_what_trained_up_to_then_and_the_set_only_grows(tmp_path, base) -> None:
    made = trained(tmp_path / "run", base)
    names = PLAN.resolve(classifier(base)).stages
    begins = [0, 2, 5, 7, 9]
    for step in range(1, STEPS + 1):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        so_far = frozenset().union(*(names[i] for i, begin in enumerate(begins) if begin < step))
        # The base was saved without a pooler's weights? It has them: only what trained is stored.
        assert stored(folder).keys() == so_far, step
        assert not {"model.safetensors", "pytorch_model.bin"} & {path.name for path in folder.iterdir()}
    assert all(torch.equal(made.model.get_parameter(name), one) for name, one in stored(folder).items())


def test_every_frozen_tensor_and_the_base_are_described(tmp_path, base) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    told = description(tmp_path / "run" / "checkpoint-1")
    assert told["base"]["name"] == str(base)
    frozen = {name for name, _ in classifier(base).named_parameters() if not name.startswith("classifier")}
    assert told["base"]["digests"].keys() == frozen
    assert told["plan"] == HEAD.to_dict()


EACH = [pytest.param(PLAN, id="timed"), pytest.param(PLATEAUS, id="plateaus", marks=pytest.mark.slow)]


@pytest.mark.parametrize("plan", EACH)
def test_a_run_resumed_after_any_step_ends_bit_equal_in_a_fresh_base(tmp_path, base, plan) -> None:
    values = {"eval_strategy": "steps", "eval_steps": 2} if plan is PLATEAUS else {}
    whole = trained(tmp_path / "whole", base, plan=plan, **values)
    for step in range(1, STEPS):
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "part" / f"checkpoint-{step}")
        resume = tmp_path / "part" / f"checkpoint-{step}"
        resumed = trained(tmp_path / "part", base, plan=plan, seed=step, resume=resume, **values)
        assert same(whole.model, resumed.model) == [], step
        assert optimizer_bytes(whole) == optimizer_bytes(resumed)
        assert losses(whole) == losses(resumed)
        last = stored(tmp_path / "part" / f"checkpoint-{STEPS}")
        assert last.keys() == stored(tmp_path / "whole" / f"checkpoint-{STEPS}").keys()
        shutil.rmtree(tmp_path / "part")


@pytest.mark.parametrize("step", [1, 3, 6, 12])
def test_a_merged_folder_is_byte_for_byte_what_the_trainer_would_have_saved(tmp_path, base, step) -> None:
    trained(tmp_path / "small", base)
    trained(tmp_path / "full", base, only=False)
    name = f"checkpoint-{step}"
    merged = merge_trained(tmp_path / "small" / name, tmp_path / "merged")
    for file in ("model.safetensors", "config.json"):
        assert (merged / file).read_bytes() == (tmp_path / "full" / name / file).read_bytes()
    whole = {path.name for path in (tmp_path / "full" / name).iterdir()}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert {path.name for path in merged.iterdir()} == whole - state


def test_loading_into_a_base_gives_the_trained_model(tmp_path, base) -> None:
    made = trained(tmp_path / "run", base)
    model = classifier(base, seed=7)
    loaded = load_trained(model, tmp_path / "run" / f"checkpoint-{STEPS}")
    assert same(model, made.model) == []
    assert set(loaded) == PLAN.resolve(model).ever_trainable


@pytest.mark.parametrize("best", [2, 6, 12])
def test_the_best_model_is_loaded_with_what_began_to_train_after_it_back_at_its_base(tmp_path, base, best) -> None:
    values = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "plan": GROWING}
    seen = []

    def metrics(_):
        seen.append(len(seen) + 1)
        return {"score": float(seen[-1] == best)}

    values["trainer"] = {"compute_metrics": metrics}
    made = trained(tmp_path / "run", base, metric_for_best_model="score", greater_is_better=True, **values)
    assert made.state.best_model_checkpoint == str(tmp_path / "run" / f"checkpoint-{best}")
    expected = classifier(base)
    load_trained(expected, made.state.best_model_checkpoint)
    assert same(made.model, expected) == []
    assert all(torch.equal(weight, made.watch.weights[best][name]) for name, weight in made.model.named_parameters())


def test_the_best_model_of_a_run_that_was_resumed_after_it_is_loaded_too(tmp_path, base) -> None:
    values = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "plan": GROWING}
    values |= {"metric_for_best_model": "score", "greater_is_better": True}

    def worse(_):
        worse.value -= 1
        return {"score": float(worse.value)}

    worse.value = 0
    values["trainer"] = {"compute_metrics": worse}
    whole = trained(tmp_path / "run", base, **values)
    values["trainer"] = {"compute_metrics": worse}
    resumed = trained(tmp_path / "run", base, seed=3, resume=tmp_path / "run" / "checkpoint-8", **values)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-1")
    assert same(whole.model, resumed.model) == []


def test_one_trainer_goes_back_to_its_own_earlier_checkpoint(tmp_path, base) -> None:
    made = trained(tmp_path / "run", base)
    ended = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert all(torch.equal(tensor, ended[name]) for name, tensor in made.model.state_dict().items())


def test_a_second_trainer_over_the_model_saves_what_the_first_one_trained(tmp_path, base) -> None:
    first = trained(tmp_path / "first", base, plan=FreezePlan(trainable="layers[-1]"), max_steps=2)
    second = trained(tmp_path / "second", base, model=first.model, plan=HEAD, max_steps=2)
    model = classifier(base, seed=5)
    load_trained(model, tmp_path / "second" / "checkpoint-2")
    assert same(model, second.model) == []


def test_a_folder_is_a_model_for_a_trainer_and_its_checkpoints_need_the_first_base_only(tmp_path, base) -> None:
    trained(tmp_path / "first", base, plan=TWO, max_steps=4)
    second = trained(
        tmp_path / "second",
        base,
        model=str(tmp_path / "first" / "checkpoint-4"),
        plan=FreezePlan(trainable="bert.pooler"),
        max_steps=2,
    )
    shutil.rmtree(tmp_path / "first")
    merged = merge_trained(tmp_path / "second" / "checkpoint-2", tmp_path / "merged")
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), second.model) == []


def test_checkpoints_of_a_model_that_was_loaded_into_belong_to_its_first_base(tmp_path, base) -> None:
    """A model without a name is told by its values alone, which are others after `load_trained`."""

    def loaded(folder):
        model = tiny_bert(layers=3)
        load_trained(model, tmp_path / folder / "checkpoint-2")
        return model

    trained(tmp_path / "first", base, model=tiny_bert(layers=3), plan=HEAD, max_steps=2)
    pooler = FreezePlan(trainable="bert.pooler")
    second = trained(tmp_path / "second", base, model=loaded("first"), plan=pooler, max_steps=2)
    assert same(loaded("second"), second.model) == []


def test_what_the_base_lacks_is_saved_although_it_is_frozen(tmp_path, base) -> None:
    made = trained(tmp_path / "run", base, plan=FreezePlan(trainable="layers[-1]"), max_steps=1)
    assert {"classifier.weight", "classifier.bias"} < stored(tmp_path / "run" / "checkpoint-1").keys()
    merged = merge_trained(tmp_path / "run" / "checkpoint-1", tmp_path / "merged")
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), made.model) == []


def test_a_head_that_was_put_in_and_never_written_into_is_saved_although_it_is_frozen(tmp_path, base) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model.classifier.weight = torch.nn.Parameter(torch.full_like(model.classifier.weight, 0.5))
    trained(tmp_path / "run", base, model=model, plan=FreezePlan(trainable="layers[-1]"), max_steps=1)
    assert torch.equal(stored(tmp_path / "run" / "checkpoint-1")["classifier.weight"], model.classifier.weight)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "load",
    [
        AutoModelForSequenceClassification.from_pretrained,
        AutoModel.from_pretrained,
        lambda folder: pipeline("text-classification", model=str(folder)),
    ],
    ids=["AutoModelForSequenceClassification", "AutoModel", "pipeline"],
)
def test_loading_such_a_folder_as_a_whole_model_fails_with_the_command(tmp_path, base, load) -> None:
    trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    with pytest.raises((OSError, ValueError), match="hf-freeze merge FOLDER OUT"):
        load(tmp_path / "run" / "checkpoint-1")


def test_saving_the_final_model_before_and_after_training(tmp_path, base) -> None:
    made = trainer(tmp_path / "run", model=classifier(base), save_trained_only=True)
    made.save_model(tmp_path / "before")
    assert stored(tmp_path / "before").keys() == {"classifier.weight", "classifier.bias"}
    made.train()
    made.save_model()
    merged = merge_trained(tmp_path / "run", tmp_path / "merged")
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), made.model) == []


def test_whole_weights_of_an_earlier_run_do_not_hide_what_trained(tmp_path, base) -> None:
    trained(tmp_path / "run", base, only=False, plan=HEAD, max_steps=1)
    made = trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    merged = merge_trained(tmp_path / "run" / "checkpoint-1", tmp_path / "merged")
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), made.model) == []


OLD_NAMES = since("5.8", "it saves a BERT that was loaded from files by old names, which no Trainer of it reads back")


@pytest.mark.parametrize("only", [pytest.param(True, marks=OLD_NAMES), False])
def test_a_run_resumes_from_folders_of_the_other_kind(tmp_path, base, only) -> None:
    whole = trained(tmp_path / "run", base, only=not only)
    resumed = trained(tmp_path / "other", base, only=only, seed=2, resume=tmp_path / "run" / "checkpoint-6")
    assert same(whole.model, resumed.model) == []
    if only:
        model = classifier(base, seed=4)
        load_trained(model, tmp_path / "other" / f"checkpoint-{STEPS}")
        assert same(model, whole.model) == []


def test_under_another_plan_what_the_old_one_trained_stays_saved(tmp_path, base) -> None:
    trained(tmp_path / "run", base, plan=TWO, max_steps=4)
    made = trained(
        tmp_path / "other",
        base,
        seed=2,
        plan=FreezePlan(trainable="bert.pooler"),
        resume=tmp_path / "run" / "checkpoint-4",
        ignore_plan_change=True,
        max_steps=6,
    )
    model = classifier(base, seed=4)
    loaded = load_trained(model, tmp_path / "other" / "checkpoint-6")
    assert same(model, made.model) == []
    assert any(".layer.2." in name for name in loaded)


def test_model_init_gives_each_run_a_base_of_its_own(tmp_path, base) -> None:
    made = FreezeTrainer(
        args=trainer(tmp_path / "run", model=classifier(base), save_trained_only=True, save_strategy="steps").args,
        model_init=lambda: classifier(base, seed=1),
        train_dataset=trainer(tmp_path / "x").train_dataset,
        freeze_plan=PLAN,
    )
    made.train()
    made.train()
    model = classifier(base, seed=4)
    made.save_model(tmp_path / "end")
    load_trained(model, tmp_path / "end")
    assert same(model, made.model) == []


def test_whole_checkpoints_of_another_run_in_the_folder_are_left_alone(tmp_path, base) -> None:
    made = trainer(tmp_path / "run", model=tiny_custom(), plan=FreezePlan(trainable="out"), save_trained_only=True)
    tiny_custom().backbone.save_pretrained(tmp_path / "run" / "checkpoint-99")
    made.save_model()
    assert (tmp_path / "run" / "checkpoint-99" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_base_that_holds_only_what_trained_is_merged_first(tmp_path, base) -> None:
    trained(tmp_path / "first", base, plan=HEAD, max_steps=1)
    made = trained(tmp_path / "second", base, plan=HEAD, max_steps=1)
    first, second = (tmp_path / name / "checkpoint-1" for name in ("first", "second"))
    merged = merge_trained(second, tmp_path / "merged", base=first)
    assert same(AutoModelForSequenceClassification.from_pretrained(merged), made.model) == []


@pytest.mark.parametrize("resume", [False, True])
def test_at_the_start_of_a_run_a_frozen_weight_is_read_once_for_the_proof_and_for_its_checkpoints(
    tmp_path, base, monkeypatch, resume
) -> None:
    if resume:
        trained(tmp_path / "run", base, plan=HEAD, max_steps=1)
    model = classifier(base)
    if resume:
        load_trained(model, tmp_path / "run" / "checkpoint-1")
    weight, reads = model.bert.embeddings.word_embeddings.weight, []

    def read(tensor):
        reads.extend([True] * (tensor.data_ptr() == weight.data_ptr()))
        return as_words(tensor)

    class AtFirstStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            assert len(reads) == 1

    as_words = digests.as_words
    monkeypatch.setattr(digests, "as_words", read)
    trained(tmp_path / "again", base, model=model, plan=HEAD, max_steps=1, trainer={"callbacks": [AtFirstStep()]})
    assert len(reads) > 1
