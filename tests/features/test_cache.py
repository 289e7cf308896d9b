"""What is kept, reused, refused, repaired; and that nothing stays on the model."""

import json
import logging
import multiprocessing
import re
import shutil
from collections import namedtuple
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from torch import nn

from hf_freeze import FreezeTrainer, PlanError
from hf_freeze.features import cache, check, store
from hf_freeze.features.cost import Estimate, net_gain
from hf_freeze.features.errors import CacheRefused
from hf_freeze.features.ranks import Ranks
from hf_freeze.features.store import Column, FeatureStore
from tests import models
from tests.features.runs import CASES, Case, Pad, kept_sets, logged, run, texts
from tests.features.test_exactness import assert_same
from tests.forked import start

BERT = CASES["bert"]


@pytest.fixture
def extracted(monkeypatch):
    """Collects the numbers of the parts that each extraction computes."""
    seen = []

    def noting(*args, **kwargs):
        seen.extend(len(work.missing) for work in args[2])
        return extract(*args, **kwargs)

    extract = cache.extract
    monkeypatch.setattr(cache, "extract", noting)
    return seen


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(store, "PART_ROWS", 8)


def folders(root):
    return sorted(path.parent for path in Path(root).rglob("features.json"))


# --- reuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_a_second_run_and_another_head_use_what_is_there(tmp_path, extracted):
    keep = str(tmp_path / "kept")
    run(BERT, tmp_path / "one", trainable="head", cache=keep)
    assert len(extracted) == 2
    run(BERT, tmp_path / "two", trainable="head", cache=keep, learning_rate=1e-3)
    other_head = models.tiny_bert(layers=4, num_labels=2)
    nn.init.normal_(other_head.classifier.weight)
    other_head.save_pretrained(tmp_path / "saved")  # which notes the type of the weights in the configuration
    run(BERT, tmp_path / "three", trainable="head", cache=keep, model=other_head)
    assert len(extracted) == 2


def test_every_process_keeps_the_features_that_the_main_one_says():
    """The seconds are measured, and each process measures others."""
    jobs = [
        SimpleNamespace(
            demand=SimpleNamespace(stage=stage),
            work=f"of stage {stage}",
            estimate=Estimate(
                rows=1, passes=seconds, row_seconds=1.0, cached_row_seconds=0.0, size=1, stored=stage < 2
            ),
        )
        for stage, seconds in enumerate((9, 5, 1))
    ]
    asked, said = [], [2, True, 1]

    class OnTheSecond(Ranks):
        def of_main(self, value):
            asked.append(value)
            return said.pop(0)

        def together(self, act):
            return act()

    kept = cache.FeatureCache.__new__(cache.FeatureCache)
    kept._ranks, kept._settings = OnTheSecond(), SimpleNamespace(always=False)
    kept._planned = lambda feature_set, demand: jobs[demand.stage]
    kept._number_that_fits, kept._compute, kept._checked = len, lambda *given: None, lambda feature_set, work: work
    demands = [jobs[stage].demand for stage in (2, 0, 1)]
    assert kept._prepared(SimpleNamespace(name="training"), demands) == ("of stage 1", jobs[1])
    assert asked == [1, True, 1]  # by what is measured here, it would be those of stage 0


@pytest.mark.parametrize("what", ["weight", "buffer", "configuration", "padding", "dtype", "attribute"])
def test_whatever_features_depend_on_makes_other_features(tmp_path, extracted, what):
    keep = str(tmp_path / "kept")
    case = {"buffer": CASES["resnet"], "padding": CASES["llama"]}.get(what, BERT)
    run(case, tmp_path / "one", trainable="head", cache=keep)
    given = {"model": case.build()}
    if what == "weight":
        with torch.no_grad():
            given["model"].bert.embeddings.word_embeddings.weight[7, 3] += 1e-6
    elif what == "buffer":
        next(given["model"].buffers()).add_(1e-3)
    elif what == "configuration":
        given["model"].config.layer_norm_eps = 1e-3
    elif what == "padding":
        case = Case(case.build, collate=Pad("left"))
    elif what == "attribute":
        given["model"].bert.pooler.scales = {"of a layer": [torch.ones(3)]}
    else:
        given["cache_frozen_dtype"] = "float16"
    run(case, tmp_path / "two", trainable="head", cache=keep, **given)
    assert len(extracted) == 4
    assert len(folders(keep)) == 4


