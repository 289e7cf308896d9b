"""Models and tokenizers by the name that someone typed: a folder, a folder of PEFT adapters, or a model of the hub."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import AutoPeftModelForSequenceClassification
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PretrainedConfig
from transformers.trainer_utils import get_last_checkpoint

from hf_freeze.errors import FreezeError, in_one_line
from hf_freeze.training.merge_trained import load_whole
from hf_freeze.training.trained_file import holds_trained_only, read_base

_ADAPTERS = "adapter_config.json"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_config(name: str) -> PretrainedConfig:
    """Return the configuration of a model. Raises `FreezeError` where there is none of a known model."""
    _check_there(name)
    with _loading(name, "configuration"):
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    _check_labels(name, config)
    return config


def load_classifier(name: str, **options: Any) -> Any:
    """Return a sequence classification model, with its adapters where there are some. Raises `FreezeError`.

    Of a folder that holds only what trained, the whole model is returned.
    """
    _check_there(name)
    if holds_trained_only(name):
        return load_whole(name)
    adapters = base_of_adapters(name) is not None
    auto_class: Any = AutoPeftModelForSequenceClassification if adapters else AutoModelForSequenceClassification
    with _loading(name, "adapters" if adapters else "model"):
        model = auto_class.from_pretrained(name, **options)
    _check_labels(name, model.config)
    return model


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model; that of its base where it has none itself. Raises `FreezeError`."""
    _check_there(name)
    base = read_base(name).name if holds_trained_only(name) else base_of_adapters(name)
    if base is not None and not (Path(name) / "tokenizer_config.json").is_file():
        return load_tokenizer(base)
    with _loading(name, "tokenizer", "Save it beside the model: tokenizer.save_pretrained(...)."):
        return AutoTokenizer.from_pretrained(name)


def base_of_adapters(name: str) -> str | None:
    """Return the model that a folder of PEFT adapters belongs to, None for a folder or name of anything else.

    Raises `FreezeError` for adapters that do not name it.
    """
    file = Path(name) / _ADAPTERS
    if (Path(name) / "config.json").is_file() or not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FreezeError(
            f"{str(file)!r} cannot be read: {error!r}. Give the model that the adapters are for."
        ) from error
    if not base or not isinstance(base, str):
        raise FreezeError(
            f"{name!r} holds PEFT adapters, and its {_ADAPTERS} does not name their model. Give that model's folder."
        )
    return base


def _check_there(name: str) -> None:
    """Raise `FreezeError` for a folder that holds no model, and for what can be neither a folder nor a hub's name."""
    folder = Path(name)
    if name and folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", _ADAPTERS)):
            raise FreezeError(f"The folder {name!r} holds no model: it has no config.json. {_where_one_is(name)}")
    elif folder.is_file():
        raise FreezeError(f"{name!r} is a file. Give the folder of a saved model, or the name of one on the hub.")
    elif not _HUB_NAME.fullmatch(name):
        raise FreezeError(f"There is no folder {name!r}. Give that of a saved model, or the name of one on the hub.")


def _check_labels(name: str, config: PretrainedConfig) -> None:
    for field in ("id2label", "label2id"):
        value = getattr(config, field, None)
        if value is not None and not isinstance(value, dict):
            raise FreezeError(f"The configuration in {name!r} has {field}={value!r}, which is not a mapping of labels.")


def _where_one_is(name: str) -> str:
    checkpoint = get_last_checkpoint(name)  # type: ignore[no-untyped-call]
    if checkpoint is not None:
        return f"Its newest checkpoint is {checkpoint!r}."
    return "Give a folder that model.save_pretrained(...) wrote."


@contextmanager
def _loading(name: str, what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever the code of a model or tokenizer raises into one sentence on what could not be loaded."""
    try:
        yield
    except FreezeError:
        raise
    except Exception as error:
        reason = in_one_line(error, most=300)
        if Path(name).is_dir():
            said = f"The {what} in {name!r} cannot be loaded ({reason})."
        else:
            said = f"There is no folder {name!r}, and no {what} of that name could be loaded from the hub ({reason})."
        raise FreezeError(f"{said} {advice}".rstrip()) from error
