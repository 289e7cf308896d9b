"""Look at one sample on every process, and write what each of them found: `accelerate launch ... debug_run.py OUT_DIR`."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_freeze import debug_sample
from tests.debugging.subjects import ragged_rows, word_tokenizer
from tests.models import text_rows, tiny_bert
from tests.ranks import process_group


def found(report) -> dict:
    bad = [check.name for check in report.checks if check.status != "ok"]
    return {"index": report.facts["sample"]["index"], "logits": report.logits.tolist(), "bad": bad}


def in_training(folder: Path) -> dict:
    seen = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen["during"] = found(debug_sample(trainer, backward=True, quiet=True))

    args = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], max_steps=2, save_strategy="no", disable_tqdm=True
    )
    rows = ragged_rows()
    trainer = Trainer(
        tiny_bert(), args, train_dataset=rows, eval_dataset=rows, processing_class=word_tokenizer(), callbacks=[Look()]
    )
    seen["before"] = found(debug_sample(trainer, checks="full", backward=True, quiet=False))
    if dist.get_rank() == 0:
        seen["alone"] = found(debug_sample(trainer, quiet=True))
    trainer.train()
    seen["weights"] = sum(float(p.detach().double().sum()) for p in trainer.model.parameters())
    return seen


def wrapped() -> dict:
    model = DistributedDataParallel(tiny_bert())
    return found(debug_sample(model, dataset=text_rows(), index=1, backward=True, quiet=True))


def sharded() -> dict:
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    seen = found(debug_sample(model, dataset=text_rows(), index=1, checks="full", backward=True, quiet=True))
    batch = {key: torch.tensor([value]) for key, value in text_rows()[1].items()}
    model(**batch).loss.backward()  # the shards still train
    return {**seen, "trains": all(p.grad is not None for p in model.parameters())}


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    seen = {"trainer": in_training(folder / "run"), "wrapped": wrapped(), "sharded": sharded()}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
