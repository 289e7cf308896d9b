"""Declarative freezing, per-group learning rates and trustworthy evaluation for the Hugging Face Trainer."""

from hf_freeze.binary.inference import (
    BinaryClassificationPipeline,
    BinaryPrediction,
    fold_threshold_into_head,
    predict_binary,
)
from hf_freeze.binary.label_thresholds import LabelThresholds, MultiLabelPrediction, predict_multi_label
from hf_freeze.binary.margin import binary_margin
from hf_freeze.binary.metrics import BinaryClassificationMetrics
from hf_freeze.binary.multi_label import MultiLabelMetrics
from hf_freeze.binary.multi_label_pipeline import MultiLabelPipeline
from hf_freeze.binary.result import ThresholdResult, ThresholdWarning
from hf_freeze.binary.saved_threshold import load_label_thresholds, load_threshold, save_threshold
from hf_freeze.binary.search import ThresholdError, tune_threshold
from hf_freeze.debugging.report import SampleReport
from hf_freeze.debugging.sample import debug_sample
from hf_freeze.debugging.sample_check import Check
from hf_freeze.errors import (
    FreezeError,
    FreezeViolation,
    PlanError,
    SampleCheckError,
    SelectionError,
    UnsupportedSetupError,
)
from hf_freeze.plan import recipes
from hf_freeze.plan.freeze_plan import FreezePlan, ResolvedPlan
from hf_freeze.plan.stages import Plateau, Settled, Stage
from hf_freeze.reporting.comparison.compare import compare
from hf_freeze.reporting.comparison.comparison import Comparison
from hf_freeze.reporting.comparison.comparison_plot import plot_comparison
from hf_freeze.reporting.comparison.contenders import Contender
from hf_freeze.reporting.history_plot import plot_history
from hf_freeze.reporting.layers.layers_plot import plot_layers
from hf_freeze.reporting.layers.suggest_layers import suggest_layers
from hf_freeze.reporting.layers.suggestion import LayerSuggestion
from hf_freeze.reporting.preview.plan_plot import plot_plan
from hf_freeze.reporting.preview.preview import preview
from hf_freeze.reporting.preview.preview_result import Preview
from hf_freeze.reporting.threshold_plot import plot_threshold
from hf_freeze.training.arguments import FreezeArguments, FreezeTrainingArguments
from hf_freeze.training.callbacks import FreezeCallback
from hf_freeze.training.extract import extract_features
from hf_freeze.training.freezing import freeze, unfreeze
from hf_freeze.training.groups import param_groups
from hf_freeze.training.load_trained import load_trained
from hf_freeze.training.merge_trained import merge_trained
from hf_freeze.training.run import FreezeRun
from hf_freeze.training.settings import FreezeSettings
from hf_freeze.training.summary import TrainableSummary, trainable_summary
from hf_freeze.training.thawed_base import load_thawed, save_thawed
from hf_freeze.training.trainer import FreezeTrainer, FreezeTrainerMixin
from hf_freeze.training.trainer_classes import freezing

__all__ = [
    "BinaryClassificationMetrics",
    "BinaryClassificationPipeline",
    "BinaryPrediction",
    "Check",
    "Comparison",
    "Contender",
    "FreezeArguments",
    "FreezeCallback",
    "FreezeError",
    "FreezePlan",
    "FreezeRun",
    "FreezeSettings",
    "FreezeTrainer",
    "FreezeTrainerMixin",
    "FreezeTrainingArguments",
    "FreezeViolation",
    "LabelThresholds",
    "LayerSuggestion",
    "MultiLabelMetrics",
    "MultiLabelPipeline",
    "MultiLabelPrediction",
    "PlanError",
    "Plateau",
    "Preview",
    "ResolvedPlan",
    "SampleCheckError",
    "SampleReport",
    "SelectionError",
    "Settled",
    "Stage",
    "ThresholdError",
    "ThresholdResult",
    "ThresholdWarning",
    "TrainableSummary",
    "UnsupportedSetupError",
    "binary_margin",
    "compare",
    "debug_sample",
    "extract_features",
    "fold_threshold_into_head",
    "freeze",
    "freezing",
    "load_label_thresholds",
    "load_thawed",
    "load_threshold",
    "load_trained",
    "merge_trained",
    "param_groups",
    "plot_comparison",
    "plot_history",
    "plot_layers",
    "plot_plan",
    "plot_threshold",
    "predict_binary",
    "predict_multi_label",
    "preview",
    "recipes",
    "save_thawed",
    "save_threshold",
    "suggest_layers",
    "trainable_summary",
    "tune_threshold",
    "unfreeze",
]
