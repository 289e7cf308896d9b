"""What hf_freeze uses of peft besides its documented functions."""

from hf_freeze.private.name import PrivateName

_LAYER = "peft.tuners.tuners_utils:BaseTunerLayer"
_KEPT = "peft.utils.other:AuxiliaryTrainingWrapper"

NAMES = (
    PrivateName(_LAYER, "adapter_layer_names", "attribute", "adapters are told apart from base weights"),
    PrivateName(_LAYER, "other_param_names", "attribute", "adapters are told apart from base weights"),
    PrivateName(_LAYER, "active_adapters", "attribute", "the adapters that train are found"),
    PrivateName(_KEPT, "adapter_layer_names", "attribute", "copies of whole modules are found"),
    PrivateName(_KEPT, "active_adapters", "attribute", "copies of whole modules are found"),
)
