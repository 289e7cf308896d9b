"""What the frozen prefix costs without stored features: no activation is kept for it, no gradient goes through it."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from hf_freeze import FreezeCallback, FreezePlan, FreezeTrainer, FreezeTrainingArguments, Stage, freeze
from tests import models
from tests.installed import since
from tests.models import image_rows, text_rows
from tests.nearness import assert_near

pytestmark = pytest.mark.filterwarnings(
    "ignore:.gradient_checkpointing\\w*. is deprecated",
    "ignore:None of the inputs have requires_grad",
    "ignore:torch.utils.checkpoint. the use_reentrant parameter should be passed",
)

REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
NOT_REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def lora_on_top():
    config = LoraConfig(r=2, layers_to_transform=[3], target_modules=["query"], task_type=TaskType.SEQ_CLS)
    return get_peft_model(models.tiny_bert(layers=4), config)


MODELS = {
    "bert": (partial(models.tiny_bert, layers=4), text_rows, "encoder.layer"),
    "llama": (partial(models.tiny_llama, layers=4), text_rows, "model.layers"),
    "vit": (partial(models.tiny_vit, layers=4), image_rows, "layers"),
    "lora": (lora_on_top, text_rows, "encoder.layer"),
}


def layers_of(model, path):
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[0].endswith(path) and name.rpartition(".")[2].isdigit()
    ]


def with_gradient(model, path, train):
    """Train; return the layers whose output required a gradient, step by step."""
    steps = []
    for number, layer in enumerate(layers_of(model, path)):

        def note(module, inputs, output, number=number):
            output = output[0] if isinstance(output, tuple) else output
            if torch.is_grad_enabled() and output.requires_grad:
                steps[-1].add(number)

        layer.register_forward_hook(note)
    model.register_forward_pre_hook(lambda *_: steps.append(set()))
    train()
    return steps


@pytest.mark.parametrize("mode", [{}, REENTRANT, NOT_REENTRANT], ids=["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize(
    "name", ["bert", "llama", "lora", pytest.param("vit", marks=since("5.20", "ViT does not recompute per layer"))]
)
def test_gradients_go_no_deeper_than_the_lowest_layer_that_trains(tmp_path, name, mode):
    build, rows, path = MODELS[name]
    model = build()
    plan = FreezePlan(trainable=["head", "layers[3]" if name != "lora" else "adapters"])
    if name != "lora":
        plan = FreezePlan(trainable=plan.trainable, stages=[Stage(step=2, unfreeze="layers[2]")])
    args = FreezeTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        max_steps=4,
        save_strategy="no",
        per_device_train_batch_size=4,
        **mode,
    )
    trainer = FreezeTrainer(model, args, train_dataset=rows(16), freeze_plan=plan)
    steps = with_gradient(model, path, trainer.train)
    lowest = [3, 3, 3, 3] if name == "lora" else [3, 3, 2, 2]
    assert [min(step) for step in steps if step] == lowest


def test_a_plain_trainer_goes_through_all_of_it(tmp_path):
    """Why `stop_backward_at_lowest_trainable` is there: should transformers no longer do so, it can go."""
    model = models.tiny_bert(layers=4)
    freeze(model, ["all", "!head", "!layers[3]"])
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no", **REENTRANT
    )
    steps = with_gradient(model, "encoder.layer", Trainer(model, args, train_dataset=text_rows(8)).train)
    assert [min(step) for step in steps] == [0]


@pytest.mark.smoke
def test_what_was_there_before_training_is_there_afterwards(tmp_path):
    model = models.tiny_bert(layers=4)
    model.enable_input_require_grads()
    hooks = dict(model.get_input_embeddings()._forward_hooks)
    args = FreezeTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", max_steps=1, save_strategy="no", **REENTRANT
    )
    trainer = FreezeTrainer(model, args, train_dataset=text_rows(8), freeze_plan=FreezePlan(trainable="head"))
    trainer.train()
    assert hooks.items() <= dict(model.get_input_embeddings()._forward_hooks).items()
    recompute = model.bert.encoder.layer[0]._gradient_checkpointing_func
    assert recompute.keywords["use_reentrant"]


@pytest.mark.parametrize("mode", [REENTRANT, NOT_REENTRANT], ids=["reentrant", "not reentrant"])
def test_weights_become_those_of_a_run_that_recomputes_nothing(tmp_path, mode):
    ends = []
    for given in ({}, mode):
        model = models.tiny_bert(layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        args = FreezeTrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", max_steps=4, save_strategy="no", seed=1, **given
        )
        plan = FreezePlan(trainable=["head", "layers[-1]"], stages=[Stage(step=2, unfreeze="layers[-2]")])
        FreezeTrainer(model, args, train_dataset=text_rows(16), freeze_plan=plan).train()
        ends.append(model.state_dict())
    assert_near(ends[1], ends[0], rtol=1e-6, floor=0.1)


class ByItself(torch.nn.Module):
    """BERT with a loop over its layers of its own, which calls torch's `checkpoint`, or not."""

    def __init__(self, bert, *, recomputes):
        super().__init__()
        self.config, self.bert, self.recomputes = bert.config, bert, recomputes
        if recomputes:
            bert.enable_input_require_grads()

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.bert.bert.embeddings(input_ids=input_ids)
        mask = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.bert.bert.encoder.layer:
            hidden = checkpoint(layer, hidden, mask, use_reentrant=True) if self.recomputes else layer(hidden, mask)
        logits = self.bert.classifier(self.bert.bert.pooler(hidden))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def by_peft(model, *, recomputes):
    """Leave a model as `prepare_model_for_kbit_training` of PEFT does: it says nothing of the kind of checkpointing."""
    if recomputes:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({})
    return model


@pytest.mark.parametrize("set_up", [by_peft, ByItself])
@pytest.mark.parametrize("cls", [FreezeTrainer, Trainer])
def test_layers_above_frozen_ones_train_whoever_set_checkpointing_up(tmp_path, cls, set_up):
    ends = []
    for recomputes in (False, True):
        model = models.tiny_bert(layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        plan = FreezePlan(trainable=["head", "re:.*encoder\\.layer\\.[23]\\..*"])
        extra = {"freeze_plan": plan} if cls is FreezeTrainer else {"callbacks": [FreezeCallback(plan)]}
        args = FreezeTrainingArguments if cls is FreezeTrainer else TrainingArguments
        args = args(str(tmp_path), use_cpu=True, report_to="none", max_steps=4, save_strategy="no", seed=1)
        cls(set_up(model, recomputes=recomputes), args, train_dataset=text_rows(16), **extra).train()
        ends.append(model.state_dict())
    assert_near(ends[1], ends[0], rtol=1e-6, floor=0.1)
