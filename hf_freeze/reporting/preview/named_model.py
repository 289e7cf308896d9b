"""A model without weights, built from a configuration, or from that of a name or a folder."""

import copy
from os import PathLike
from typing import Any, TypeAlias

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from hf_freeze.errors import FreezeError
from hf_freeze.reporting.saved_model import load_config

ModelSource: TypeAlias = "nn.Module | PretrainedConfig | str | PathLike[str]"


def without_weights(source: ModelSource, auto_class: str | None = None) -> nn.Module:
    """Return the model as it is, or build that of a configuration, name or folder on the meta device.

    `auto_class` names the transformers class that builds it. Without it that is AutoModelForSequenceClassification, or
    where the architecture has no such class, the class named in the configuration.
    """
    if isinstance(source, nn.Module):
        return source
    config: Any = source if isinstance(source, PretrainedConfig) else AutoConfig.from_pretrained(source)
    builder = _builder(config, auto_class)
    with torch.device("meta"):
        build = getattr(builder, "from_config", None) or builder._from_config
        model: nn.Module = build(copy.deepcopy(config))
        if isinstance(model, PreTrainedModel):
            model.tie_weights()  # which transformers 5.0 leaves out on this device
    return model


def _builder(config: Any, auto_class: str | None) -> Any:
    if auto_class is not None:
        return _model_class(auto_class)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification
    return getattr(transformers, (config.architectures or [""])[0], AutoModel)


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
            f"{name!r}: its {type(config).__name__} describes no model that can be built ({type(error).__name__}: "
            f"{error})."
        ) from error


def _check_class(config: PretrainedConfig, name: str) -> None:
    found = _model_class(name)
    mapping = getattr(found, "_model_mapping", None)
    fits = isinstance(config, found.config_class or ()) if mapping is None else type(config) in mapping
    if not fits:
        builders = ", ".join(_builders(config))
        raise FreezeError(
            f"auto_class={name!r} cannot build a model from a {type(config).__name__}. These can: {builders}."
        )


def _model_class(name: str) -> Any:
    found: Any = getattr(transformers, name, None)
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    if not is_model and getattr(found, "_model_mapping", None) is None:
        raise FreezeError(
            f"auto_class={name!r} is not a model class of transformers. Name one such as 'AutoModelForCausalLM'."
        )
    return found


def _builders(config: PretrainedConfig) -> list[str]:
    classes = {name: value for name, value in vars(modeling_auto).items() if name.startswith("AutoModel")}
    return sorted(
        name for name, value in classes.items() if type(config) in (getattr(value, "_model_mapping", None) or ())
    )
