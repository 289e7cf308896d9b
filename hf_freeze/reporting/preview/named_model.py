"""A model without weights from its name alone: of its configuration, or that of the model its adapters belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.preview.stand_in import without_weights

_ADAPTERS = "adapter_config.json"


def base_of_adapters(name: str) -> str | None:
    """Return the model that a folder of PEFT adapters belongs to, None for a folder or name of anything else.

    Raises `FreezeError` for adapters that do not name it.
    """
    file = Path(name) / _ADAPTERS
    if (Path(name) / "config.json").is_file() or not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise FreezeError(
            f"{str(file)!r} cannot be read: {error!r}. Give the model that the adapters are for."
        ) from error
    if not base:
        raise FreezeError(
            f"{name!r} holds PEFT adapters, and its {_ADAPTERS} does not name their model. Give that model's folder."
        )
    return str(base)


def named_model(name: str, auto_class: str | None) -> nn.Module:
    """Build the model of this name or folder on the meta device, as `without_weights` does.

    Raises `FreezeError` where its configuration names no known model, `auto_class` does not build it, or it cannot be
    built at all, and `OSError` where there is no configuration.
    """
    config = _config(name)
    if auto_class is not None:
        _check_class(config, auto_class)
    try:
        return without_weights(config, auto_class)
    except Exception as error:  # the code of a model may raise anything for the values of a configuration
        raise FreezeError(
            f"{name!r}: its {type(config).__name__} does not make a model ({type(error).__name__}: {error})."
        ) from error


def _config(name: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    except (ValueError, KeyError, TypeError) as error:
        raise FreezeError(f"{name!r} has no configuration of a known model: {error}") from error
    return config


def _check_class(config: PretrainedConfig, name: str) -> None:
    found: Any = getattr(transformers, name, None)
    mapping = getattr(found, "_model_mapping", None)
    if mapping is not None:
        fits = type(config) in mapping
    elif isinstance(found, type) and issubclass(found, PreTrainedModel):
        fits = isinstance(config, found.config_class or ())
    else:
        raise FreezeError(
            f"auto_class={name!r} is no model class of transformers. Name one such as 'AutoModelForCausalLM'."
        )
    if not fits:
        builders = ", ".join(_builders(config))
        raise FreezeError(f"auto_class={name!r} builds no model of a {type(config).__name__}. These do: {builders}.")


def _builders(config: PretrainedConfig) -> list[str]:
    classes = {name: value for name, value in vars(modeling_auto).items() if name.startswith("AutoModel")}
    return sorted(
        name for name, value in classes.items() if type(config) in (getattr(value, "_model_mapping", None) or ())
    )
