"""Put a head of your own on a RoBERTa encoder, and train nothing but the head.

    python examples/custom_head.py      # 8 seconds on 2 CPU cores

An nn.Module like any other: `trainable="head"` finds what stands around the encoder, whatever its name. The encoder is
a tiny one from a configuration; yours comes from `RobertaModel.from_pretrained("roberta-base")`.
"""

import torch
from torch import nn
from transformers import RobertaConfig, RobertaModel, TrainingArguments, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_freeze import FreezePlan, FreezeTrainer, trainable_summary


class RobertaWithMyHead(nn.Module):
    """Dropout, dense, tanh, dropout, linear, over the encoder's first token."""

    def __init__(self, encoder: RobertaModel, num_labels: int = 2) -> None:
        super().__init__()
        size = encoder.config.hidden_size
        self.encoder = encoder
        self.dense = nn.Linear(size, size)
        self.out = nn.Linear(size, num_labels)
        self.dropout = nn.Dropout(0.1)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        features = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        first = features[:, 0]  # <s>, RoBERTa's [CLS]
        logits = self.out(self.dropout(torch.tanh(self.dense(self.dropout(first)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def main() -> None:
    set_seed(0)
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=256,
        initializer_range=0.1,
    )
    model = RobertaWithMyHead(RobertaModel(config, add_pooling_layer=False))
    words = torch.randint(6, 30, (1100, 4))
    words[::2, 0] = 5
    rows = [{"input_ids": [0, *ids, 2], "labels": int(5 in ids)} for ids in words.tolist()]  # is word 5 the first?
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            "outputs/custom_head",
            learning_rate=1e-2,
            num_train_epochs=10,
            per_device_train_batch_size=32,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=rows[:1000],
        freeze_plan=FreezePlan(trainable="head"),  # the same: freeze="encoder"
    )
    trainer.train()
    print(trainable_summary(model))
    moved = [name for name, parameter in model.named_parameters() if not parameter.equal(before[name])]
    print(f"Moved: {', '.join(moved)}.")
    predicted = trainer.predict(rows[1000:])
    print(f"Accuracy {(predicted.predictions.argmax(1) == predicted.label_ids).mean():.2f} on 100 new rows.")


if __name__ == "__main__":
    main()
