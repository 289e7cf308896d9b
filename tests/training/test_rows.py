"""Rows of a matrix that train while its other rows are frozen: to the bit, in every loop."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from hf_freeze import (
    FreezePlan,
    FreezeRun,
    FreezeSettings,
    FreezeViolation,
    PlanError,
    Stage,
    UnsupportedSetupError,
    debug_sample,
    freeze,
    param_groups,
    preview,
    trainable_summary,
    unfreeze,
)
from hf_freeze.training.freezing import plan_as_it_is
from tests.forked import run_ranks
from tests.models import SIZES, SPECIAL, seeded, tiny_bert, tiny_gpt2_lm
from tests.reporting.test_preview_state import Held, wide_bert
from tests.training.runs import AtStep, arguments, freeze_trainer, training_logs, weights
from tests.training.scripts import rows_run

SCRIPTS = Path(__file__).parent / "scripts"
WORDS = "bert.embeddings.word_embeddings.weight"
NEW = "embeddings[-3:]"
ROWS = [{"input_ids": [61 + i % 3, 5 + i % 7, 6, 7 + i % 9], "labels": i % 2} for i in range(16)]
TEXT = [{**row, "labels": row["input_ids"]} for row in ROWS]


def masked_bert():
    return seeded(hf.BertForMaskedLM, hf.BertConfig(**SIZES, num_hidden_layers=2))


def llama(tied: bool):
    config = hf.LlamaConfig(**SIZES, **SPECIAL, num_key_value_heads=2, num_hidden_layers=2, tie_word_embeddings=tied)
    return seeded(hf.LlamaForCausalLM, config)


def moved_rows(before: dict, model: nn.Module) -> dict[str, list[int]]:
    """Return which rows of which tensors are no longer bit-equal."""
    changed = {}
    for name, now in weights(model).items():
        differs = (now != before[name]).reshape(len(now), -1).any(dim=1)
        if differs.any():
            changed[name] = differs.nonzero().flatten().tolist()
    return changed


def run(model, folder, *, rows=ROWS, **values):
    values = {"max_steps": 10, "weight_decay": 0.1, **values}
    trainer = freeze_trainer(model, folder, rows=rows, **values)
    trainer.train()
    return trainer


def step(model, optimizer, *, tokens=(61, 62, 63, 5)):
    model(input_ids=torch.tensor([tokens]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("build", "entry", "name", "rows"),
    [
        (masked_bert, NEW, WORDS, TEXT),
        (tiny_gpt2_lm, "lm_head[-3:]", "transformer.wte.weight", TEXT),
        (lambda: llama(tied=True), "lm_head[-3:]", "model.embed_tokens.weight", TEXT),
        (lambda: llama(tied=False), "embeddings[-3:]", "model.embed_tokens.weight", TEXT),
        (lambda: llama(tied=False), "lm_head[-3:]", "lm_head.weight", TEXT),
        (tiny_bert, NEW, WORDS, ROWS),
    ],
)
def test_all_other_rows_are_bit_equal_after_ten_steps_with_decay(tmp_path, build, entry, name, rows):
    model = build()
    before = weights(model)
    trainer = run(model, tmp_path, rows=rows, trainable=[entry], gradient_accumulation_steps=2, max_grad_norm=0.05)
    assert moved_rows(before, model) == {name: [61, 62, 63]}
    [state] = trainer.optimizer.state.values()
    assert state["exp_avg"].shape == (3, 16)


def test_only_the_gradient_of_what_trains_is_clipped_and_logged(tmp_path):
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    twin = copy.deepcopy(model)
    trainer = run(model, tmp_path, rows=ROWS[:4], trainable=[NEW], max_steps=1, log_grad_norms=True)
    [logged] = training_logs(trainer)
    twin(**trainer.data_collator(ROWS[:4])).loss.backward()
    norm = twin.get_parameter(WORDS).grad[61:].norm().item()
    assert [logged["grad_norm"], logged["grad_norm/trainable"]] == pytest.approx([norm, norm])


def test_a_loop_of_ones_own_over_all_parameters_leaves_the_other_rows():
    model = tiny_bert()
    freeze(model)
    assert unfreeze(model, NEW) == [f"{WORDS}[61:64]"]
    before = weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        step(model, optimizer)
    assert moved_rows(before, model) == {WORDS: [61, 62, 63]}


def test_a_loop_of_ones_own_over_param_groups_has_moments_for_the_rows_alone():
    model = tiny_bert()
    freeze(model, ["all", "!head", "!embeddings[-3:]"])
    before = weights(model)
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, weight_decay=0.1))
    for _ in range(3):
        step(model, optimizer)
    assert moved_rows(before, model)[WORDS] == [61, 62, 63]
    assert {tuple(state["exp_avg"].shape) for state in optimizer.state.values()} == {(3, 16), (2, 16), (2,)}


def test_rows_train_as_a_table_of_their_own_would():
    """The same steps as of an embedding that is put together from a frozen and a trainable part."""
    torch.manual_seed(0)
    table, head = nn.Embedding(10, 4), nn.Linear(4, 2)
    model = nn.Sequential(table, head)
    frozen, rows = table.weight.detach()[:7].clone(), nn.Parameter(table.weight.detach()[7:].clone())
    apart = torch.optim.AdamW([rows], lr=0.1, weight_decay=0.1)
    freeze(model, ["all", "!0[7:]"])
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1, weight_decay=0.1))
    for tokens in ([1, 7], [8, 2], [9, 9]):
        for _ in range(2):  # accumulated
            model(torch.tensor(tokens)).square().sum().backward()
            head(torch.cat([frozen, rows])[torch.tensor(tokens)]).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        torch.nn.utils.clip_grad_norm_([rows], 0.1)
        for one in (optimizer, apart):
            one.step()
            one.zero_grad()
    assert torch.equal(table.weight, torch.cat([frozen, rows]))


def test_no_gradient_of_a_matrix_is_kept_between_steps():
    """Neither by an optimizer that zeroes its rows alone, nor while the next batch goes through the model."""
    model = tiny_bert()
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    step(model, optimizer)
    assert model.get_parameter(WORDS).grad is None


def test_gradients_that_were_zeroed_without_a_step_are_gone():
    """A gradient scaler skips a step that overflowed; the optimizer then zeroes what it holds, rows and no matrix."""
    model = tiny_bert()
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    (model(input_ids=torch.tensor([[61]]), labels=torch.tensor([1])).loss * float("inf")).backward()
    optimizer.zero_grad()
    step(model, optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_no_stale_gradient_moves_rows_that_a_batch_does_not_reach():
    model = tiny_bert()
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.SGD(param_groups(model, lr=0.01), lr=0.01)
    step(model, optimizer)
    before = weights(model)
    model.zero_grad()
    optimizer.step()
    assert moved_rows(before, model) == {}
    step(model, optimizer, tokens=(5, 6))
    assert moved_rows(before, model) == {}


@pytest.mark.parametrize("accumulates", [False, True])
def test_a_gradient_that_a_loop_sets_itself_is_what_is_stepped(accumulates):
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.SGD(param_groups(model, lr=1.0), lr=1.0)
    [rows] = optimizer.param_groups[0]["params"]
    before, batch = weights(model), {"input_ids": torch.tensor([[61, 62, 63, 5]]), "labels": torch.tensor([1])}
    model(**batch).loss.backward()
    once = rows.grad.clone()
    rows.grad = rows.grad * 4
    if accumulates:
        model(**batch).loss.backward()
    optimizer.step()
    assert moved_rows(before, model) == {WORDS: [61, 62, 63]}
    torch.testing.assert_close(before[WORDS][61:] - rows, once * (5 if accumulates else 4))


def test_rows_follow_a_matrix_that_is_put_elsewhere():
    model = tiny_bert()
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    matrix = model.get_parameter(WORDS)
    matrix.data = matrix.data.clone()  # as `model.to(device)` does
    before = weights(model)
    step(model, optimizer)
    assert moved_rows(before, model) == {WORDS: [61, 62, 63]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_follow_a_model_that_gets_another_type_between_two_steps(dtype):
    model = tiny_bert()
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.SGD(param_groups(model, lr=1.0), lr=1.0)
    step(model, optimizer)
    model.to(dtype)
    before = weights(model)
    step(model, optimizer)
    assert moved_rows(before, model) == {WORDS: [61, 62, 63]}


def test_nothing_stays_at_a_matrix_that_trains_whole_again():
    model = tiny_bert()
    freeze(model, "embeddings[:5]")
    matrix = model.get_parameter(WORDS)
    assert [len(matrix._backward_hooks), len(matrix._post_accumulate_grad_hooks)] == [1, 1]
    unfreeze(model)
    assert [len(matrix._backward_hooks), len(matrix._post_accumulate_grad_hooks)] == [0, 0]
    freeze(model, "embeddings[:5]")
    before = weights(model)
    step(model, torch.optim.AdamW(model.parameters()), tokens=(3, 61, 5))
    assert moved_rows(before, model)[WORDS] == [*range(5, 64)]


def test_rows_of_which_no_batch_has_a_token_are_reported_with_that_cause(tmp_path):
    rows = [{**row, "input_ids": [5, 6, 7]} for row in ROWS]
    with pytest.raises(FreezeViolation, match=r"Nothing of 'embeddings\[-3:\]' trained. .* no batch with a token of"):
        run(tiny_bert(), tmp_path, rows=rows, trainable=["head", NEW], weight_decay=0.0, max_steps=2)


def test_rows_that_train_follow_the_stages(tmp_path):
    stages = [
        Stage(step=2, unfreeze="embeddings[-3:]"),
        Stage(step=4, freeze="embeddings[-1]"),
        Stage(step=6, unfreeze="embeddings"),
    ]
    seen = []

    class Watch(hf.TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            self.before = weights(model)

        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(moved_rows(self.before, model).get(WORDS, []))

    model = tiny_bert()
    plan = FreezePlan(trainable="head", stages=stages)
    trainer = run(model, tmp_path, freeze_plan=plan, max_steps=8, callbacks=[Watch()], unfreeze_warmup=2)
    assert seen[:6] == [[], [], [61, 62, 63], [61, 62, 63], [61, 62], [61, 62]]
    assert set(seen[6]) > {5, 61, 62, 63}
    logs = training_logs(trainer)
    assert [entry["trainable_params"] for entry in logs][::2] == [34, 34 + 48, 34 + 32, 34 + 64 * 16 + 32 * 16 + 64]
    assert logs[2]["lr/trainable in stages 1 and 3"] == pytest.approx(
        logs[3]["lr/trainable in stages 1 and 3"] / 2, rel=0.2
    )


def test_rows_have_rates_of_their_own(tmp_path):
    model = tiny_bert()
    trainer = run(model, tmp_path, trainable=["head", "embeddings"], group_lrs={NEW: 0.05}, max_steps=2)
    sizes = {group["name"]: [len(p) for p in group["params"]] for group in trainer.optimizer.param_groups}
    assert sizes[NEW] == [3]
    assert 61 in sizes["trainable"]
    with pytest.raises(PlanError, match="matched twice"):
        run(tiny_bert(), tmp_path, trainable=["embeddings"], group_lrs={NEW: 0.05, "embeddings[-1]": 0.01})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_model_with_frozen_rows_is_warned_of(tmp_path, caplog, copied):
    model = tiny_bert()
    freeze(model, "embeddings[:5]")
    twin = copied(model)
    assert "while rows of 'bert.embeddings.word_embeddings.weight' were frozen. The copy does not know" in caplog.text
    caplog.clear()
    copied(twin)
    preview(model, arguments(tmp_path))
    unfreeze(model)
    copied(model)
    assert not caplog.text


def test_a_run_that_resumes_ends_bit_equal(tmp_path):
    values = {"trainable": ["head", NEW], "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = run(tiny_bert(), tmp_path / "whole", **values)
    resumed = freeze_trainer(tiny_bert(), tmp_path / "again", rows=ROWS, weight_decay=0.1, **values)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-3"))
    assert moved_rows(weights(whole.model), resumed.model) == {}


def test_a_matrix_that_was_resized_is_held_anew(tmp_path):
    model = tiny_bert()
    trainer = freeze_trainer(model, tmp_path, rows=ROWS, trainable=["head", NEW], max_steps=2)
    model.resize_token_embeddings(66, mean_resizing=False)
    trainer.train()
    assert f"{WORDS}[63:66]" in trainer.resolved_plan.stages[0]
    shrunk = tiny_bert()
    trainer = freeze_trainer(shrunk, tmp_path, rows=ROWS, trainable=["head", "embeddings[61:64]"])
    shrunk.resize_token_embeddings(63, mean_resizing=False)
    with pytest.raises(ValueError, match="past the end"):
        trainer.train()


def test_a_matrix_that_is_resized_in_the_middle_of_a_loop_is_refused():
    model = tiny_bert()
    freeze(model, ["all", f"!{NEW}"])
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    matrix = model.get_parameter(WORDS)
    matrix.data = torch.zeros(66, 16)
    with pytest.raises(UnsupportedSetupError, match="had 64 rows and now has 66"):
        step(model, optimizer)


@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end"])
@pytest.mark.parametrize("trainable", [["head", "embeddings"], "head", ["head", "embeddings[5:8]"]], ids=str)
def test_a_matrix_that_is_resized_while_a_trainer_trains_is_named(tmp_path, event, trainable):
    resize = AtStep(lambda model, _: model.resize_token_embeddings(60, mean_resizing=False), event=event)
    low = [{**row, "input_ids": [5, 6, 7, 8]} for row in ROWS]
    with pytest.raises(UnsupportedSetupError, match=f"'{WORDS}' had 64 rows at the start, and has 60 now"):
        run(tiny_bert(), tmp_path, rows=low, trainable=trainable, callbacks=[resize])


def test_a_module_that_came_after_the_plan_was_resolved_is_no_resized_matrix():
    model = tiny_bert()
    resolved = FreezePlan(trainable="head").resolve(model)
    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=0.01)
    before = model.classifier.weight.detach().clone()
    model.extra = torch.nn.Linear(4, 4).requires_grad_(False)
    run = FreezeRun(resolved, model, optimizer, settings=FreezeSettings(), max_steps=2, steps_per_epoch=None)
    run.begin()
    for number in range(2):
        run.step_begins(number)
        model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([1])).loss.backward()
        run.before_optimizer_step()
        optimizer.step()
        run.after_optimizer_step()
    run.conclude()
    assert not torch.equal(model.classifier.weight, before)


def test_what_froze_rows_is_what_a_trainer_without_a_plan_goes_by(tmp_path):
    model = tiny_bert()
    freeze(model, ["all", "!head", f"!{NEW}"])
    assert set(plan_as_it_is(model).trainable) == {f'"{WORDS}"[61:64]', '"classifier.weight"', '"classifier.bias"'}
    before = weights(model)
    run(model, tmp_path)
    assert moved_rows(before, model)[WORDS] == [61, 62, 63]


def test_the_summary_counts_rows():
    model = tiny_bert()
    freeze(model)
    unfreeze(model, NEW)
    assert trainable_summary(model).trainable == 3 * 16
    assert freeze(model, "embeddings[61]") == [f"{WORDS}[61:62]"]
    assert trainable_summary(model).trainable == 2 * 16
    assert freeze(model, "embeddings[62:]") == [WORDS]
    assert not model.get_parameter(WORDS).requires_grad


@pytest.mark.parametrize("backend", ["fsdp", "deepspeed"])
def test_sharded_weights_are_refused(tmp_path, monkeypatch, backend):
    monkeypatch.setattr("hf_freeze.training.setup.is_whole", lambda args: False)
    with pytest.raises(
        UnsupportedSetupError, match="does not treat all rows of 'bert.embeddings.word_embeddings.weight'"
    ):
        freeze_trainer(tiny_bert(), tmp_path, trainable=["head", NEW])


def test_a_matrix_that_was_sharded_since_the_plan_was_resolved_is_refused(tmp_path):
    model = tiny_bert()
    resolved = FreezePlan(trainable=["head", NEW]).resolve(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        table = model.bert.embeddings.word_embeddings
        table.weight = nn.Parameter(distribute_tensor(table.weight.detach(), mesh, [Shard(0)]))
        optimizer = torch.optim.AdamW(model.parameters())
        with pytest.raises(UnsupportedSetupError, match="kept in shards"):
            FreezeRun(resolved, model, optimizer, settings=FreezeSettings(), max_steps=2, steps_per_epoch=None)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_preview_counts_rows_to_the_byte(tmp_path, optim):
    watch, model, some = Held(), wide_bert(), "embeddings[5:60]"
    values = {"optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None}
    plan = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze=some), Stage(step=4, freeze=some)])
    trainer = freeze_trainer(model, tmp_path, freeze_plan=plan, max_steps=6, callbacks=[watch], **values)
    trainer.train()
    seen = preview(wide_bert(), arguments(tmp_path, **values), plan=plan)
    assert [seen.stages[stage].optimizer_bytes for stage in (0, 0, 1, 1, 2, 2)] == watch.state
    assert [seen.stages[stage].gradient_bytes for stage in (0, 0, 1, 1, 2, 2)] == watch.gradients


def test_one_sample_knows_rows(tmp_path):
    trainer = freeze_trainer(tiny_bert(), tmp_path, rows=ROWS, trainable=["head", NEW], max_steps=1)
    trainer.create_optimizer()
    report = debug_sample(trainer, checks="full", backward=True)
    assert report["plan"].status == report["optimizer"].status == "ok"
    assert report.facts["model"]["trainable"] == 34 + 48


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(SCRIPTS / "rows_run.py", folder)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_on_two_processes_the_same_rows_move_as_on_one(two_processes, tmp_path, kind):
    ranks = [json.loads((two_processes / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks == [{"moved": [61, 62, 63], "others": []}] * 2
    rows = [load_file(two_processes / f"{kind}-{rank}.safetensors")["rows"] for rank in (0, 1)]
    assert torch.equal(*rows)
    torch.testing.assert_close(rows[0], rows_run.run(kind, tmp_path)["rows"], rtol=1e-3, atol=1e-5)