def test_the_folder_is_that_of_the_run_unless_one_is_given(tmp_path):
    run(BERT, tmp_path, trainable="head", cache=True)
    assert [path.parent for path in folders(tmp_path)] == [tmp_path / "_frozen_features"] * 2


def test_no_features_are_pushed_to_the_hub(tmp_path, monkeypatch):
    """They may take gigabytes, and tell of the rows that they were computed from."""
    pushed = []

    def upload_folder(self, *, folder_path, ignore_patterns=None, **_):
        paths = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        pushed.append(list(filter_repo_objects(paths, ignore_patterns=ignore_patterns)))
        done = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    run(
        BERT, tmp_path, trainable="head", cache=True, push_to_hub=True, hub_model_id="me/it", save_strategy="epoch"
    ).push_to_hub()
    assert folders(tmp_path)
    assert all("model.safetensors" in paths for paths in pushed)
    assert not [path for paths in pushed for path in paths if "features" in path]


# --- damage, interruption, disks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "no note", "unreadable note"])
def test_a_damaged_part_is_found_and_computed_again(tmp_path, extracted, small_parts, damage):
    keep = tmp_path / "kept"
    plain = run(BERT, tmp_path / "plain", trainable="head", cache=str(keep))
    target = next(folder for folder in folders(keep) if len(list(folder.glob("*.arrow"))) == 4) / "part-00002.arrow"
    if damage == "flipped bit":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "cut off":
        target.write_bytes(target.read_bytes()[:100])
    elif damage == "no note":
        target.with_suffix(".json").unlink()
    else:
        target.with_suffix(".json").write_text("{")
    extracted.clear()
    again = run(BERT, tmp_path / "again", trainable="head", cache=str(keep))
    assert extracted == [8]
    assert logged(again) == logged(plain)


