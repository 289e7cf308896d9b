"""Save the threshold with the weights that it was tuned for, and read it back with them.

Two places hold it. `decision_threshold.json`, next to the weights, has the whole result; a PEFT adapter folder has only
that. `config.decision_threshold` has the margin (beside it: how probabilities follow from margins, and the share of
positives tuned at) and goes wherever the config goes. The config is written together
with the weights, so where the two disagree (the process was killed between weights and sidecar) the config is right.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from hf_freeze.binary.label_thresholds import LabelThresholds
from hf_freeze.binary.result import ThresholdResult, read_json_object, short, warn_once_per_run
from hf_freeze.errors import FreezeError
from hf_freeze.whole_files import write_text

THRESHOLD_FILE = "decision_threshold.json"
_CONFIG_FILE = "config.json"
_MAY_BE_LEFT_OUT = {"head": "logits", "prevalence": None, "slope": 1.0, "intercept": 0.0}
_CONFIG_NAMES = ("decision_threshold", "decision_positive", *(f"decision_{name}" for name in _MAY_BE_LEFT_OUT))
_LABELS_NAME = "decision_thresholds"
_ALL_NAMES = (*_CONFIG_NAMES, _LABELS_NAME, "decision_labels")  # a config sorts its entries, so their order is one

Saved: TypeAlias = ThresholdResult | LabelThresholds
"""What is saved with weights: the threshold of one label, or of several."""


@contextmanager
def threshold_saved_with_weights(
    result: Saved | None, folder: str | Path, *, model: Any = None, should_save: bool = True
) -> Iterator[None]:
    """Enclose the writing of weights into `folder`, so that no threshold outlives the weights that it was tuned for.

    Before the weights, it sets the model's config, which is saved with them, and removes an older sidecar; after them,
    if nothing was raised, it writes the new sidecar. A process killed in between leaves no sidecar, and a config that
    fits the weights. `result=None` (nothing tuned yet) leaves no threshold behind. `should_save`: as
    `args.should_save`, once per machine; the config is set on every process.
    """
    if model is not None:
        set_config_threshold(model, result)
    if should_save:
        sidecar = Path(folder) / THRESHOLD_FILE
        if sidecar.is_dir():
            raise FreezeError(
                f"{sidecar} is a folder, but the threshold has to be written there. Move the folder away."
            )
        sidecar.unlink(missing_ok=True)
    yield
    if should_save and result is not None:
        _write_result(result, Path(folder))


def save_threshold(result: Saved, folder: str | Path, *, model: Any = None, should_save: bool = True) -> Path | None:
    """Write the threshold next to weights that are already in `folder`.

    Args:
        result: What `tune_threshold` or `load_threshold` returned, or `LabelThresholds`.
        folder: Where the weights are. A config.json in it gets the threshold as well.
        model: A model whose config gets the threshold as well, for the next `save_pretrained`.
        should_save: Whether this process writes files, as `args.should_save`.

    Returns:
        The file, decision_threshold.json; None if not `should_save`.

    Raises:
        FreezeError: For another thing than a result, a folder that is a file, and a config.json that cannot be read.
            Nothing is written then.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     written = save_threshold(ThresholdResult(threshold=-0.5), folder)
    ...     print(written.name, load_threshold(folder).threshold)
    decision_threshold.json -0.5
    """
    if not isinstance(result, ThresholdResult | LabelThresholds):
        raise FreezeError(
            f"{short(result)} is not a ThresholdResult. Give what tune_threshold or load_threshold returned."
        )
    if not isinstance(folder, str | os.PathLike):
        raise FreezeError(f"folder={short(folder)} is not a path. Give the folder that the weights are in.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FreezeError(f"{folder} is a file. Give the folder that the weights are in.")
    config_file = folder / _CONFIG_FILE
    config = read_json_object(config_file) if should_save and os.path.lexists(config_file) else None
    if model is not None:
        set_config_threshold(model, result)
    if not should_save:
        return None
    _write_result(result, folder)
    if config is not None:
        config = {name: value for name, value in config.items() if name not in _ALL_NAMES}
        config |= _config_entries(result)
        write_text(config_file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder / THRESHOLD_FILE


def load_threshold(model_or_dir: Any) -> ThresholdResult:
    """Return the threshold that was saved with a model.

    Args:
        model_or_dir: A loaded model, or a folder with weights or a PEFT adapter in it.

    Returns:
        From a folder, the whole result. From a model, or a folder that only has its config, the margin alone.

    Raises:
        FreezeError: When there is none (margin 0 is a choice for the caller to make), or the file is damaged.
    """
    found = _load(model_or_dir)
    if isinstance(found, LabelThresholds):
        raise FreezeError(f"There are thresholds for several labels, {found.labels}. Use load_label_thresholds.")
    return found


def load_label_thresholds(model_or_dir: Any) -> LabelThresholds:
    """Return the thresholds of several labels that were saved with a model.

    Args:
        model_or_dir: As for `load_threshold`: a folder, or a model that was loaded from one.

    Returns:
        The thresholds by label, for `predict_multi_label` and `MultiLabelMetrics(thresholds=...)`.

    Raises:
        FreezeError: Where there are none, or they are not those of several labels.
    """
    found = _load(model_or_dir)
    if not isinstance(found, LabelThresholds):
        raise FreezeError("There is a threshold for one label, not for several. Use load_threshold.")
    return found


def _load(model_or_dir: Any) -> Saved:
    if isinstance(model_or_dir, str | os.PathLike):
        found = find_threshold(Path(model_or_dir))
        if found is None:
            raise FreezeError(
                f"{model_or_dir} has neither {THRESHOLD_FILE} nor a decision_threshold in its config.json. Tune one "
                "with tune_threshold and write it with save_threshold."
            )
        return found
    found = threshold_of(model_or_dir)
    if found is None:
        raise FreezeError(
            f"This {type(model_or_dir).__name__} has no config.decision_threshold. Was it saved with one? For a PEFT "
            "adapter use load_threshold(folder): its threshold is not in the config of the base model."
        )
    return found


def find_threshold(folder: str | Path) -> Saved | None:
    """Return the threshold in a saved folder, or None when it was saved without one. For code that resumes a run."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FreezeError(f"{folder} is not a folder. For a model on the Hub, load it and pass the model.")
    sidecar, config_file = folder / THRESHOLD_FILE, folder / _CONFIG_FILE
    complete = _load_sidecar(sidecar) if os.path.lexists(sidecar) else None
    in_config = None
    if os.path.lexists(config_file):
        in_config = _from_config_entries(read_json_object(config_file), str(config_file))
    if complete is None or in_config is None:
        return complete or in_config
    if _decision(complete) == _decision(in_config):
        return complete
    warn_once_per_run(
        f"{folder}: {THRESHOLD_FILE} says {_said(complete)}, config.json {_said(in_config)}. The config was written "
        "with the weights, so its threshold is used. Was saving interrupted?",
        stacklevel=3,
    )
    return in_config


