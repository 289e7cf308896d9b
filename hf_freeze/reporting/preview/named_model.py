"""A model without weights, built from the configuration of the model of this name."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.preview.stand_in import without_weights
from hf_freeze.reporting.saved_model import load_config


def named_model(name: str, auto_class: str | None) -> nn.Module:
    """Build the model of this name or folder on the meta device, as `without_weights` does.

    Raises `FreezeError` where there is no configuration of a known model, `auto_class` does not build it, or it cannot
    be built at all.
    """
    config = load_config(name)
    if auto_class is not None:
        _check_class(config, auto_class)
    try:
        return without_weights(config, auto_class)
    except Exception as error:  # the code of a model may raise anything for the values of a configuration
        raise FreezeError(
            f"{name!r}: its {type(config).__name__} does not make a model ({type(error).__name__}: {error})."
        ) from error


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
