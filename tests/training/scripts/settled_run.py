"""Layers that settle by what the main process sees; `accelerate launch ... settled_run.py OUT_DIR`."""

import hashlib
import itertools
import json
import sys
from pathlib import Path

import torch.distributed as dist

from hf_freeze.training import settling
from tests.ranks import process_group
from tests.training.staged import trainer
from tests.training.test_settled import FALLING, PLAN, stages, still


@process_group()
def main() -> None:
    rank = dist.get_rank()
    if rank == 1:  # where, by what this process sees, nothing ever settles
        growing = itertools.count(1.0)
        settling._distance = lambda before, now: next(growing)
    made = trainer(
        Path(sys.argv[1]) / "run",
        model=still(),
        plan=PLAN,
        log_grad_norms=True,
        **{**FALLING, "per_device_train_batch_size": 2},
    )
    made.train()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in made.model.parameters())).hexdigest()
    norms = [{k: v for k, v in entry.items() if "grad_norm" in k} for entry in made.state.log_history]
    seen = {"stages": stages(made), "weights": digest, "norms": norms}
    (Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