def _load_sidecar(path: Path) -> Saved:
    several = "labels" in read_json_object(path)
    return LabelThresholds.load(path) if several else ThresholdResult.load(path)


def threshold_of(model: Any) -> Saved | None:
    """Return the threshold in a loaded model's config, or None. Raises `FreezeError` when it is broken."""
    config = getattr(model, "config", None)
    entries = {name: getattr(config, name, None) for name in _ALL_NAMES}
    return _from_config_entries(entries, f"The config of this {type(model).__name__}")


def set_config_threshold(model: Any, result: Saved | None) -> None:
    """Set the threshold in the model's config, so that `save_pretrained` writes it; None removes it."""
    config = getattr(model, "config", None)
    if config is None:
        return
    entries = {} if result is None else _config_entries(result)
    with suppress(AttributeError):  # a config that takes no attributes, such as a dict, is not saved with the weights
        for name in _ALL_NAMES:
            if name in entries:
                setattr(config, name, entries[name])
            elif hasattr(config, name):
                delattr(config, name)


def _config_entries(result: Saved) -> dict[str, Any]:
    if isinstance(result, LabelThresholds):
        several = {_LABELS_NAME: result.margins, "decision_labels": result.labels}
        return several if result.head == "logits" else several | {"decision_head": result.head}
    entries = {"decision_threshold": float(result.threshold), "decision_positive": int(result.positive)}
    others = {name: getattr(result, name) for name in _MAY_BE_LEFT_OUT}
    return entries | {f"decision_{name}": value for name, value in others.items() if value != _MAY_BE_LEFT_OUT[name]}


def _from_config_entries(config: dict[str, Any], where: str) -> Saved | None:
    if config.get(_LABELS_NAME) is not None:
        return _labels_from_config(config, where)
    if config.get("decision_threshold") is None:
        return None
    entries = {name.removeprefix("decision_"): config.get(name) for name in _CONFIG_NAMES}
    try:
        return ThresholdResult.from_dict({name: value for name, value in entries.items() if value is not None})
    except FreezeError as error:
        raise FreezeError(f"{where} has a decision_threshold that cannot be used. {error}") from error


def _labels_from_config(config: dict[str, Any], where: str) -> LabelThresholds:
    head: Any = config.get("decision_head") or "logits"
    try:
        bare = LabelThresholds(config[_LABELS_NAME])
        order = config.get("decision_labels")
        if not isinstance(order, list | tuple) or sorted(map(str, order)) != sorted(bare.labels):
            raise FreezeError(f"decision_labels={short(order)} must be its labels in the order of the logits.")
        return LabelThresholds({name: replace(bare[name], head=head) for name in order})
    except FreezeError as error:
        raise FreezeError(f"{where} has {_LABELS_NAME} that cannot be used. {error}") from error


def _decision(result: Saved) -> tuple[Any, ...]:
    if isinstance(result, LabelThresholds):
        return tuple((name, *_decision(one)) for name, one in result.by_label.items())
    return np.float32(result.threshold), result.positive, result.head


def _said(result: Saved) -> str:
    if isinstance(result, LabelThresholds):
        return short(result.margins)
    class_of_probabilities = " of probabilities" if result.head == "probability" else ""
    return f"{result.threshold:.6g} for class {result.positive}{class_of_probabilities}"


def _write_result(result: Saved, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / THRESHOLD_FILE)
