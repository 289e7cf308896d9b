"""Declarative freezing, per-group learning rates and trustworthy evaluation for the Hugging Face Trainer."""

from hf_freeze.errors import FreezeError, FreezeViolation, PlanError, SelectionError, UnsupportedSetupError
from hf_freeze.plan import recipes
from hf_freeze.plan.resolved import ResolvedPlan
from hf_freeze.plan.stages import FreezePlan, Plateau, Stage
from hf_freeze.training.arguments import FreezeArguments, FreezeTrainingArguments
from hf_freeze.training.callbacks import FreezeCallback
from hf_freeze.training.checkpoint import load_thawed, save_thawed
from hf_freeze.training.freezing import freeze, unfreeze
from hf_freeze.training.groups import param_groups
from hf_freeze.training.summary import TrainableSummary, trainable_summary
from hf_freeze.training.trainer import FreezeTrainer, FreezeTrainerMixin

__all__ = [
    "FreezeArguments",
    "FreezeCallback",
    "FreezeError",
    "FreezePlan",
    "FreezeTrainer",
    "FreezeTrainerMixin",
    "FreezeTrainingArguments",
    "FreezeViolation",
    "PlanError",
    "Plateau",
    "ResolvedPlan",
    "SelectionError",
    "Stage",
    "TrainableSummary",
    "UnsupportedSetupError",
    "freeze",
    "load_thawed",
    "param_groups",
    "recipes",
    "save_thawed",
    "trainable_summary",
    "unfreeze",
]
