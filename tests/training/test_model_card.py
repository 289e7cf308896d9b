"""The model card that the Trainer writes says what trained, by which plan, and how to apply the threshold."""

import json
import re

import numpy as np
import pytest
import torch

from hf_freeze import BinaryClassificationMetrics, FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage, recipes
from tests.models import tiny_bert
from tests.training.runs import moved, weights

ROWS = [{"input_ids": [5 + i % 7, 6, 7, 8], "labels": i % 2} for i in range(16)]
PLAN = FreezePlan(trainable="head", stages=[Stage(step=2, unfreeze="layers[-1]")])


def card(folder, **changes):
    args = FreezeTrainingArguments(
        str(folder), max_steps=4, use_cpu=True, report_to=[], eval_strategy="steps", eval_steps=2, logging_steps=1
    )
    given = {"train_dataset": ROWS, "eval_dataset": ROWS, "freeze_plan": PLAN, **changes}
    trainer = FreezeTrainer(tiny_bert(layers=3), args, **given)
    trainer.train()
    trainer.create_model_card()
    trainer.create_model_card()
    return trainer, (folder / "README.md").read_text()


@pytest.mark.smoke
def test_the_card_says_once_what_trained_and_by_which_plan(tmp_path) -> None:
    trainer, text = card(tmp_path)
    resolved = PLAN.resolve(trainer.model)
    trained = sum(p.numel() for name, p in trainer.model.named_parameters() if name in resolved.ever_trainable)
    assert text.count("## What trained") == 1
    assert f"{trained:,} of {trainer.model.num_parameters():,} parameters trained" in text
    (written,) = re.findall(r"```json\n(.*?)\n```", text)
    assert FreezePlan.from_dict(json.loads(written)) == PLAN
    assert "threshold" not in text.partition("## What trained")[2]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.filterwarnings("ignore:The threshold depends on:hf_freeze.ThresholdWarning")
def test_the_card_says_how_to_apply_the_threshold_and_its_code_does(tmp_path) -> None:
    trainer, text = card(tmp_path, compute_metrics=BinaryClassificationMetrics("f1", positive=1, n_boot=10))
    trainer.save_model()
    told = text.partition("### The decision threshold")[2]
    assert f"at least {trainer.compute_metrics.result.threshold:.4g}" in told
    assert len(re.findall(r"[a-z)\d]\.(?=\s)", told.partition("```")[0])) == 3
    (code,) = re.findall(r"```python\n(.*?)```", told, flags=re.DOTALL)
    values = {"logits": trainer.predict(ROWS).predictions}
    exec(code.replace("path/to/this/folder", str(tmp_path)), values)
    margins = values["logits"] @ np.array([-1.0, 1.0], dtype=np.float32)
    assert torch.equal(
        torch.as_tensor(values["labels"]), torch.as_tensor(margins >= trainer.compute_metrics.result.threshold).long()
    )


def test_no_figure_in_the_card_has_more_than_four_digits_that_count(tmp_path) -> None:
    def metrics(prediction):
        return {"third": 1 / 3, "small": np.float64(1e-7 / 3)}

    trainer, text = card(tmp_path, compute_metrics=metrics)
    assert "Third: 0.3333" in text
    assert not re.search(r"\d\.\d{7,}", text)
    assert any(entry.get("eval_third") == 1 / 3 for entry in trainer.state.log_history)


@pytest.mark.parametrize(
    "plan",
    [
        FreezePlan(trainable="head", stages=[*PLAN.stages, Stage(step=9, unfreeze="all")]),
        recipes.rotate(layers=1, every=2),
    ],
)
def test_what_never_came_to_train_is_not_said_to_have_trained(tmp_path, plan):
    trainer, text = card(tmp_path, freeze_plan=plan)
    changed = moved(weights(tiny_bert(layers=3)), trainer.model)
    count = sum(p.numel() for name, p in trainer.model.named_parameters() if name in changed)
    assert f"{count:,} of {trainer.model.num_parameters():,} parameters trained" in text
