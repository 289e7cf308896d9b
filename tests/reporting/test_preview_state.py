"""Optimizer state and gradients are those of a run, also of optimizers that are not torch's, and of idle weights."""

import pytest
import torch
from transformers import TrainerCallback

from hf_freeze import FreezePlan, Stage, preview, recipes
from hf_freeze.reporting.preview.optimizer_state import held_state
from hf_freeze.training.groups import group_specs
from tests.models import text_batch, tiny_bert
from tests.quiet import quiet_arguments as arguments
from tests.training.runs import freeze_trainer

STAGED = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze=["layers[-1]", "embeddings"])])
PACKAGES = {
    "adamw_8bit": "bitsandbytes",
    "lion_8bit": "bitsandbytes",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_4bit": "torchao",
    "schedule_free_adamw": "schedulefree",
    "apollo_adamw": "apollo_torch",
    "galore_adamw": "galore_torch",
    "stable_adamw": "optimi",
}
COMPILED = [optim for optim, package in PACKAGES.items() if package == "torchao"]


def wide_bert():
    """Matrices of more than 4096 elements, which is where optimizers begin to quantise."""
    return tiny_bert(hidden_size=64, intermediate_size=128, vocab_size=128)


def pieces(value) -> dict[int, int]:
    """Return address -> bytes, apart from what is tested: of parts, or of elements."""
    if hasattr(value, "projection_matrix") or hasattr(value, "ortho_matrix"):
        return joined(pieces(part) for part in vars(value).values() if isinstance(part, torch.Tensor))
    if not isinstance(value, torch.Tensor):
        return {}
    if type(value) is torch.Tensor:
        return {value.data_ptr(): value.numel() * value.element_size()}
    return joined(pieces(getattr(value, part)) for part in value.__tensor_flatten__()[0])


def joined(several) -> dict[int, int]:
    return {address: size for found in several for address, size in found.items()}


class Held(TrainerCallback):
    def __init__(self) -> None:
        self.state, self.gradients = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(sum(p.grad.numel() * 4 for p in model.parameters() if p.grad is not None))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        inner = getattr(optimizer, "optimizer", optimizer)
        state = joined(pieces(value) for held in inner.state.values() for value in held.values())
        self.state.append(sum(state.values()))


def trained(tmp_path, model, **values):
    watch = Held()
    trainer = freeze_trainer(model, tmp_path, callbacks=[watch], verify_freeze=False, **values)
    trainer.train()
    return watch


@pytest.mark.filterwarnings("ignore")  # the packages' own
@pytest.mark.parametrize(
    "optim",
    [
        *("adagrad", "rmsprop", *(optim for optim in PACKAGES if optim not in COMPILED)),
        *(pytest.param(optim, marks=pytest.mark.slow) for optim in COMPILED),
    ],
)
def test_the_state_of_every_optimizer_is_what_a_run_allocates(tmp_path, optim):
    if optim in PACKAGES:
        pytest.importorskip(PACKAGES[optim])
    values = {"optim": optim, "learning_rate": 1e-3}
    if "galore" in optim or "apollo" in optim:
        values |= {"optim_target_modules": ["query", "value"], "optim_args": "rank=8"}
    seen = preview(wide_bert(), arguments(**values), plan=STAGED)
    watch = trained(tmp_path, wide_bert(), freeze_plan=STAGED, max_steps=4, **values)
    assert [stage.optimizer_bytes for stage in seen.stages] == pytest.approx([watch.state[1], watch.state[3]], rel=0.02)


@pytest.mark.filterwarnings("ignore")  # the package's own
def test_the_code_tables_that_8_bit_states_share_count_once(tmp_path):
    # What an earlier run in this process asked of its embeddings, by their places in its groups.
    pytest.importorskip("bitsandbytes").optim.GlobalOptimManager.get_instance().initialize()
    values, plan = {"optim": "adamw_8bit", "learning_rate": 1e-3}, recipes.rotate(layers=1, every=2)
    seen = preview(wide_bert(), arguments(**values), plan=plan)
    watch = trained(tmp_path, wide_bert(), freeze_plan=plan, max_steps=5, **values)
    assert watch.state == [seen.stages[0].optimizer_bytes] * 5


def test_what_adagrad_holds_of_later_stages_is_in_the_first():
    first = preview(wide_bert(), arguments(optim="adagrad"), plan=STAGED).stages[0]
    later = [group for group in first.groups if not group.trains]
    assert later
    assert all(group.optimizer_bytes and not group.gradient_bytes for group in later)


def test_an_optimizer_that_asks_for_values_is_told_any(monkeypatch):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["seen"] = torch.zeros_like(parameter)
                parameter.grad.mul_(parameter.grad.norm().item())

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    model, args = tiny_bert(), arguments(optim="sgd")
    resolved = FreezePlan(trainable="all").resolve(model)
    specs = group_specs(resolved, args, decayed=[], group_lrs={}, layer_lr_decay=1.0)
    held = held_state(specs, model, args)
    assert {name: sum(state.stepped.values()) for name, state in held.items()} == {
        name: parameter.numel() * 4 for name, parameter in model.named_parameters()
    }


class Idle(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(8, 2), torch.nn.Linear(8, 8)

    def forward(self, input):
        return self.used(input)


def test_what_a_batch_gives_no_gradient_has_none_and_no_state_but_is_sent():
    seen = preview(Idle(), arguments(), plan=FreezePlan(trainable="all"), batch={"input": torch.zeros(4, 8)})
    (stage,) = seen.stages
    assert (stage.gradient_bytes, stage.optimizer_bytes) == (18 * 4, 2 * (18 * 4) + 2 * 4)
    assert stage.ddp_bytes == (18 + 72) * 4
    assert "'unused.bias' and 1 other tensors in this batch" in seen.remarks[0]


def test_a_made_up_batch_takes_nothing_out():
    model = tiny_bert()
    model.unused = torch.nn.Linear(8, 8)
    seen = preview(model, arguments(), plan=FreezePlan(trainable="all"))
    assert seen.stages[0].gradient_bytes == sum(p.numel() * 4 for p in model.parameters())
    assert "'unused.bias' and 1 other tensors in a made-up batch" in seen.remarks[0]
    given = preview(model, arguments(), plan=FreezePlan(trainable="all"), batch=text_batch(2))
    assert given.stages[0].gradient_bytes == seen.stages[0].gradient_bytes - 72 * 4
