"""Short runs with a weighted loss, and the reference that they must agree with: torch's own loss on a whole window."""

import torch
import transformers as hf
from torch.nn import functional

from tests.models import SIZES, seeded, text_rows, tiny_llama
from tests.training.runs import freeze_trainer
from tests.training.test_loss_scaling import NO_DROPOUT, bert, deberta, distilbert, modernbert, roberta

CLASS_WEIGHTS = [1.0, 5.0]
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 1e9, "lr_scheduler_type": "constant", "max_steps": 3}
WINDOW = 16


def one_logit():
    return bert(num_labels=1)


def tokens():
    config = hf.BertConfig(**SIZES, num_hidden_layers=2, num_labels=3, **NO_DROPOUT)
    return seeded(hf.BertForTokenClassification, config)


def several_labels():
    return bert(num_labels=3, problem_type="multi_label_classification")


NAMED_MODELS = [bert, roberta, distilbert, modernbert, tiny_llama, deberta]
WEIGHTS = {
    **{build: {"class_weights": CLASS_WEIGHTS} for build in NAMED_MODELS},
    one_logit: {"pos_weight": 5.0},
    tokens: {"class_weights": [0.5, 1.0, 4.0]},
    several_labels: {"pos_weight": [1.0, 2.0, 7.0]},
}


def rows_for(build, count=3 * WINDOW):
    """Uneven classes, and some labels that are left out."""
    rows = text_rows(count, seed=7)
    for index, row in enumerate(rows):
        if build is tokens:
            row["labels"] = [
                -100 if not kept or (token + index) % 5 == 0 else (token * token + index) % 3
                for token, kept in zip(row["input_ids"], row["attention_mask"], strict=True)
            ]
        elif build is several_labels:
            row["labels"] = [float((index * k) % 3 == 0) for k in (1, 2, 5)]
        else:
            row["labels"] = -100 if index % 11 == 5 else int(index % 4 == 0 or index % 7 == 1)
    return rows


def run(build, folder, size, accumulation=1, *, declared=None, **overrides):
    """Three steps over windows of 16 rows."""
    trainer = freeze_trainer(
        build(),
        folder,
        rows=overrides.pop("rows", None) or rows_for(build),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **{**SGD, **(WEIGHTS[build] if declared is None else declared), **overrides},
    )
    trainer.train()
    return trainer


def reference_loss(build, logits, labels, declared=None):
    """What torch calls the weighted loss of these rows."""
    given = WEIGHTS[build] if declared is None else declared
    if "class_weights" in given:
        weight = torch.tensor(given["class_weights"])
        return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight=weight)
    kept = labels != -100
    logits = logits.view_as(labels)[kept] if build is one_logit else logits
    weight = torch.tensor(given["pos_weight"])
    labels = labels[kept] if build is one_logit else labels
    return functional.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=weight)


def relative_gap(found, expected, *, floor=1e-2) -> float:
    """The largest difference, as a share of the largest value of its tensor, or of `floor`.

    `floor` is for tensors that hold rounding alone, such as key biases, which softmax is blind to.
    """
    return max(
        float((found[name].double() - tensor.double()).abs().max() / max(float(tensor.abs().max()), floor))
        for name, tensor in expected.items()
        if tensor.numel() and tensor.is_floating_point()
    )
