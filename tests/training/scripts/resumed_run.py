"""Resume a run that evaluates on several processes, at the end of an epoch and within one.

`accelerate launch ... resumed_run.py OUT_DIR [trained_only]` writes `different.json`: step -> the weights that differ, on any process,
from those of the run that was not interrupted.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hf_freeze import FreezePlan, Plateau, Stage
from tests.ranks import process_group
from tests.training.staged import trainer, weights_of

PLAN = FreezePlan(
    trainable="head",
    stages=[Stage(plateau=Plateau("eval_loss", min_delta=9, restore_best=True), unfreeze="layers[-1]")],
)


def run(folder: Path, resume: Path | None = None, **values):
    values = {"per_device_train_batch_size": 2, "eval_strategy": "epoch", "save_strategy": "steps", **values}
    made = trainer(folder, plan=PLAN, save_steps=1, save_trained_only="trained_only" in sys.argv, **values)
    made.train(resume_from_checkpoint=str(resume) if resume else None)
    return weights_of(made.model)


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    whole = run(folder / "whole")
    different = {}
    for step in (3, 5, 10):  # 5 an epoch
        found = run(folder / str(step), folder / "whole" / f"checkpoint-{step}", save_strategy="no")
        mine = [name for name, weight in whole.items() if not torch.equal(weight, found[name])]
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        different[step] = sorted({name for names in everyone for name in names})
    if dist.get_rank() == 0:
        (folder / "different.json").write_text(json.dumps(different))


if __name__ == "__main__":
    main()
