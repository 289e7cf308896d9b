"""What hf_freeze uses of accelerate besides its documented functions."""

from hf_freeze.private.name import PrivateName

NAMES = (
    PrivateName("accelerate.state", "is_initialized", "attribute", "what FSDP and DeepSpeed cannot do is refused"),
    PrivateName("accelerate.data_loader:DataLoaderShard", "base_dataloader", "set", "rows know their numbers"),
    PrivateName("accelerate.optimizer:AcceleratedOptimizer", "optimizer", "set", "the optimizer inside is found"),
)
