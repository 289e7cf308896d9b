"""Trainers as people write them, each of which takes something into its own hands."""

from typing import Any

import torch
import transformers as hf
from torch import nn
from torch.utils.data import IterableDataset

from tests.models import tiny_bert
from tests.trainers.kinds import ROWS, Kind, TeacherTrainer, distillation


def given(**more: Any) -> dict[str, Any]:
    return {"model": tiny_bert(layers=4), "train_dataset": ROWS, **more}


class OptimizerTrainer(hf.Trainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.05)
        return self.optimizer


class SchedulerTrainer(hf.Trainer):
    def create_optimizer_and_scheduler(self, num_training_steps):
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        head, rest = ([p for name, p in named if ("classifier" in name) == wanted] for wanted in (True, False))
        self.optimizer = torch.optim.AdamW([{"params": head, "lr": 0.05}, {"params": rest}], lr=0.01)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.9**step)


class ScaleTrainer(hf.Trainer):
    """Trains a parameter of its loss in a group of its own, whose gradients `model.zero_grad` does not reach."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.ones(1))

    def create_optimizer(self, *args):
        optimizer = super().create_optimizer(*args)
        if not any(self.scale is p for group in optimizer.param_groups for p in group["params"]):
            optimizer.add_param_group({"params": [self.scale], "lr": 0.1})
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss * self.scale.sum()
        return (loss, outputs) if return_outputs else loss


class StudentsTrainer(TeacherTrainer):
    """The teacher trains as well."""

    def create_optimizer(self, *args):
        optimizer = super().create_optimizer(*args)
        if not any(self.teacher.classifier.bias is p for group in optimizer.param_groups for p in group["params"]):
            optimizer.add_param_group({"params": [*self.teacher.parameters()]})
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, others = model(**inputs), self.teacher(**inputs)
        loss = outputs.loss + others.loss + (outputs.logits - others.logits).square().mean()
        return (loss, outputs) if return_outputs else loss


class StepTrainer(hf.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()


class LateTrainer(hf.Trainer):
    """Adds a part to the model after the Trainer was built."""

    def train(self, *args, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(9)
            self.model.late = nn.Linear(4, 4)
        return super().train(*args, **kwargs)


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class WrappingTrainer(hf.Trainer):
    def __init__(self, model=None, args=None, **kwargs):
        super().__init__(Wrapper(model), args, **kwargs)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from ROWS


def with_optimizer() -> dict[str, Any]:
    model = tiny_bert(layers=4)
    return given(model=model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.05), None))


def students() -> dict[str, Any]:
    return {**distillation(), "teacher": tiny_bert(layers=4, seed=1)}


def plain() -> type:
    return hf.Trainer


RECOMPUTED = {"gradient_checkpointing": True}
REENTRANT = {**RECOMPUTED, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
OWN_KINDS = [
    Kind("own optimizer", lambda: OptimizerTrainer, given),
    Kind("own scheduler", lambda: SchedulerTrainer, given),
    Kind("own scale", lambda: ScaleTrainer, given),
    Kind("two students", lambda: StudentsTrainer, students),
    Kind("own step", lambda: StepTrainer, given),
    Kind("late part", lambda: LateTrainer, given),
    Kind("own wrapper", lambda: WrappingTrainer, given),
    Kind("optimizers=", plain, with_optimizer),
    Kind("optimizer class", plain, lambda: given(optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.05}))),
    Kind("model_init", plain, lambda: {"model_init": lambda: tiny_bert(layers=4), "train_dataset": ROWS}),
    Kind("endless", plain, lambda: given(train_dataset=Endless())),
    Kind("recomputed", plain, given, settings=RECOMPUTED),
    Kind("recomputed reentrant", plain, given, settings=REENTRANT),
    Kind("accumulated", plain, given, settings={"gradient_accumulation_steps": 2}),
]
