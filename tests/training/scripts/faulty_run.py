"""Plant a fault into a staged run on several processes, and write what every process said of it.

`accelerate launch ... faulty_run.py OUT_DIR FAULT`: `rank<i>.txt` with the `FreezeViolation` of each process, and the
optimizer step after which it came.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from transformers import TrainerCallback, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, FreezeViolation, Stage
from hf_freeze.training import backends
from tests.models import text_rows, tiny_bert

PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(step=5, unfreeze="layers[-2]", freeze="head")]
)


def stale_reducer() -> list[TrainerCallback]:
    """What every tool does that only sets requires_grad."""
    backends._rebuild_reducer = lambda wrapper: None
    return []


class DecaysOnOneProcess(TrainerCallback):
    """Decays the frozen embeddings by hand, on the last process alone."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            with torch.no_grad():
                model.bert.embeddings.word_embeddings.weight.mul_(0.99)


FAULTS = {"none": list, "stale reducer": stale_reducer, "decay on one process": lambda: [DecaysOnOneProcess()]}


def main() -> None:
    PartialState(cpu=True)  # starts the process group
    folder, fault = Path(sys.argv[1]), sys.argv[2]
    set_seed(0)
    trainer = FreezeTrainer(
        tiny_bert(layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        FreezeTrainingArguments(
            str(folder / "run"),
            per_device_train_batch_size=2,
            max_steps=8,
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=text_rows(20),
        freeze_plan=PLAN,
        callbacks=FAULTS[fault](),
    )
    said = ""
    try:
        trainer.train()
    except FreezeViolation as violation:
        said = str(violation)
    (folder / f"rank{dist.get_rank()}.txt").write_text(f"{trainer.state.global_step}: {said}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
