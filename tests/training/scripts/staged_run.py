"""Run a plan of five stages under DistributedDataParallel, in several set-ups, and write what was seen.

`accelerate launch ... staged_run.py OUT_DIR`: per set-up `NAME.safetensors` with the final weights of rank 0, and
`seen.json` with the figures of every set-up.
"""

import gc
import json
import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage
from tests.models import text_rows, tiny_bert
from tests.ranks import process_group

PLAN = FreezePlan(
    trainable="head",
    stages=[
        Stage(step=2, unfreeze="layers[-1]"),
        Stage(epoch=1, unfreeze="layers[-2]", freeze="head"),
        Stage(step=7, unfreeze=["embeddings", "head"]),
        Stage(fraction=0.75, unfreeze="all", freeze="layers[-1]"),
    ],
)
SETUPS = {
    "plain": {"gradient_accumulation_steps": 1},
    "accumulated": {"gradient_accumulation_steps": 4},
    "checkpointed": {"gradient_accumulation_steps": 1, "gradient_checkpointing": True},
    "checkpointed_reentrant": {
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "ddp_find_unused_parameters": False,
    },
    "all_parameters_used": {"gradient_accumulation_steps": 1, "ddp_find_unused_parameters": False},
}
WINDOW = 8  # rows per optimizer step over all processes


class Watch(TrainerCallback):
    """Counts, per optimizer step, the bytes that the reducer sends, and compares replicas at every step."""

    def __init__(self) -> None:
        self.bytes: list[int] = []
        self.spread = 0.0
        self._sent = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for wrapper in wrappers_of(model):
            wrapper.register_comm_hook(None, self._count)

    def _count(self, state, bucket):
        self._sent += bucket.buffer().numel() * bucket.buffer().element_size()
        bucket.buffer().div_(dist.get_world_size())
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.bytes.append(self._sent)
        self._sent = 0
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
        everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, flat)
        self.spread = max(self.spread, *(float((other - flat).abs().max()) for other in everyone))


def wrappers_of(model: torch.nn.Module) -> list[DistributedDataParallel]:
    return [
        item for item in gc.get_objects() if issubclass(type(item), DistributedDataParallel) and item.module is model
    ]


def run(
    name: str, folder: Path, watch: Watch | None = None, resume_from: Path | None = None, **values
) -> FreezeTrainer:
    """Train; the same call in one process is what several processes are compared with."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    values = {"gradient_accumulation_steps": 1, **values}
    set_seed(0)
    args = FreezeTrainingArguments(
        str(folder / name),
        per_device_train_batch_size=WINDOW // processes // values["gradient_accumulation_steps"],
        max_steps=12,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        weight_decay=0.1,
        max_grad_norm=0.5,
        logging_steps=1,
        save_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **values,
    )
    trainer = FreezeTrainer(
        tiny_bert(layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        args,
        train_dataset=text_rows(40),
        eval_dataset=text_rows(16, seed=1),
        freeze_plan=PLAN,
        callbacks=[watch] if watch else [],
    )
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    logging.basicConfig()
    logging.getLogger("hf_freeze").setLevel(logging.INFO)
    seen = {}
    for name, values in SETUPS.items():
        watch = Watch()
        trainer = run(name, folder, watch, **values)
        wrapped = trainer.model_wrapped
        seen[name] = {
            "bytes": watch.bytes,
            "spread": watch.spread,
            "wrappers": len(wrappers_of(trainer.model)),
            "unwraps": trainer.accelerator.unwrap_model(wrapped) is trainer.model,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "eval_loss": trainer.evaluate()["eval_loss"],
            "predictions": trainer.predict(text_rows(9, seed=2)).predictions.tolist(),
        }
        if trainer.is_world_process_zero():
            save_file(trainer.model.state_dict(), folder / f"{name}.safetensors")
        del trainer, wrapped
        gc.collect()
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
