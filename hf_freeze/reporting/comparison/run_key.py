"""Everything that a run depends on, as JSON-able values: if any of it changes, it is another run."""

import logging
from typing import Any

import datasets
import peft
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import set_seed

from hf_freeze.features.fingerprint import digest_data
from hf_freeze.no_trace import random_states_kept
from hf_freeze.reporting.comparison.data_checks import collated
from hf_freeze.reporting.comparison.described import describe
from hf_freeze.reporting.comparison.task import Task
from hf_freeze.reporting.comparison.trial import EVALUATED, LOGGED

logger = logging.getLogger(__name__)

_NOT_OF_THE_RUN = {"output_dir", "run_name", "report_to", "disable_tqdm", "project", "log_level", "log_level_replica"}
_NOT_OF_THE_RUN |= {"seed", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "logging_strategy"}
_NOT_OF_THE_RUN |= {"logging_first_step", "logging_nan_inf_filter", "push_to_hub"}
"""Arguments that do not affect what is compared, or that every run sets for itself."""


def shared_settings(task: Task, model: dict[str, Any], loaders: dict[str, DataLoader[Any]]) -> dict[str, Any]:
    """Return what all runs have in common; `model` describes it, `loaders` give the rows by the name of their set."""
    given: dict[str, Any] = task.args.to_dict()  # type: ignore[no-untyped-call]
    left_out = {name for name in given if name in _NOT_OF_THE_RUN or name.startswith("hub_")}
    versions = (torch, transformers, peft, datasets)
    return {
        "args": {name: value for name, value in given.items() if name not in left_out},
        "model": model,
        "data": {name: _rows(name, task.sets[name], loader) for name, loader in loaders.items()},
        "collator": describe(task.data_collator),
        "positive": task.positive,
        "device": task.args.device.type,
        "curve": [LOGGED, EVALUATED],
        "versions": {module.__name__: module.__version__ for module in versions},
    }


def _rows(name: str, rows: Any, loader: DataLoader[Any]) -> list[Any]:
    """Describe a data set: its rows, a few of them as the model gets them, and the code that makes them."""
    of_library = isinstance(rows, datasets.Dataset)
    code = describe(rows.format["format_kwargs"].get("transform") if of_library else type(rows))
    batch = describe(collated(loader))
    if describe(collated(loader)) != batch:
        logger.warning(
            "The %s rows differ each time they are read, even with the same seed. If the data changes but not the "
            "code, finished runs of the old data will pass for runs of the new.",
            name,
        )
        return [len(rows), code, digest_data(rows) if of_library else None]
    with random_states_kept():
        set_seed(0)
        return [len(rows), code, digest_data(rows), batch]