def test_an_interrupted_extraction_goes_on_where_it_was(tmp_path, extracted, small_parts, monkeypatch):
    keep = str(tmp_path / "kept")
    write = FeatureStore.write

    def interrupted(self, part, *given):
        if part == 2:
            raise KeyboardInterrupt
        write(self, part, *given)

    monkeypatch.setattr(FeatureStore, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(BERT, tmp_path / "one", trainable="head", cache=keep)
    monkeypatch.setattr(FeatureStore, "write", write)
    extracted.clear()
    run(BERT, tmp_path / "two", trainable="head", cache=keep)
    assert extracted == [10, 11]


@pytest.mark.parametrize("full", ["a part", "its name", "its note"])
def test_where_the_disk_is_full_training_goes_on_without(tmp_path, monkeypatch, caplog, small_parts, full):
    plain = run(BERT, tmp_path / "plain", trainable="head", cache=False)

    def fails(path, *given):
        if full == "a part":
            path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    where = {"a part": (store, "_write_arrow"), "its name": (Path, "replace"), "its note": (store, "write_text")}
    monkeypatch.setattr(*where[full], fails)
    cached = run(BERT, tmp_path / "full", trainable="head")
    monkeypatch.undo()
    assert "No space left on device" in caplog.text
    assert logged(cached) == logged(plain)
    assert not list((tmp_path / "full").rglob("*.arrow*"))
    assert not [path for path in (tmp_path / "full").rglob(".*") if path.is_file()]


def test_nothing_that_fails_while_it_is_looked_for_ends_a_run(tmp_path, monkeypatch, caplog):
    plain = run(BERT, tmp_path / "plain", trainable="head", cache=False)

    def fails(*given):
        raise ZeroDivisionError("no\n" + 50 * "registered at a file [kernel]\n")

    monkeypatch.setattr(cache, "read_rows", fails)
    assert logged(run(BERT, tmp_path / "cached", trainable="head")) == logged(plain)
    assert "trying it out failed (ZeroDivisionError: no registered" in caplog.text
    assert all(len(record.getMessage()) < 400 for record in caplog.records)


def test_a_part_that_another_run_is_writing_does_not_hinder_one_that_reads_others(tmp_path):
    keys, written = np.arange(6).reshape(3, 2), FeatureStore(tmp_path, {})
    written.write(0, keys, [Column(torch.ones(3, 2))])
    (tmp_path / "part-00001.arrow").write_bytes(b"half")
    assert written.read(keys, torch.device("cpu")).rows(0, torch.tensor([2])).tolist() == [[1, 1]]
    with pytest.raises(CacheRefused, match="part 1 cannot be read"):
        written.read(keys + 1, torch.device("cpu"))


def test_too_much_for_the_limit_or_the_disk_is_refused_with_the_figure(tmp_path, monkeypatch, caplog):
    with kept_sets() as kept:
        run(BERT, tmp_path / "limit", trainable="head", cache_frozen_max_gb=1.5e-6)
    assert kept == [["evaluation"]]
    assert "they would take 1.66 kB, and the limit is 1.5 kB (cache_frozen_max_gb)" in caplog.text
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with kept_sets() as kept:
        run(BERT, tmp_path / "disk", trainable="head")
    assert kept == [[]]
    assert "they would take 1.66 kB, and 1 bytes are free in" in caplog.text


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    run(BERT, tmp_path / "out", trainable="head", cache=str(tmp_path / "file" / "below"))
    assert "cannot be written to" in caplog.text


def _hold(folder, held, release):
    with FeatureStore(Path(folder), {}).locked():
        held.set()
        release.wait(30)


def test_another_run_waits_for_the_one_that_writes(tmp_path, monkeypatch, caplog):
    context = multiprocessing.get_context("forkserver")
    held, release = context.Event(), context.Event()
    holder = start(_hold, str(tmp_path), held, release)
    assert held.wait(60)
    says = logging.Handler()
    says.emit = lambda record: release.set()  # the other lets go when this one has said that it waits
    monkeypatch.setattr(store.logger, "handlers", [says])
    with FeatureStore(tmp_path, {}).locked():
        assert release.is_set()
    holder.join()
    assert "Another run computes the features" in caplog.text


# --- checks -----------------------------------------------------------------------------------------------------------


def test_stored_features_that_are_not_what_the_model_computes_are_not_used(tmp_path, monkeypatch, caplog):
    stored = check.stored_rows
    monkeypatch.setattr("hf_freeze.features.extraction.stored_rows", lambda *args: _shifted(stored(*args)))
    with kept_sets() as kept:
        run(BERT, tmp_path, trainable=BERT.last)
    assert kept == [[]]
    assert re.search(
        r"stored of bert.encoder.layer.2 is not what the model computes now .*delete the folder", caplog.text
    )


def _shifted(column):
    return Column(column.values + 0.01, column.lengths)


def scaled(output, mask):
    return output.last_hidden_state[:, 1] * output.pooler_output.detach().abs().mean(dim=1, keepdim=True)


def argmax(output, mask):
    hidden = output.last_hidden_state
    return hidden[torch.arange(len(hidden)), hidden[..., 0].masked_fill(mask == 0, -9).argmax(1)]


def without_effect(output, mask):
    return output.last_hidden_state[:, 1] + 0 * output.pooler_output.detach().mean()


class Reads(models.BackboneWithHead):
    """A head over what `read` makes of a frozen backbone's output."""

    def __init__(self, read):
        super().__init__(models.tiny_bert(layers=2).bert)
        self.read = read

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.out(self.read(self.backbone(input_ids, attention_mask=attention_mask), attention_mask))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def reading(read):
    def build():
        torch.manual_seed(0)
        return Reads(read)

    return Case(build, texts)


@pytest.mark.parametrize("read", [scaled, argmax, without_effect])
def test_what_is_read_without_a_gradient_is_stored_as_well(tmp_path, caplog, read):
    plain = run(reading(read), tmp_path / "plain", trainable="out", cache=False)
    with kept_sets() as kept:
        cached = run(reading(read), tmp_path / "cached", trainable="out")
    assert kept == [["training", "evaluation"]]
    assert_same(plain, cached)
    assert "than those that were cached" not in caplog.text


def test_a_loss_that_is_another_one_on_stored_features_is_refused(tmp_path, caplog):
    def with_padding_where_rows_are_many(output, mask):
        mask = torch.ones_like(mask) if len(mask) > 5 else mask
        return (output.last_hidden_state * mask[..., None]).mean(1)

    with kept_sets() as kept:
        run(reading(with_padding_where_rows_are_many), tmp_path, trainable="out")
    assert kept == [[]]
    assert "the loss or the outputs on stored features differ" in caplog.text


def test_what_evaluation_returns_beside_the_logits_is_stored_for_it(tmp_path):
    class Returns(models.BackboneWithHead):
        def forward(self, input_ids, attention_mask=None, labels=None):
            output = self.backbone(input_ids, attention_mask=attention_mask)
            logits = self.out(output.last_hidden_state[:, 1])
            loss = nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits, "pooled": output.pooler_output}

    def build():
        torch.manual_seed(0)
        return Returns(models.tiny_bert(layers=2).bert)

    plain = run(Case(build, texts), tmp_path / "plain", trainable="out", cache=False)
    with kept_sets() as kept:
        cached = run(Case(build, texts), tmp_path / "cached", trainable="out")
    assert kept == [["training", "evaluation"]]
    assert "eval_part1" in logged(plain)[-2]
    assert_same(plain, cached)


