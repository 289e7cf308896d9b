"""Three transitions under FreezeTrainer and FSDP2 through accelerate; frozen weights in bfloat16, trained ones in float32.

`accelerate launch --use_fsdp --fsdp_version 2 ... accelerated_fsdp_run.py OUT_DIR gpu|cpu [PLAN]`: `seen.json`, and the
final weights as `whole.safetensors`. Accelerate runs FSDP on devices only; `cpu` makes it take gloo processes for such.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import DistributedType
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, Stage
from hf_freeze.plan.stages import Rotate
from tests.models import text_rows
from tests.ranks import process_group
from tests.training.scripts.sharded_run import PLAN, STEPS, build, cast_inputs
from tests.training.staged import arguments

WINDOW = 8  # rows per optimizer step over all processes
SAVED = 4  # in the second of four stages, and in the second period
PLANS = {
    "keeps": PLAN,
    "forgets": FreezePlan(
        trainable=["head", "layers[-2]"],
        stages=[
            Stage(step=3, unfreeze="layers[-1]", freeze="layers[-2]", forget=True),
            Stage(step=7, unfreeze="layers[-2]"),
        ],
    ),
    "rotates": FreezePlan(trainable=["head", "layers[:2]"], stages=[Rotate(layers=1, every=3)]),
}


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter with the shards of all ranks put together."""
    named = model.named_parameters()
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu().clone() for name, p in named}


class Watch(TrainerCallback):
    """Which weights every step moved, and which have a state of the optimizer after it."""

    def __init__(self) -> None:
        self.moved: list[list[str]] = []
        self.with_state: list[list[str]] = []
        self.sharded = True
        self._before: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._before = whole(model)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        now, named = whole(model), dict(model.named_parameters())
        self.moved.append([name for name in now if not torch.equal(now[name], self._before[name])])
        self.with_state.append([name for name, p in named.items() if p in optimizer.state])
        self.sharded &= all(isinstance(p, DTensor) for p in named.values())
        self._before = now


def train(
    folder: Path, *, use_cpu: bool, plan: str = "keeps", resume_from: Path | None = None, **values
) -> tuple[FreezeTrainer, Watch]:
    """Train; in one process without accelerate launch, it is what several processes are compared with."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    set_seed(0)
    model, watch = build(), Watch()
    cast_inputs(model)
    args = arguments(
        folder,
        use_cpu=use_cpu,
        max_steps=STEPS,
        per_device_train_batch_size=WINDOW // processes,
        adam_epsilon=1e-3,
        unfreeze_warmup=2,
        max_grad_norm=0.5,
        optim="adamw_torch",
        **values,
    )
    if use_cpu and dist.is_initialized():
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    elif not dist.is_initialized():
        args._n_gpu = min(args.n_gpu, 1)  # of several devices the Trainer would make a DataParallel
    rows = text_rows(STEPS * WINDOW)
    trainer = FreezeTrainer(model, args, train_dataset=rows, freeze_plan=PLANS[plan], callbacks=[watch])
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer, watch


def main() -> None:
    folder, given = Path(sys.argv[1]), {"use_cpu": sys.argv[2] == "cpu", "plan": (*sys.argv[3:], "keeps")[0]}
    with process_group(cpu=given["use_cpu"]):
        trainer, watch = train(folder / "run", **given, save_strategy="steps", save_steps=SAVED)
        found = whole(trainer.model)
        seen = {"moved": watch.moved, "with_state": watch.with_state, "sharded": watch.sharded}
        seen["fsdp_version"] = trainer.accelerator.state.fsdp_plugin.fsdp_version
        seen["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        resumed, _ = train(folder / "again", **given, resume_from=folder / "run" / f"checkpoint-{SAVED}")
        again = whole(resumed.model)
        seen["resumed_differs"] = [name for name in found if not torch.equal(found[name], again[name])]
        if dist.get_rank() == 0:
            save_file(found, folder / "whole.safetensors")
            (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
