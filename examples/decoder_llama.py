"""Classify with a decoder (Llama-type): train the head, the last layer and every norm.

    python examples/decoder_llama.py      # 8 seconds on 2 CPU cores

A decoder is read at its last token that is not padding, so it needs `pad_token_id`; without one, batches fail. RMSNorm
is a norm like any other. A tiny Llama from a configuration; yours comes from `from_pretrained`.
"""

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments, set_seed

from hf_freeze import FreezePlan, FreezeTrainer, debug_sample, trainable_summary

PAD = 0


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=PAD)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }


def main() -> None:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=PAD,
    )
    model = LlamaForSequenceClassification(config)
    texts = [torch.randint(1, 32, (4 + index % 5,)).tolist() for index in range(900)]
    rows = [{"input_ids": ids, "labels": int(7 in ids or 8 in ids)} for ids in texts]  # is one of two words in it?

    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            "outputs/decoder_llama",
            learning_rate=1e-2,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=rows[:700],
        eval_dataset=rows[700:],
        data_collator=collate,
        freeze_plan=FreezePlan(trainable=["head", "layers[-1]", "norms"]),
    )
    trainer.train()
    print(trainable_summary(model))
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    print(f"Norms that train below the last layer: {[name for name in trains if '.layers.0.' in name]}")
    predicted = trainer.predict(rows[700:])
    print(f"Accuracy {(predicted.predictions.argmax(1) == predicted.label_ids).mean():.2f} on 200 new rows.\n")
    print(debug_sample(trainer, index=0, checks="full"))  # among others: does padding change the logits?


if __name__ == "__main__":
    main()
