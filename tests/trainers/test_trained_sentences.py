"""Checkpoints of what trained, of models of sentence-transformers."""

import pytest
import torch
import transformers as hf
from datasets import Dataset
from safetensors.torch import load_file

from hf_freeze import FreezeError, FreezePlan, FreezeTrainer, Stage, freezing, load_trained, merge_trained
from hf_freeze.training.trained_file import TRAINED_NAME, read_base
from hf_freeze.training.trained_only import how_to_load
from tests.models import tiny_bert
from tests.trainers.kinds import save, text

sentences = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own
STAGES = [Stage(step=2, unfreeze="layers[-2]")]
COLUMNS = {"a": [text(i) for i in range(8)], "b": [text(i + 1) for i in range(8)], "label": [0.0, 1.0] * 4}


def encoder_folder(folder) -> str:
    folder.mkdir(parents=True)
    save(tiny_bert(layers=3).bert, str(folder))
    return str(folder)


def by_default(folder):
    return sentences.SentenceTransformer(encoder_folder(folder / "encoder"), device="cpu")


def with_its_own_pooling(folder):
    from sentence_transformers import models

    encoder = models.Transformer(encoder_folder(folder / "encoder"), max_seq_length=16)
    return sentences.SentenceTransformer(modules=[encoder, models.Pooling(16, "cls"), models.Normalize()], device="cpu")


def with_a_dense_layer(folder):
    from sentence_transformers import models

    made = with_its_own_pooling(folder)
    torch.manual_seed(0)
    modules = [made[0], made[1], models.Dense(16, 8)]
    sentences.SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "sentences"))
    return sentences.SentenceTransformer(str(folder / "sentences"), device="cpu")


def cross_encoder(folder):
    torch.manual_seed(0)
    return sentences.CrossEncoder(encoder_folder(folder / "encoder"), num_labels=1, device="cpu", max_length=16)


CASES = {
    "by default": (by_default, "layers[-1]"),
    "pooling of its own": (with_its_own_pooling, "layers[-1]"),
    "a dense layer": (with_a_dense_layer, "2"),
    "cross-encoder": (cross_encoder, "head"),
}


def trained(case, model, folder, *, only=True, resume=None):
    from sentence_transformers.cross_encoder import CrossEncoderTrainer
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from sentence_transformers.losses import CosineSimilarityLoss

    crossed = case == "cross-encoder"
    mine, declared = freezing(CrossEncoderTrainer if crossed else sentences.SentenceTransformerTrainer)
    values = {"max_steps": 3, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1, "seed": 3}
    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    args = declared(str(folder), learning_rate=1e-2, save_trained_only=only, **values, **quiet)
    loss = BinaryCrossEntropyLoss(model) if crossed else CosineSimilarityLoss(model)
    plan = FreezePlan(trainable=CASES[case][1], stages=STAGES)
    hf.set_seed(0)
    made = mine(model=model, args=args, train_dataset=Dataset.from_dict(COLUMNS), loss=loss, freeze_plan=plan)
    made.train(resume_from_checkpoint=resume)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_merged_folder_is_what_the_trainer_would_have_saved(tmp_path, case):
    build = CASES[case][0]
    small = trained(case, build(tmp_path), tmp_path / "small")
    whole = trained(case, build(tmp_path / "again"), tmp_path / "whole", only=False)
    checkpoint, expected = tmp_path / "small" / "checkpoint-3", tmp_path / "whole" / "checkpoint-3"
    merged = merge_trained(checkpoint, tmp_path / "merged")
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    files = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()} - {*map(type(merged), state)}
    assert {path.relative_to(merged) for path in merged.rglob("*") if path.is_file()} == files
    for name in files:
        if name.suffix == ".safetensors" or name.name in ("modules.json", "config.json"):
            assert (merged / name).read_bytes() == (expected / name).read_bytes(), name
    loaded = type(small.model)(str(merged), device="cpu")
    ask = loaded.predict if case == "cross-encoder" else loaded.encode
    pairs = [("w1 w2", "w3"), ("w5", "w4 w1")] if case == "cross-encoder" else ["w1 w2", "w3"]
    answer = whole.model.predict if case == "cross-encoder" else whole.model.encode
    assert (ask(pairs) == answer(pairs)).all()
    assert "hf-freeze merge" in how_to_load(read_base(checkpoint))
    with pytest.raises(FileNotFoundError, match="hf-freeze merge FOLDER OUT"):
        type(small.model)(str(checkpoint), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_run_and_a_loaded_model_are_bit_equal(tmp_path, case, step):
    build = CASES[case][0]
    whole = trained(case, build(tmp_path), tmp_path / "run")
    assert TRAINED_NAME in {path.name for path in (tmp_path / "run" / "checkpoint-1").iterdir()}
    resumed = trained(
        case, build(tmp_path / "b"), tmp_path / "again", resume=str(tmp_path / "run" / f"checkpoint-{step}")
    )
    fresh = build(tmp_path / "c")
    loaded = load_trained(fresh, tmp_path / "run" / "checkpoint-3")
    assert loaded == [*load_file(tmp_path / "run" / "checkpoint-3" / TRAINED_NAME)]
    expected = whole.model.state_dict()
    for model in (resumed.model, fresh):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_an_encoder_that_is_not_of_transformers_is_merged_before_it_trains_again(tmp_path):
    trained("by default", by_default(tmp_path), tmp_path / "run")
    with pytest.raises(
        FreezeError, match="only what trained of a SentenceTransformer. Write the whole model with 'hf-freeze"
    ):
        FreezeTrainer(str(tmp_path / "run" / "checkpoint-3"))


def test_a_base_without_the_modules_that_were_added_is_refused_by_the_first_tensor(tmp_path):
    made = with_a_dense_layer(tmp_path)
    trained("a dense layer", made, tmp_path / "run")
    with pytest.raises(FreezeError, match="belongs to a model with '2.linear"):
        merge_trained(tmp_path / "run" / "checkpoint-3", tmp_path / "out", tmp_path / "encoder")
    assert not (tmp_path / "out").exists()
