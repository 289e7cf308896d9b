"""What a normalisation is: told by module type, never by the letters "norm" in a parameter name."""

import re
from collections.abc import Iterator

from torch import nn

_NORM_TYPES = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
# Model-specific classes: LlamaRMSNorm, T5LayerNorm, DetrFrozenBatchNorm2d, RMSNormGated, MobileBERT's NoNorm,
# and ConvNeXt V2's Global Response Normalisation.
_NORM_CLASS = re.compile(r".*(Norm|Normalization|GRN)(\dd|Gated|FP32|Activation)*")


def is_norm(module: nn.Module) -> bool:
    """Tell a normalisation by its type: torch's own, or a class named so that owns nothing but vectors."""
    if isinstance(module, _NORM_TYPES):
        return True
    owned = list(module.parameters(recurse=False))
    named_so = _NORM_CLASS.fullmatch(type(module).__name__) is not None
    return named_so and all(parameter.numel() == max(parameter.shape, default=1) for parameter in owned)


def norm_names(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that normalisation modules own directly."""
    for path, module in model.named_modules(remove_duplicate=False):
        if is_norm(module):
            for name, _ in module.named_parameters(recurse=False):
                yield f"{path}.{name}" if path else name
