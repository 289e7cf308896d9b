"""Training arguments for tests."""

from pathlib import Path
from typing import Any

from hf_freeze import FreezeTrainingArguments


def quiet_arguments(folder: str | Path = "never-written", *, cls: type = FreezeTrainingArguments, **values: Any) -> Any:
    """On the CPU, without a tracker or a bar; `values` are what a test is about."""
    return cls(str(folder), **{"use_cpu": True, "report_to": [], "disable_tqdm": True, **values})
