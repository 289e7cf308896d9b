"""Plant faults into staged runs on several processes, and write what every process said of them.

`accelerate launch ... faulty_run.py OUT_DIR`: `rank<i>.json` with, per fault, the `FreezeViolation` of that process and
the optimizer step after which it came.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, FreezeViolation, Stage
from hf_freeze.training import backends
from tests.models import text_rows, tiny_bert
from tests.ranks import process_group

PLAN = FreezePlan(
    trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]"), Stage(step=5, unfreeze="layers[-2]", freeze="head")]
)


class StaleReducer(TrainerCallback):
    """From the first step on, the reducer is left as it is: what every tool does that only sets requires_grad."""

    def on_step_end(self, args, state, control, **kwargs):
        backends._rebuild_reducer = lambda wrapper: None


class DecaysOnOneProcess(TrainerCallback):
    """Decays the frozen embeddings by hand, on the last process alone."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3 and dist.get_rank() == dist.get_world_size() - 1:
            with torch.no_grad():
                model.bert.embeddings.word_embeddings.weight.mul_(0.99)


FAULTS = {"none": TrainerCallback, "stale reducer": StaleReducer, "decay on one process": DecaysOnOneProcess}


def run(folder: Path, fault: str) -> dict[str, object]:
    """Train with a fault planted; return the step that was reached, and what was said."""
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
        callbacks=[FAULTS[fault]()],
    )
    said = ""
    rebuild = backends._rebuild_reducer
    try:
        trainer.train()
    except FreezeViolation as violation:
        said = str(violation)
    finally:
        backends._rebuild_reducer = rebuild
    return {"step": trainer.state.global_step, "said": said}


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    seen = {fault: run(folder, fault) for fault in FAULTS}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
