"""Three transitions on the raw DeepSpeed engine, ZeRO 0 to 3, on gloo; `torchrun ... deepspeed_run.py OUT_FOLDER`.

The loop is a user's own: `param_groups`, `FreezeRun`, `deepspeed.initialize`, and nothing of the Trainer. `train` without
an engine is the same loop in plain PyTorch.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, set_seed

from hf_freeze import FreezePlan, Stage, param_groups
from hf_freeze.training.freezing import set_trainable
from hf_freeze.training.run import FreezeRun, FreezeSettings
from tests.models import image_rows, text_rows, tiny_bert, tiny_resnet

STEPS, ROWS = 9, 8
PLAN = FreezePlan(
    trainable="head",
    stages=[
        Stage(step=2, unfreeze="layers[-1]"),
        Stage(step=4, unfreeze="layers[-2]", freeze="head"),
        Stage(step=7, unfreeze="head", freeze="layers[-1]"),
    ],
)
STAGE_OF_STEP = [0, 0, 1, 1, 2, 2, 2, 3, 3]
NORMED_PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=2, unfreeze="backbone"), Stage(step=4, freeze="backbone")]
)


class DecoupledSGD(torch.optim.SGD):
    """Decays weights whatever the learning rate is, and has no moments."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"]).mul_(1 - group["weight_decay"])


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, eps=1e-3),
    "decoupled": lambda groups: DecoupledSGD(groups, lr=1e-2),
    "bf16": lambda groups: torch.optim.AdamW(groups),
}
CASES = [f"{optimizer}-zero{zero}" for optimizer in OPTIMIZERS for zero in range(4)]


def text_model() -> torch.nn.Module:
    model = tiny_bert(layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        model.bert.encoder.layer[2].output.dense.weight[0] = -0.0
    return model


def train(case: str, folder, *, model=None, plan=PLAN, rows=None, see=None):
    """Train by the plan; `see` is called with the model before the first step and after each."""
    name, _, zero = case.partition("-zero")
    model = text_model() if model is None else model
    rows = text_rows(STEPS * ROWS) if rows is None else rows
    args = TrainingArguments(str(folder), learning_rate=1e-2, weight_decay=0.1, use_cpu=True, report_to=[])
    resolved = plan.resolve(model)
    set_trainable(model, resolved.ever_trainable)
    base = OPTIMIZERS[name](param_groups(model, args, plan=plan))
    scheduler = LambdaLR(base, lambda step: 1 - step / (2 * STEPS))
    engine = initialize(model, base, zero=int(zero), bf16=name == "bf16") if zero else None
    run = FreezeRun(
        resolved,
        model,
        engine.optimizer if engine else base,
        settings=FreezeSettings(unfreeze_warmup=2),
        max_steps=STEPS,
        steps_per_epoch=None,
    )
    run.begin()
    see(model)
    rank, processes = (dist.get_rank(), dist.get_world_size()) if engine else (0, 1)
    for step in range(len(rows) // ROWS):
        run.step_begins(step)
        (engine or model).train()
        batch = rows[step * ROWS : (step + 1) * ROWS][rank::processes]
        inputs = {key: torch.stack([torch.as_tensor(row[key]) for row in batch]) for key in batch[0]}
        loss = (engine or model)(**inputs).loss
        if engine:
            engine.backward(loss)
            run.before_optimizer_step()
            engine.step()
        else:
            loss.backward()
            run.before_optimizer_step()
            base.step()
            base.zero_grad()
        run.after_optimizer_step()
        scheduler.step()
        see(model)
    run.conclude()
    return engine


def initialize(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, zero: int, bf16: bool):
    import deepspeed

    # A threshold of 0 cuts even the smallest tensors into pieces.
    config = {
        "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
        "zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32" if bf16 and zero == 1 else None},
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights as every process has them, put together where they are in pieces."""
    import deepspeed

    named = dict(model.named_parameters())
    pieces = [parameter for parameter in named.values() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(pieces, enabled=bool(pieces)):
        return {name: parameter.detach().clone() for name, parameter in named.items()}


def spread(tensors: dict[str, torch.Tensor]) -> float:
    """The largest difference between the processes."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    low, high = flat.clone(), flat.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    return float((high - low).max())


def text_case(case: str, folder: Path) -> dict:
    """Save the weights of every step; return how far replicas are apart and which layers are in train mode."""
    seen = {"spread": [], "in_train_mode": []}
    weights = {}

    def see(model):
        now = whole_weights(model)
        weights.update({f"{len(seen['spread'])}/{name}": tensor for name, tensor in now.items()})
        seen["spread"].append(spread(now))
        layers = enumerate(model.bert.encoder.layer)
        seen["in_train_mode"].append([index for index, layer in layers if layer.output.dropout.training])

    engine = train(case, folder / "arguments", see=see)
    seen["optimizer"] = type(engine.optimizer).__name__
    if dist.get_rank() == 0:
        save_file(weights, folder / f"{case}.safetensors")
    return seen


def normed_case(case: str, folder: Path) -> list[float]:
    """Return the running mean of a BatchNorm, summed up, after every step."""
    means = []
    train(
        case,
        folder / "arguments",
        model=tiny_resnet(),
        plan=NORMED_PLAN,
        rows=image_rows(6 * ROWS),
        see=lambda model: means.append(model.resnet.embedder.embedder.normalization.running_mean.double().sum().item()),
    )
    return means


def use_gloo_alone() -> None:
    """Leave out the all-reduce through shared memory, which DeepSpeed would compile for a minute, and has on Linux only."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main() -> None:
    use_gloo_alone()
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    folder = Path(sys.argv[1])
    set_seed(0)
    seen = {case: text_case(case, folder) for case in CASES}
    seen["normed"] = {case: normed_case(case, folder) for case in CASES if case.startswith("decoupled")}
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
