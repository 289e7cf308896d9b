"""Layers that settle by what the main process sees; `accelerate launch ... settled_run.py OUT_DIR`."""

import hashlib
import itertools
import json
import logging
import sys
from pathlib import Path

import torch.distributed as dist

from hf_freeze.training import settling
from tests.ranks import process_group
from tests.training.staged import trainer
from tests.training.test_settled import FALLING, PLAN, stages, still


class Refused(logging.Handler):
    """What is said of features that are not cached."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said += [text for text in [record.getMessage()] if "No features are cached" in text]


@process_group()
def main() -> None:
    rank = dist.get_rank()
    if rank == 1:  # where, by what this process sees, nothing ever settles
        growing = itertools.count(1.0)
        settling._distance = lambda before, now: next(growing)
    refused = Refused()
    logging.getLogger("hf_freeze").addHandler(refused)
    made = trainer(
        Path(sys.argv[1]) / "run",
        model=still(),
        plan=PLAN,
        log_grad_norms=True,
        cache_frozen=True,
        cache_frozen_always=True,
        **{**FALLING, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 4},
    )
    made.train()
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in made.model.parameters())).hexdigest()
    norms = [{k: v for k, v in entry.items() if "grad_norm" in k} for entry in made.state.log_history]
    seen = {"stages": stages(made), "weights": digest, "norms": norms, "refused": refused.said}
    (Path(sys.argv[1]) / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
