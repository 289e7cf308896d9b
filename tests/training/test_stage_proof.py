"""What goes wrong in a later stage is found, with the parameters and the likely cause in the message."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, default_data_collator

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, FreezeViolation, Stage
from tests.forked import run_ranks
from tests.models import image_rows, text_rows, tiny_bert, tiny_resnet
from tests.training.runs import AtStep
from tests.training.staged import arguments

SCRIPT = Path(__file__).parent / "scripts" / "faulty_run.py"
PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(step=4, unfreeze="layers[-2]", freeze="layers[-1]")],
)
QUERY = "bert.encoder.layer.2.attention.self.query.weight"
every_way_in = pytest.mark.parametrize("how", ["trainer", "callback"])


def staged(folder, how: str, *, plan=PLAN, model=None, rows=None, callbacks=(), trainer=None, **values) -> Trainer:
    """Eight steps under FreezeTrainer, or under a plain Trainer with the callback."""
    args = arguments(folder, **{"max_steps": 8, "weight_decay": 0.0, **values})
    shared = {"train_dataset": text_rows(20) if rows is None else rows, **(trainer or {})}
    model = tiny_bert(layers=3) if model is None else model
    if how == "trainer":
        return FreezeTrainer(model, args, freeze_plan=plan, callbacks=list(callbacks), **shared)
    return Trainer(model, args, callbacks=[FreezeCallback(plan), *callbacks], **shared)


@every_way_in
def test_a_parameter_that_thaws_later_but_is_left_out_of_the_optimizer_is_named_before_the_first_step(
    tmp_path, how
) -> None:
    """What a Trainer does that froze first and built its optimizer over what required a gradient."""
    model = tiny_bert(layers=3)
    others = [parameter for name, parameter in model.named_parameters() if name != QUERY]
    optimizers = {"optimizers": (torch.optim.AdamW(others), None)}
    made = staged(tmp_path, how, model=model, trainer=optimizers)
    with pytest.raises(
        FreezeViolation, match=f"'{QUERY}' should train, but the optimizer does not hold it.*param_groups"
    ):
        made.train()
    assert made.state.global_step == 0


class DecaysWhatIsFrozen(TrainerCallback):
    """Weight decay by hand over all rows of a weight, after the plan froze it again."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 5:
            with torch.no_grad():
                model.get_parameter(QUERY).mul_(0.999)


@every_way_in
def test_weight_decay_on_what_a_later_stage_froze_is_named(tmp_path, how) -> None:
    made = staged(tmp_path, how, callbacks=[DecaysWhatIsFrozen()])
    with pytest.raises(FreezeViolation, match=f"'{QUERY}' changed although frozen.*weight decay applied by hand"):
        made.train()


@every_way_in
def test_it_is_found_before_the_next_checkpoint_goes_on_without_a_word(tmp_path, how) -> None:
    made = staged(tmp_path, how, callbacks=[DecaysWhatIsFrozen()], save_strategy="steps", save_steps=2)
    with pytest.raises(FreezeViolation, match="changed although frozen"):
        made.train()
    assert made.state.global_step == 6


@every_way_in
def test_what_moved_in_the_stage_before_is_found_at_the_transition(tmp_path, how) -> None:
    """Afterwards, when it trains itself, nobody could tell."""

    def edit(model, optimizer):
        model.get_parameter(QUERY).data.add_(1)

    made = staged(tmp_path, how, callbacks=[AtStep(edit, step=1)])
    with pytest.raises(FreezeViolation, match=f"'{QUERY}' changed although frozen"):
        made.train()
    assert made.state.global_step == 2


class TrainsItsBatchNorm(nn.Module):
    """A user's module that puts its backbone into train mode in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = tiny_resnet().resnet
        self.out = nn.Linear(16, 2)

    def forward(self, pixel_values, labels=None):
        self.resnet.train()
        logits = self.out(self.resnet(pixel_values).pooler_output.flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@every_way_in
def test_a_batchnorm_in_train_mode_after_it_was_frozen_again_is_named(tmp_path, how) -> None:
    """While it trains, its statistics may move; from step 2 on they may not."""
    plan = FreezePlan(trainable="all", stages=[Stage(step=2, freeze="resnet"), Stage(step=4, unfreeze="resnet")])
    made = staged(
        tmp_path,
        how,
        plan=plan,
        model=TrainsItsBatchNorm(),
        rows=image_rows(20),
        trainer={"data_collator": default_data_collator},
    )
    with pytest.raises(
        FreezeViolation, match=r"running_mean'.* changed although frozen.*train\(\) on it inside forward"
    ):
        made.train()
    assert made.state.global_step == 4


class SkipsALayer(nn.Module):
    """Detaches the layer that a later stage thaws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Embedding(64, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.head(self.layers[1](self.layers[0](input_ids).mean(dim=1)).detach())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@every_way_in
def test_a_stage_whose_thawed_part_never_gets_a_gradient_is_named_at_the_end(tmp_path, how) -> None:
    plan = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="layers.1")])
    made = staged(tmp_path, how, plan=plan, model=SkipsALayer())
    with pytest.raises(
        FreezeViolation, match=r"'layers\.1\.weight'.*did not change.*Nothing of 'layers\.1' trained.*detach"
    ):
        made.train()


@every_way_in
@pytest.mark.parametrize("values", [{}, {"weight_decay": 0.5}, {"save_strategy": "steps", "save_steps": 1}], ids=str)
def test_a_healthy_run_is_never_accused(tmp_path, how, values, caplog) -> None:
    made = staged(tmp_path, how, **values)
    made.train()
    assert made.state.global_step == 8
    assert not [record for record in caplog.records if record.name.startswith("hf_freeze.training.proof")]


# Two processes


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("faults")
    run_ranks(SCRIPT, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


EDITED = r"'bert\.embeddings\.word_embeddings\.weight' "


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "step", "messages"),
    [
        ("none", 8, ["$", "$"]),
        ("stale reducer", 5, [r"'bert\.encoder\.layer\.2\..* differ .*without rebuilding its reducer"] * 2),
        ("decay on one process", 5, [f"{EDITED}differ between", f"{EDITED}changed although frozen"]),
    ],
)
def test_what_makes_replicas_differ_is_raised_on_every_process_at_the_next_transition(
    ranks, fault, step, messages
) -> None:
    """None hangs: a process that raised alone would leave the others waiting for it."""
    for rank, message in zip(ranks, messages, strict=True):
        assert rank[fault]["step"] == step
        assert re.match(message, rank[fault]["said"])


@every_way_in
def test_a_run_resumed_right_at_a_transition_is_not_accused_of_what_that_freezes(tmp_path, how) -> None:
    """The resumed run makes no step of the stage before it."""
    staged(tmp_path, how, save_strategy="steps", save_steps=4).train()
    resumed = staged(tmp_path, how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.state.global_step == 8
