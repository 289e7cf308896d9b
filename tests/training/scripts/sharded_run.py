"""Three transitions under raw FSDP2 (`fully_shard`) on gloo; `torchrun ... sharded_run.py OUT_FILE`.

The loop is a user's own: `param_groups`, `FreezeRun`, and nothing of the Trainer. What never trains is bfloat16.
"""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import TrainingArguments, set_seed

from hf_freeze import FreezePlan, Stage, param_groups
from hf_freeze.training.run import FreezeRun, FreezeSettings
from tests.models import text_rows, tiny_bert

STEPS, ROWS = 10, 8
PLAN = FreezePlan(
    trainable="head",
    stages=[
        Stage(step=2, unfreeze="layers[-1]"),
        Stage(step=5, unfreeze="layers[-2]", freeze="head"),
        Stage(step=8, unfreeze="head", freeze="layers[-1]"),
    ],
)


def build() -> torch.nn.Module:
    model = tiny_bert(layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for frozen in (model.bert.embeddings, *model.bert.encoder.layer[:2]):
        frozen.to(torch.bfloat16)
    return model


def shard(model: torch.nn.Module) -> None:
    """A unit of its own for every part, as the parameters of one unit share a dtype."""
    cast = MixedPrecisionPolicy(output_dtype=torch.float32, cast_forward_inputs=True)
    units = [model.bert.embeddings, *model.bert.encoder.layer]
    for unit in units:
        dtype = next(unit.parameters()).dtype
        fully_shard(unit, mp_policy=MixedPrecisionPolicy(param_dtype=dtype, output_dtype=torch.float32))
    fully_shard(model, mp_policy=cast)


def train(model: torch.nn.Module, rank: int, processes: int, folder: str) -> list[float]:
    resolved = PLAN.resolve(model)
    args = TrainingArguments(folder, learning_rate=1e-2, weight_decay=0.1, use_cpu=True, report_to=[])
    optimizer = torch.optim.AdamW(param_groups(model, args, plan=PLAN), eps=1e-3)
    run = FreezeRun(
        resolved, model, optimizer, settings=FreezeSettings(unfreeze_warmup=2), max_steps=STEPS, steps_per_epoch=None
    )
    run.begin()
    rows = text_rows(STEPS * ROWS)
    losses = []
    for step in range(STEPS):
        run.step_begins(step)
        model.train()
        batch = rows[step * ROWS : (step + 1) * ROWS][rank::processes]
        loss = model(**{key: torch.tensor([row[key] for row in batch]) for key in batch[0]}).loss
        loss.backward()
        run.before_optimizer_step()
        optimizer.step()
        run.after_optimizer_step()
        optimizer.zero_grad()
        losses.append(loss.item())
    run.conclude()
    return losses


def cast_inputs(model: torch.nn.Module) -> None:
    """What `MixedPrecisionPolicy` does, for the comparison in one process: each unit computes in its own dtype."""

    def before(module, args, kwargs):
        dtype = next(module.parameters()).dtype
        cast = lambda value: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value  # noqa: E731
        return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}

    def after(module, args, output):
        up = lambda value: value.float() if torch.is_tensor(value) and value.is_floating_point() else value  # noqa: E731
        return tuple(map(up, output)) if isinstance(output, tuple) else up(output)

    for unit in (model.bert.embeddings, *model.bert.encoder.layer):
        unit.register_forward_pre_hook(before, with_kwargs=True)
        unit.register_forward_hook(after)


def main() -> None:
    dist.init_process_group("gloo")
    set_seed(0)
    model = build()
    shard(model)
    train(model, dist.get_rank(), dist.get_world_size(), sys.argv[1] + ".args")
    whole = {name: tensor.full_tensor().contiguous() for name, tensor in model.named_parameters()}
    if dist.get_rank() == 0:
        save_file(whole, sys.argv[1])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
