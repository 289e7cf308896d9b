"""Train a model that ends in a sigmoid: its outputs are probabilities, and the metrics have to know that.

    python examples/sigmoid_output.py      # 8 seconds on 2 CPU cores

Without `head="probability"` a threshold would be sought among probabilities that are taken for logits; that is refused.
(Better, where you may choose: return the logit and use BCEWithLogitsLoss, as examples/single_logit.py does.)
"""

import numpy as np
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, TrainingArguments, set_seed

from hf_freeze import BinaryClassificationMetrics, FreezeError, FreezePlan, FreezeTrainer, predict_binary


class EndsInSigmoid(nn.Module):
    """Returns one probability per row, under the name that the Trainer looks for."""

    def __init__(self, encoder: DistilBertModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(encoder.config.dim, 1), nn.Sigmoid())

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        probability = self.head(self.encoder(input_ids).last_hidden_state[:, 0]).squeeze(-1)
        if labels is None:
            return {"logits": probability}
        return {"loss": nn.functional.binary_cross_entropy(probability, labels.float()), "logits": probability}


def main() -> None:
    set_seed(0)
    config = DistilBertConfig(vocab_size=40, dim=32, hidden_dim=64, n_layers=3, n_heads=2)
    model = EndsInSigmoid(DistilBertModel(config))
    ids = torch.randint(2, 40, (800, 6))
    labels = (ids > 37).any(1) ^ (torch.rand(800) < 0.1)  # a rare word is in it; one label in ten is wrong
    rows = [{"input_ids": row, "labels": int(label)} for row, label in zip(ids, labels, strict=True)]
    metrics = BinaryClassificationMetrics("f1", head="probability")

    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            "outputs/sigmoid_output",
            learning_rate=5e-3,
            num_train_epochs=4,
            per_device_train_batch_size=16,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=rows[:500],
        eval_dataset=rows[500:650],
        compute_metrics=metrics,
        freeze_plan=FreezePlan(freeze=["embeddings", "layers[0]"]),
    )
    trainer.train()
    test = trainer.predict(rows[650:])
    print(f"\nOutputs from {test.predictions.min():.3f} to {test.predictions.max():.3f}. {metrics.result}")
    called = predict_binary(test.predictions, metrics.result, head="probability")
    print(f"On new rows f1 {test.metrics['test_f1']:.3f}; at probability 0.5 {test.metrics['test_f1_at_half']:.3f}")
    print(f"The probability is unchanged: {np.allclose(called.probability, test.predictions, atol=1e-6)}\n")

    try:
        BinaryClassificationMetrics("f1")((test.predictions, test.label_ids))
    except FreezeError as error:
        print(f"Without head='probability': {error}")


if __name__ == "__main__":
    main()
