"""Rotate layers on several processes, under DistributedDataParallel and under raw FSDP2; `... rotation_run.py OUT_DIR`.

Writes `ddp.safetensors` and `fsdp.safetensors` with the final weights, and `seen.json`: what the reducer sent per step, how
far replicas were apart, which weights a run resumed in mid-period has otherwise, and which had optimizer state per step.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback, TrainingArguments, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, param_groups, recipes
from hf_freeze.training.run import FreezeRun, FreezeSettings
from tests.models import text_rows, tiny_bert
from tests.ranks import process_group
from tests.training.scripts.staged_run import Watch

PLAN: FreezePlan = recipes.rotate(layers=2, every=3, seed=1)
STEPS, ROWS, MID_PERIOD = 14, 8, 7


def build() -> torch.nn.Module:
    set_seed(0)
    return tiny_bert(layers=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def run(folder: Path, *, resume: Path | None = None, watch: TrainerCallback | None = None) -> FreezeTrainer:
    """Train; the same call in one process is what several are compared with."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    args = FreezeTrainingArguments(
        str(folder),
        per_device_train_batch_size=ROWS // 2 // processes,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        weight_decay=0.1,
        unfreeze_warmup=2,
        save_steps=MID_PERIOD,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [watch] if watch else []
    trainer = FreezeTrainer(build(), args, train_dataset=text_rows(40), freeze_plan=PLAN, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def loop(model: torch.nn.Module, rank: int, processes: int, folder: Path) -> list[list[str]]:
    """Train in a loop of one's own; return which weights have optimizer state after each step."""
    args = TrainingArguments(str(folder), learning_rate=1e-2, weight_decay=0.1, use_cpu=True, report_to=[])
    optimizer = torch.optim.AdamW(param_groups(model, args, plan=PLAN), eps=1e-3)
    settings = FreezeSettings(unfreeze_warmup=2)
    planned = FreezeRun(PLAN.resolve(model), model, optimizer, settings=settings, max_steps=STEPS, steps_per_epoch=None)
    planned.begin()
    rows, held = text_rows(STEPS * ROWS), []
    for step in range(STEPS):
        planned.step_begins(step)
        model.train()
        batch = rows[step * ROWS : (step + 1) * ROWS][rank::processes]
        model(**{key: torch.tensor([row[key] for row in batch]) for key in batch[0]}).loss.backward()
        planned.before_optimizer_step()
        optimizer.step()
        planned.after_optimizer_step()
        optimizer.zero_grad()
        held.append(sorted(name for name, parameter in model.named_parameters() if parameter in optimizer.state))
    planned.conclude()
    return held


def differing(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Name what differs on any process."""
    found = [name for name, tensor in mine.items() if not torch.equal(tensor, other[name])]
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return sorted({name for names in everyone for name in names})


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    watch = Watch()
    whole = run(folder / "whole", watch=watch).model.state_dict()
    resumed = run(folder / "resumed", resume=folder / "whole" / f"checkpoint-{MID_PERIOD}").model.state_dict()
    sharded = build()
    for unit in (sharded.bert.embeddings, *sharded.bert.encoder.layer, sharded):
        fully_shard(unit)
    held = loop(sharded, dist.get_rank(), dist.get_world_size(), folder / "loop")
    full = {name: tensor.full_tensor().contiguous() for name, tensor in sharded.named_parameters()}
    seen = {"bytes": watch.bytes, "spread": watch.spread, "resumed": differing(whole, resumed), "held": held}
    if dist.get_rank() == 0:
        save_file(whole, folder / "ddp.safetensors")
        save_file(full, folder / "fsdp.safetensors")
        (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
