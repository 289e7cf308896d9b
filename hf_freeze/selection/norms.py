"""What a normalisation is: recognised by module type, never by the letters "norm" in a parameter name."""

import re
from collections.abc import Iterator

from torch import nn

from hf_freeze.module_types import BATCH_NORMS, INSTANCE_NORMS

_NORM_TYPES = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    *BATCH_NORMS,
    *INSTANCE_NORMS,
)
# Model-specific classes: LlamaRMSNorm, T5LayerNorm, DetrFrozenBatchNorm2d, RMSNormGated, MobileBERT's NoNorm,
# ConvNeXt V2's Global Response Normalisation; but no NormalHead.
_NORM_CLASS = re.compile(r".*([Nn]orm|Normalization|GRN)(?![a-z]).*")


def is_norm(module: nn.Module) -> bool:
    """Tell a normalisation by its type: torch's own, or a class named so that holds nothing but vectors of its own."""
    if isinstance(module, _NORM_TYPES):
        return True
    if not _NORM_CLASS.fullmatch(type(module).__name__):
        return False
    owned = list(module.parameters(recurse=False))
    only_its_own = len(owned) == len(list(module.parameters()))  # a PreNormBlock is not a norm
    return only_its_own and all(parameter.numel() == max(parameter.shape, default=1) for parameter in owned)


def norm_names(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that normalisation modules own directly."""
    for path, module in model.named_modules(remove_duplicate=False):
        if is_norm(module):
            for name, _ in module.named_parameters(recurse=False):
                yield f"{path}.{name}" if path else name
