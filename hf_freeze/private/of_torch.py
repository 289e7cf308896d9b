"""What hf_freeze uses of torch that torch calls private."""

from hf_freeze.private.name import PrivateName

_MODULE = "torch.nn:Module"
_DDP = "torch.nn.parallel:DistributedDataParallel"
_ATEN = "torch.ops.aten"
_FLOPS = "preview counts operations"

NAMES = (
    PrivateName("torch.utils", "_pytree", "module", "tensors in the outputs of modules are found"),
    PrivateName("torch.utils", "_python_dispatch", "module", "preview watches operations"),
    PrivateName("torch:Tensor", "_version", "attribute", "what was changed since loading is saved"),
    PrivateName("torch", "_subclasses", "module", "preview runs a model without memory for its values"),
    PrivateName(_MODULE, "_buffers", "set", "debug_sample puts buffers back"),
    PrivateName(_MODULE, "_parameters", "set", "debug_sample puts attributes of modules back, but not their weights"),
    PrivateName(_MODULE, "_forward_hooks", "set", "the features of frozen modules with hooks are not cached"),
    PrivateName(_MODULE, "_forward_pre_hooks", "set", "hooks are part of what a comparison is keyed by"),
    PrivateName(_MODULE, "_compiled_call_impl", "set", "debug_sample does not compile a model for one row"),
    PrivateName(_DDP, "_comm_hooks", "set", "communication hooks are kept when what trains changes"),
    PrivateName(_DDP, "__getstate__", "attribute", "DistributedDataParallel reduces what unfreezes"),
    PrivateName(_DDP, "__setstate__", "attribute", "DistributedDataParallel reduces what unfreezes"),
    PrivateName("torch.distributed", "_register_comm_hook", "attribute", "communication hooks are kept"),
    PrivateName("torch.optim.lr_scheduler:LRScheduler", "_last_lr", "set", "a scheduler reports the rates that apply"),
    PrivateName("torch._ops:OpOverload", "_overloadpacket", "set", _FLOPS),
    PrivateName(_ATEN, "_local_scalar_dense", "attribute", "preview runs the step of an optimizer"),
    PrivateName(_ATEN, "_scaled_dot_product_flash_attention", "attribute", _FLOPS),
    PrivateName(_ATEN, "_scaled_dot_product_flash_attention_backward", "attribute", _FLOPS),
    PrivateName(_ATEN, "_scaled_dot_product_flash_attention_for_cpu", "attribute", _FLOPS),
    PrivateName(_ATEN, "_scaled_dot_product_flash_attention_for_cpu_backward", "attribute", _FLOPS),
    PrivateName(_ATEN, "_grouped_mm", "guarded", "preview counts the products of experts"),
    PrivateName(
        "torch._dynamo:OptimizedModule", "_orig_mod", "guarded", "the features of a compiled model are not cached"
    ),
    PrivateName(
        "torch.autograd:Function", "_saved_", "guarded", "debug_sample recognises a loss by what its graph holds"
    ),
)