def test_the_model_is_as_it_was_after_training_and_after_a_failure(tmp_path):
    trainer = run(BERT, tmp_path / "one", trainable="head")
    assert not [name for name, module in trainer.model.named_modules() if "forward" in vars(module)]
    assert not trainer.model._forward_pre_hooks

    class Broken(FreezeTrainer):
        def training_step(self, *args, **kwargs):
            raise ZeroDivisionError

    model = models.tiny_bert(layers=4)
    with pytest.raises(ZeroDivisionError):
        run(BERT, tmp_path / "two", trainable="head", trainer=Broken, model=model)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


def test_evaluation_after_training_goes_through_the_whole_model(tmp_path):
    trainer = run(BERT, tmp_path, trainable="head")
    expected = trainer.state.log_history[-2]["eval_loss"]
    with torch.no_grad():
        trainer.model.bert.embeddings.word_embeddings.weight.mul_(3)
    assert trainer.evaluate()["eval_loss"] != pytest.approx(expected, rel=1e-4)


def test_only_the_sets_that_training_evaluates_are_stood_in_for(tmp_path):
    sets = {"easy": texts(9, seed=4), "hard": texts(13, seed=5)}
    plain = run(BERT, tmp_path / "plain", trainable="head", held_out=sets, cache=False)
    with kept_sets() as kept:
        cached = run(BERT, tmp_path / "cached", trainable="head", held_out=sets)
    assert kept == [["training", "evaluation easy", "evaluation hard"]]
    assert_same(plain, cached)
    assert cached.predict(sets["easy"]).metrics["test_loss"] == pytest.approx(
        plain.predict(sets["easy"]).metrics["test_loss"], rel=1e-5
    )


@pytest.mark.smoke
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    whole = run(BERT, tmp_path / "whole", trainable=BERT.last, save_strategy="steps", save_steps=5)
    parts = FreezeTrainer(
        BERT.build(),
        whole.args,
        train_dataset=whole.train_dataset,
        eval_dataset=whole.eval_dataset,
        data_collator=whole.data_collator,
        freeze_plan=whole._given_plan,
        compute_metrics=whole.compute_metrics,
    )
    parts.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for trainer in (whole, parts):
        trainer.state.log_history.pop()  # the mean loss counts the steps of its own call
    assert_same(whole, parts)


