"""Ten steps in which three rows of a tied matrix train: in a FreezeTrainer, and under a callback of a plain Trainer."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers as hf
from safetensors.torch import save_file
from transformers import Trainer

from hf_freeze import FreezeCallback, FreezePlan, Stage
from tests.models import SIZES, seeded
from tests.ranks import process_group
from tests.training.runs import arguments, freeze_trainer, weights

ROWS = [{"input_ids": [61 + i % 3, 5 + i % 7, 6, 7 + i % 9]} for i in range(16)]
ROWS = [{**row, "labels": row["input_ids"]} for row in ROWS]
PLAN = FreezePlan(trainable="embeddings[61]", stages=[Stage(step=3, unfreeze="embeddings[-3:]")])
MATRIX = "bert.embeddings.word_embeddings.weight"


def build(*, layers: int = 2, dropout: float = 0.0) -> hf.BertForMaskedLM:
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return seeded(hf.BertForMaskedLM, hf.BertConfig(**SIZES, num_hidden_layers=layers, **rates))


def run(kind: str, folder: Path) -> dict:
    model = build()
    before, processes = weights(model), dist.get_world_size() if dist.is_initialized() else 1
    values = {"max_steps": 10, "weight_decay": 0.1, "max_grad_norm": 0.1, "per_device_train_batch_size": 4 // processes}
    if kind == "trainer":
        trainer = freeze_trainer(model, folder, rows=ROWS, freeze_plan=PLAN, **values)
    else:
        callbacks = [FreezeCallback(PLAN)]
        trainer = Trainer(
            model, arguments(folder, cls=hf.TrainingArguments, **values), train_dataset=ROWS, callbacks=callbacks
        )
    trainer.train()
    now = weights(model)
    moved = {name: (now[name] != before[name]).flatten(1).any(1).nonzero().flatten().tolist() for name in [MATRIX]}
    others = [name for name in now if name != MATRIX and not torch.equal(now[name], before[name])]
    return {"moved": moved[MATRIX], "others": others, "rows": now[MATRIX][61:]}


@process_group()
def main() -> None:
    out, rank = Path(sys.argv[1]), dist.get_rank()
    for kind in ("trainer", "callback"):
        found = run(kind, out / kind)
        save_file({"rows": found.pop("rows")}, out / f"{kind}-{rank}.safetensors")
        (out / f"{kind}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
