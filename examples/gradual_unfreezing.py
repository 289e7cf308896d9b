"""Unfreeze a model from the top down, on two processes whose weights stay equal.

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no \
        examples/gradual_unfreezing.py           # 15 seconds on 2 CPU cores
    python examples/gradual_unfreezing.py        # the same on one process

DistributedDataParallel ignores what was frozen when it was built: unfrozen by hand, replicas silently drift apart.
Here its reducer is rebuilt at each stage. A tiny BERT from a configuration, on generated rows.
"""

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_freeze import FreezePlan, FreezeTrainer, recipes

PLAN: FreezePlan = recipes.gradual(every_epochs=1.0, layers_per_stage=2)  # --freeze_recipe gradual on a command line


class ShowStages(TrainerCallback):
    """Prints what FreezeTrainer logs: stage and trainable_params, beside lr/<group>."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # noqa: ANN001, ANN003
        if state.is_world_process_zero and "loss" in logs:
            print(
                f"step {state.global_step:>4}  stage {logs['stage']}  loss {logs['loss']:.3f}  "
                f"{logs['trainable_params']:>7,} parameters train"
            )


def main() -> None:
    set_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
    model = BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (512, 8), generator=generator)
    rows = [{"input_ids": row, "labels": int(row[0] > 31)} for row in ids]
    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            "outputs/gradual_unfreezing",
            num_train_epochs=4,
            per_device_train_batch_size=8,
            learning_rate=5e-3,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=rows,
        callbacks=[ShowStages()],
        freeze_plan=PLAN,
    )
    trainer.remove_callback(PrinterCallback)
    say = PartialState().print
    say(PLAN.resolve(model))
    trainer.train()
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    replicas = gather(weights[None])
    say(f"The weights of {len(replicas)} processes differ by {(replicas - replicas[0]).abs().max().item()}.")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # a process that ends in the middle of a gather is aborted by PyTorch


if __name__ == "__main__":
    main()