# --- refusals ---------------------------------------------------------------------------------------------------------


class TwicePerStep(FreezeTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + 0.1 * model(**inputs).loss
        return (loss, outputs) if return_outputs else loss


class NoisyPad(Pad):
    def __call__(self, rows):
        batch = super().__call__(rows)
        hidden = (torch.rand(batch["input_ids"].shape) < 0.3) & (batch["input_ids"] > 5)
        return batch | {"input_ids": batch["input_ids"].masked_fill(hidden, 4)}


class WithoutMask(Pad):
    def __call__(self, rows):
        return {name: value for name, value in super().__call__(rows).items() if name != "attention_mask"}


def bert(**config):
    return Case(lambda: models.tiny_bert(layers=4, **config))


REFUSED = {
    "frozen dropout": (BERT, {"frozen_eval": False}, "is in train mode .frozen_eval=False."),
    "dropout between": (Case(lambda: models.tiny_gpt2(layers=4)), {}, "'transformer.drop'.*to 0"),
    "NEFTune": (BERT, {"neftune_noise_alpha": 5.0}, "NEFTune"),
    "random rows": (Case(BERT.build, collate=NoisyPad()), {}, "rows change from one reading to the next"),
    "hidden states": (bert(output_hidden_states=True), {}, "config.output_hidden_states"),
    "two passes": (BERT, {"trainer": TwicePerStep}, "calls the model 2 times"),
    "no mask": (Case(BERT.build, collate=WithoutMask()), {}, "no attention mask that tells"),
    "few rows": (BERT, {"rows": texts(5)}, "5 rows are too few"),
    "nothing frozen in front": (BERT, {"trainable": "embeddings"}, "no module before the part that trains"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_kept_is_refused_with_the_reason_and_trained_without(tmp_path, caplog, why):
    case, given, message = REFUSED[why]
    given = {"trainable": ("head", "layers[-1]"), "eval_strategy": "no", **given}
    with kept_sets() as kept:
        cached = run(case, tmp_path / "cached", **given)
    assert kept == [[]]
    assert [record for record in caplog.records if "No features are cached for the training set" in record.getMessage()]
    assert re.search(message, caplog.text)
    plain = run(case, tmp_path / "plain", cache=False, **given)
    assert logged(cached) == logged(plain)


def test_iterable_data_is_refused(tmp_path, caplog):
    rows = Dataset.from_list(texts(26)).to_iterable_dataset()
    run(BERT, tmp_path, trainable="head", rows=rows, max_steps=6, eval_strategy="no")
    assert "the data is iterable" in caplog.text


def test_compiled_models_are_refused(tmp_path, caplog):
    run(BERT, tmp_path, trainable="head", torch_compile=True, torch_compile_backend="eager", max_steps=1)
    assert "torch.compile traces the frozen part" in caplog.text


def test_padding_that_is_read_is_refused(tmp_path, caplog):
    # RoBERTa's head reads position 0, which is padding where rows are padded on the left.
    run(Case(CASES["roberta"].build, collate=Pad("left")), tmp_path, trainable="head")
    assert "reads the padding in what roberta returns" in caplog.text


def test_an_unknown_type_is_refused_before_anything_begins(tmp_path):
    with pytest.raises(PlanError, match="cache_frozen_dtype='int8' is not one of float32, float16, bfloat16"):
        run(BERT, tmp_path, trainable="head", cache_frozen_dtype="int8")


# --- the form of storage, and what it is worth -------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_features_are_stored_in_the_type_asked_for_and_the_error_is_said(tmp_path, caplog, dtype, error):
    caplog.set_level(logging.INFO, "hf_freeze")
    plain = run(BERT, tmp_path / "plain", trainable=BERT.last, cache=False)
    with kept_sets() as kept:
        cached = run(BERT, tmp_path / "cached", trainable=BERT.last, cache_frozen_dtype=dtype)
    assert kept == [["training", "evaluation"]]
    assert f"stored as {dtype}: off by at most" in caplog.text
    notes = [json.loads(path.read_text()) for path in (tmp_path / "cached").rglob("part-*.json")]
    assert {column[2] for note in notes for column in note["columns"]} == {dtype}
    for one, other in zip(logged(plain), logged(cached), strict=True):
        assert one.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=3 * error)


def test_large_stores_are_read_from_disk_part_by_part(tmp_path, monkeypatch, small_parts):
    plain = run(BERT, tmp_path / "plain", trainable=BERT.last)
    monkeypatch.setattr(store, "RESIDENT_BYTES", 0)
    mapped = run(BERT, tmp_path / "mapped", trainable=BERT.last)
    assert logged(mapped) == logged(plain)


def said_on_the_terminal(capsys):
    """The lines without progress bars, what the Trainer logs, and what DeepSpeed says on its import."""
    lines = re.split(r"\x1b\[A|\r|\n", "".join(capsys.readouterr()))
    return [line for line in lines if line.strip() and line[0] not in "{[" and "%|" not in line]


KEPT = r"Caching bert.pooler_output for the training set and the evaluation set: [\d.]+ kB(, saves about \S+ s)?\."
SLOW = "Caching bert.pooler_output for the training set and the evaluation set takes longer than it saves."


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, KEPT),
        ({"cache_frozen_always": False, "num_train_epochs": 1}, re.escape(SLOW)),
    ],
    ids=["kept", "slow"],
)
def test_a_script_that_sets_no_level_is_told_in_one_line_what_is_kept(tmp_path, capsys, given, line):
    run(BERT, tmp_path, trainable="head", disable_tqdm=False, **given)
    (said,) = said_on_the_terminal(capsys)
    assert re.fullmatch(line, said)


