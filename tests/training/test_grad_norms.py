"""`grad_norm/<group>` in the logs: what each optimizer group adds to `grad_norm`."""

import math

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainerCallback

from hf_freeze import FreezeCallback, FreezePlan, PlanError, Stage, UnsupportedSetupError, param_groups
from hf_freeze.training.bound_plan import bind
from hf_freeze.training.grad_norms import norms_by_group, parameters_by_group
from tests.models import tiny_bert
from tests.training.staged import trainer

PLAN = FreezePlan(trainable="head", stages=[Stage(step=3, unfreeze="layers[-1]")], lr_factors={"head": 2.0})
STEPS = 6


class Gradients(TrainerCallback):
    """The norm of each part's gradient as the optimizer sees it."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parts = {"head": "classifier", "trainable": "layer.2."}
        self.norms.append({name: _norm(model, text) for name, text in parts.items()})


def _norm(model, text):
    found = [p.grad.flatten() for name, p in model.named_parameters() if text in name and p.grad is not None]
    return float(torch.cat(found).norm()) if found else 0.0


def run(folder, how="trainer", *, plan=PLAN, **values) -> Trainer:
    seen = Gradients()
    values = {"max_steps": STEPS, "max_grad_norm": 0.1, **values}
    if how == "trainer":
        made = trainer(folder, plan=plan, log_grad_norms=True, trainer={"callbacks": [seen]}, **values)
    else:
        callbacks = [FreezeCallback(plan, log_grad_norms=True), seen]
        made = trainer(folder, cls=Trainer, trainer={"callbacks": callbacks}, **values)
        made.optimizer = torch.optim.AdamW(param_groups(made.model, made.args, plan=plan))
    made.train()
    made.seen = seen.norms
    return made


def logged(made: Trainer) -> list[dict[str, float]]:
    return [
        {name.removeprefix("grad_norm/"): value for name, value in entry.items() if name.startswith("grad_norm/")}
        for entry in made.state.log_history
        if "loss" in entry
    ]


@pytest.mark.parametrize("how", ["trainer", "callback"])
def test_the_norms_are_those_before_clipping_and_make_up_the_whole(tmp_path, how) -> None:
    made = run(tmp_path, how)
    totals = [entry["grad_norm"] for entry in made.state.log_history if "loss" in entry]
    assert len(totals) == len(made.seen) == STEPS
    assert min(totals) > 0.1  # every step was clipped
    for step, (found, total, clipped) in enumerate(zip(logged(made), totals, made.seen, strict=True)):
        assert found.keys() == ({"head"} if step < 3 else {"head", "trainable"})
        assert math.hypot(*found.values()) == pytest.approx(total, rel=1e-4)
        scale = total / math.hypot(*clipped.values())
        assert found == pytest.approx({name: scale * clipped[name] for name in found}, rel=1e-4)


def test_without_clipping_they_are_what_the_optimizer_sees(tmp_path) -> None:
    made = run(tmp_path, max_grad_norm=0.0)
    for found, seen in zip(logged(made), made.seen, strict=True):
        assert found == pytest.approx({name: seen[name] for name in found}, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"logging_steps": 2}, [2, 4, 6]),
        ({"logging_steps": 4, "logging_first_step": True}, [1, 4]),
        ({"logging_strategy": "epoch"}, [5, 6]),
    ],
)
def test_only_steps_that_are_logged_are_measured(tmp_path, values, steps, monkeypatch) -> None:
    measured = []
    real = norms_by_group

    def counted(*args):
        measured.append(True)
        return real(*args)

    monkeypatch.setattr("hf_freeze.training.planned_training.norms_by_group", counted)
    made = run(tmp_path, **values)
    with_norms = [e["step"] for e in made.state.log_history if any(name.startswith("grad_norm/") for name in e)]
    assert with_norms == steps
    assert len(measured) == len(steps)


def test_nothing_is_logged_where_it_is_not_asked_for(tmp_path) -> None:
    made = trainer(tmp_path, plan=PLAN, max_steps=2)
    made.train()
    assert not any(name.startswith("grad_norm/") for entry in made.state.log_history for name in entry)


def test_parts_that_differ_in_weight_decay_count_as_one_group() -> None:
    model = tiny_bert(layers=1)
    bound = bind(FreezePlan(trainable="all"), model)
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=0.1), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert len(optimizer.param_groups) == 2
    count = sum(parameter.numel() for parameter in model.parameters())
    assert norms_by_group(parameters_by_group(optimizer, bound)) == pytest.approx({"trainable": math.sqrt(count)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_are_added_up_in_no_less_than_single_precision(dtype) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1000, dtype=dtype))
    parameter.grad = torch.full((1000,), 0.5, dtype=dtype)
    assert norms_by_group({"one": [parameter], "frozen": []}) == pytest.approx({"one": math.sqrt(250)}, rel=1e-5)


def test_a_sparse_gradient_counts_each_row_once() -> None:
    table = torch.nn.Embedding(6, 4, sparse=True)
    table(torch.tensor([1, 1, 3])).sum().backward()
    assert norms_by_group({"table": [table.weight]}) == pytest.approx({"table": math.sqrt(4 * 4 + 4)})


def test_a_gradient_in_shards_counts_as_a_whole(one_process) -> None:
    layer = torch.nn.Linear(3, 2)
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    layer(torch.ones(1, 3)).sum().backward()
    assert norms_by_group({"layer": [*layer.parameters()]}) == pytest.approx({"layer": math.sqrt(6 + 2)})


def test_what_no_process_has_whole_is_refused(tmp_path) -> None:
    with pytest.raises(UnsupportedSetupError, match="log_grad_norms=True reads whole gradients"):
        trainer(tmp_path, plan=PLAN, log_grad_norms=True, fsdp="full_shard", fsdp_config={"version": 2})


@pytest.mark.parametrize("given", ["yes", 1, None])
def test_a_value_that_is_no_flag_is_refused(tmp_path, given) -> None:
    with pytest.raises(PlanError, match="log_grad_norms="):
        FreezeCallback(PLAN, log_grad_norms=given)
    with pytest.raises(PlanError, match="log_grad_norms="):
        trainer(tmp_path, plan=PLAN, log_grad_norms=given)
