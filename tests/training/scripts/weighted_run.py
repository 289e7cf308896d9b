"""Train by a weighted loss on several processes: final weights, logs and evaluations of each.

`accelerate launch ... weighted_run.py OUT_DIR`
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file

from tests.ranks import process_group
from tests.training.runs import training_logs, weights
from tests.training.weighted_runs import WEIGHTS, WINDOW, rows_for, run

ACCUMULATIONS = (1, 2, 4)
NAMES = ("loss", "unweighted_loss")


def trained(build, folder: Path, processes: int, accumulation: int):
    """Three windows of 16 rows over all processes, and an evaluation of 11 rows."""
    trainer = run(build, folder, WINDOW // processes // accumulation, accumulation)
    trainer.args.per_device_eval_batch_size = 2
    metrics = trainer.evaluate(rows_for(build, 11))
    logs = [[entry[name] for name in NAMES] for entry in training_logs(trainer)]
    return trainer, {"logs": logs, "eval": [metrics[f"eval_{name}"] for name in NAMES]}


@process_group()
def main() -> None:
    folder, seen = Path(sys.argv[1]), {}
    for build in WEIGHTS:
        for accumulation in ACCUMULATIONS:
            key = f"{build.__name__}-{accumulation}"
            trainer, seen[key] = trained(build, folder, dist.get_world_size(), accumulation)
            if dist.get_rank() == 0:
                save_file(weights(trainer.model), folder / f"{key}.safetensors")
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
