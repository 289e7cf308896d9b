"""Stages under FreezeTrainer and DeepSpeed, ZeRO 0 to 3, on gloo; `torchrun ... deepspeed_trainer_run.py OUT_DIR`.

Per stage of ZeRO `zeroN.safetensors` with the weights before the first step and after each, and in `seen.json` what was
seen. `train` without ZeRO is the same run without DeepSpeed.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import TrainerCallback, set_seed

from hf_freeze import FreezeTrainer
from tests.models import text_rows, tiny_bert
from tests.training.scripts.deepspeed_run import PLAN, ROWS, STEPS, spread, use_gloo_alone, whole_weights
from tests.training.staged import arguments

SAVED = 5  # in the third of four stages
CONFIG = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


class Watch(TrainerCallback):
    """The weights before the first step and after each, and the rates that were logged."""

    def __init__(self, weights_of) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self._weights_of = weights_of

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = [self._weights_of(model)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(self._weights_of(model))


def clones(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train(folder: Path, zero: int | None = None, resume_from: Path | None = None, **values):
    processes = int(os.environ["WORLD_SIZE"]) if zero is not None else 1
    set_seed(0)
    # A threshold of 0 cuts even the smallest tensors into pieces.
    sharding = {"zero_optimization": {"stage": zero, "stage3_param_persistence_threshold": 0}}
    args = arguments(
        folder,
        use_cpu=True,
        deepspeed={**CONFIG, **sharding} if zero is not None else None,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS // processes // 2,
        gradient_accumulation_steps=2,
        adam_epsilon=1e-3,
        max_grad_norm=0.0,
        unfreeze_warmup=2,
        optim="adamw_torch",
        **values,
    )
    watch = Watch(clones if zero is None else whole_weights)
    trainer = FreezeTrainer(
        tiny_bert(layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        args,
        train_dataset=text_rows(STEPS * ROWS),
        freeze_plan=PLAN,
        callbacks=[watch],
    )
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer, watch.weights


def case(zero: int, folder: Path) -> dict:
    trainer, weights = train(folder / "run", zero, save_strategy="steps", save_steps=SAVED)
    again, resumed = train(folder / "again", zero, resume_from=folder / "run" / f"checkpoint-{SAVED}")
    if dist.get_rank() == 0:
        flat = {f"{step}/{name}": tensor for step, now in enumerate(weights) for name, tensor in now.items()}
        save_file(flat, folder / "weights.safetensors")
    return {
        "optimizer": type(trainer.optimizer.optimizer).__name__,
        "processes": trainer.accelerator.num_processes,
        "kind": str(trainer.accelerator.distributed_type),
        "spread": [spread(now) for now in weights],
        "rates": [entry for entry in trainer.state.log_history if "loss" in entry],
        "resumed_steps": len(resumed) - 1,
        "resumed_differs": [name for name in weights[-1] if not torch.equal(weights[-1][name], resumed[-1][name])],
        "resumed_logs_differ": [
            (one["loss"], other["loss"])
            for one, other in zip(trainer.state.log_history, again.state.log_history, strict=True)
            if one.get("loss") != other.get("loss")
        ],
    }


def main() -> None:
    use_gloo_alone()
    folder = Path(sys.argv[1])
    seen = {}
    for zero in range(4):
        (folder / f"zero{zero}").mkdir(exist_ok=True)
        seen[str(zero)] = case(zero, folder / f"zero{zero}")
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
