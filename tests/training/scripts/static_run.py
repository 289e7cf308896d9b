"""Train under plans without stages on several processes, and write what each of them saw.

`accelerate launch ... static_run.py OUT_DIR`: `rank{N}.json`, and the final weights of rank 0 as safetensors.
"""

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, FreezeViolation
from tests.models import text_rows, tiny_bert, tiny_resnet
from tests.ranks import process_group
from tests.training.runs import AtStep, arguments, freeze_trainer, training_logs, weights
from tests.training.test_loss_scaling import CLASSIFIERS, OTHERS, rows_for

WINDOW = 16
FROZEN, TRAINED = "bert.encoder.layer.0.output.dense.bias", "classifier.bias"
CUTS = [(build, 1) for build in [*CLASSIFIERS, *OTHERS]] + [(build, 2) for build in (CLASSIFIERS[0], *OTHERS)]
SGD = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 2, "max_grad_norm": 1e9}
DROPOUT = {"hidden_dropout_prob": 0.3}


def scaled(build, folder: Path, accumulation: int):
    """Two windows of 16 rows over all processes."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    trainer = freeze_trainer(
        build(),
        folder,
        rows=rows_for(build),
        per_device_train_batch_size=WINDOW // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        **SGD,
    )
    trainer.train()
    return trainer


def static(folder: Path, **overrides):
    """Head and top layer with dropout, saved at every step."""
    settings = {"trainable": ["head", "layers[-1]"], "per_device_train_batch_size": 2, "max_steps": 4}
    saves = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 2}
    return freeze_trainer(tiny_bert(**DROPOUT), folder, **{**settings, **saves, **overrides})


def resumed(folder: Path):
    """The same, from the checkpoint in the middle of a logging window."""
    trainer = static(folder / "resumed")
    trainer.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-1"))
    return trainer


def on_rank_1(name: str):
    """Return what a faulty callback does: write to one weight on one process."""

    def edit(model, optimizer):
        if dist.get_rank() == 1:
            model.get_parameter(name).data.add_(0.5)

    return AtStep(edit)


def statistics_on_rank_1(model, optimizer):
    if dist.get_rank() == 1:
        next(buffer for name, buffer in model.named_buffers() if "running_mean" in name).add_(1)


def violation(trainer) -> str:
    try:
        trainer.train()
    except FreezeViolation as error:
        return str(error)
    return "none"


def plain_trainer(folder: Path, *callbacks):
    args = arguments(folder, TrainingArguments, save_strategy="no")
    plan = FreezePlan(trainable="head")
    return Trainer(tiny_bert(), args, train_dataset=text_rows(), callbacks=[FreezeCallback(plan), *callbacks])


def spread(model: torch.nn.Module) -> float:
    flat = torch.cat([tensor.double().reshape(-1) for tensor in weights(model).values()])
    everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, flat)
    return max(float((other - everyone[0]).abs().max()) for other in everyone)


def scaling(folder: Path) -> dict:
    found = {}
    for build, accumulation in CUTS:
        trainer = scaled(build, folder, accumulation)
        key = f"{build.__name__}-{accumulation}"
        logs = training_logs(trainer)
        found[key] = {name: [entry[name] for entry in logs] for name in ("grad_norm", "loss")}
        found[key]["spread"] = spread(trainer.model)
        if dist.get_rank() == 0:
            save_file(weights(trainer.model), folder / f"{key}.safetensors")
    return found


def static_plan(folder: Path) -> dict:
    whole = static(folder, eval_dataset=text_rows(10, seed=5))
    before = weights(whole.model)
    whole.train()
    again = resumed(folder)
    after = weights(whole.model)
    return {
        "moved": [name for name in after if not torch.equal(after[name], before[name])],
        "spread": spread(whole.model),
        "resumed_differs": [name for name in after if not torch.equal(weights(again.model)[name], after[name])],
        "logs": training_logs(whole),
        "resumed_logs": training_logs(again),
        "eval_loss": whole.evaluate()["eval_loss"],
        "predictions": len(whole.predict(text_rows(7)).predictions),
    }


def faults(folder: Path) -> dict:
    rows = [{"pixel_values": torch.randn(3, 16, 16), "labels": index % 2} for index in range(8)]
    resnet = {"rows": rows, "trainable": ["head"], "callbacks": [AtStep(statistics_on_rank_1)]}
    silent = {"save_strategy": "no"}
    return {
        "trained": violation(static(folder, callbacks=[on_rank_1(TRAINED)], **silent)),
        "frozen": violation(static(folder, callbacks=[on_rank_1(FROZEN)], **silent)),
        "at save": violation(static(folder / "saves", callbacks=[on_rank_1(TRAINED)])),
        "callback": violation(plain_trainer(folder, on_rank_1(TRAINED))),
        "statistics": violation(freeze_trainer(tiny_resnet(), folder, ddp_broadcast_buffers=False, **resnet)),
        "none": violation(plain_trainer(folder)),
    }


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    gc.collect()
    gc.freeze()  # every train() collects garbage first
    seen = {}
    for name, scenario in {"scaling": scaling, "static": static_plan, "faults": faults}.items():
        (folder / name).mkdir(exist_ok=True)
        seen[name] = scenario(folder / name)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
