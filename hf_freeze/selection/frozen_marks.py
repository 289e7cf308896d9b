"""Who froze a parameter: hf_freeze, or somebody before it.

Parameters that were frozen in the model handed in stay frozen under `all` and under roles; what hf_freeze froze itself
may thaw again. The mark lives on the module that owns the parameter, so that it survives `deepcopy`, moving to
another device, and wrapping by PEFT, DDP or FSDP, all of which may replace the parameter object.
"""

from torch import nn

_MARK = "_parameters_frozen_by_hf_freeze"


def mark_frozen(owner: nn.Module, attribute: str) -> None:
    """Note that hf_freeze froze this parameter of `owner`."""
    owner.__dict__.setdefault(_MARK, set()).add(attribute)


def unmark_frozen(owner: nn.Module, attribute: str) -> None:
    """Note that the parameter is no longer frozen by hf_freeze."""
    owner.__dict__.get(_MARK, set()).discard(attribute)


def frozen_by_us(model: nn.Module) -> frozenset[str]:
    """Names, under every alias, of the parameters that hf_freeze froze and that still are."""
    return frozenset(
        f"{path}.{attribute}" if path else attribute
        for path, module in model.named_modules(remove_duplicate=False)
        for attribute in module.__dict__.get(_MARK, ())
    )