@pytest.mark.parametrize("given", [{"neftune_noise_alpha": 5.0}, {"trainable": "embeddings"}])
def test_a_reason_that_holds_for_all_sets_is_said_once(tmp_path, caplog, given):
    run(BERT, tmp_path, **{"trainable": "head", **given})
    assert caplog.text.count("No features are cached for the training set and the evaluation set: ") == 1


def test_what_takes_longer_than_it_saves_is_not_kept(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "hf_freeze")
    with kept_sets() as kept:
        run(BERT, tmp_path, trainable="head", num_train_epochs=1, cache_frozen_always=False)
    assert kept == [[]]
    assert SLOW in caplog.text
    assert "26 rows, 1 passes, 1.66 kB" in caplog.text


def estimate(**given):
    values = {"rows": 100, "passes": 3.0, "row_seconds": 0.01, "cached_row_seconds": 0.001, "size": 1}
    return Estimate(**{**values, **given})


def test_stages_are_weighed_together_and_what_is_stored_costs_nothing():
    assert net_gain([estimate()]) > 0
    assert net_gain([estimate(passes=1.0)]) < 0
    assert net_gain([estimate(passes=1.0), estimate(passes=1.0, row_seconds=0.008)]) > 0
    assert net_gain([estimate(passes=1.0, stored=True)]) > 0
    assert net_gain([estimate(cached_row_seconds=0.02)]) < 0


def test_a_batch_with_other_lengths_than_stored_is_refused(tmp_path):
    folder, keys = FeatureStore(tmp_path, {}), np.array([[7, 1], [3, 2]])
    folder.write(0, keys, [Column(torch.arange(10.0).view(5, 2), torch.tensor([3, 2]))])
    features = folder.read(keys, torch.device("cpu"))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]) != 0
    found = features.rows(0, features.places(keys[::-1]), mask)
    assert found[0].tolist() == [[6, 7], [8, 9], [8, 9]]
    assert found[1].tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(CacheRefused, match="other lengths"):
        features.rows(0, features.places(keys), mask)
