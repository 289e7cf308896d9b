"""Wait for a plateau of a metric that each process measures otherwise; `accelerate launch ... plateau_run.py OUT_DIR`."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hf_freeze import FreezePlan, Plateau, Stage
from tests.ranks import process_group
from tests.training.staged import trainer

PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(plateau=Plateau("eval_quality", patience=1, restore_best=True), unfreeze="layers[-1]")],
)
MEASURED = ([5.0, 9.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # on rank 1 it always rises


@process_group()
def main() -> None:
    rank = dist.get_rank()
    values = iter(MEASURED[rank])
    made = trainer(
        Path(sys.argv[1]) / "run",
        plan=PLAN,
        trainer={"compute_metrics": lambda _: {"quality": next(values)}},
        eval_strategy="steps",
        eval_steps=2,
    )
    made.train()
    seen = {
        "stages": [entry["stage"] for entry in made.state.log_history if "loss" in entry],
        "spread": [],
    }
    for weights in made.watch.weights:
        flat = torch.cat([weight.reshape(-1) for weight in weights.values()])
        everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, flat)
        seen["spread"].append(max(float((other - flat).abs().max()) for other in everyone))
    (Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
