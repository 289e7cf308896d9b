"""Train several kinds of Trainer under a plan with a stage on two processes, and write where each of them ended.

`accelerate launch ... two_processes.py OUT_DIR`: `NAME-RANK.safetensors`, the weights of each process.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from hf_freeze.training.beside_model import average_gradients
from tests.ranks import process_group
from tests.trainers.kinds import KINDS
from tests.trainers.runs import trainer, weights

RUNS = {"SFT": "callback", "own": "mixin", "SentenceTransformer": "mixin"}
ROWS_PER_STEP = 4


def built(name: str, folder: Path):
    processes = dist.get_world_size() if dist.is_initialized() else 1
    settings = {"per_device_train_batch_size": ROWS_PER_STEP // processes, "optim": "sgd", "save_strategy": "no"}
    kind = next(kind for kind in KINDS if kind.name == name)
    made = trainer(kind, RUNS[name], folder, staged=True, settings={"learning_rate": 0.1, **settings})
    for module in made.model.modules():  # each process would draw a mask of its own
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    beside = getattr(made, "loss", None)
    if isinstance(beside, nn.Module):  # a loss that was built without a seed
        with torch.no_grad():
            beside.classifier.weight.add_(dist.get_rank() if processes > 1 else 0)
    return made


def all_weights(made) -> dict[str, torch.Tensor]:
    """Those of the model, and of the loss where it is a module of its own."""
    beside = getattr(getattr(made, "loss", None), "classifier", nn.Module())
    others = {f"loss.{name}": parameter.detach().clone() for name, parameter in beside.named_parameters()}
    return {**weights(made), **others}


def sparse_gradients() -> dict[str, torch.Tensor]:
    """Average those of two embeddings, the second of which only the first process uses."""
    both, one = (nn.Embedding(4, 2, sparse=True) for _ in range(2))
    rank = dist.get_rank()
    loss = both(torch.tensor([rank, 3])).sum()
    (loss + one(torch.tensor([2])).sum() if rank == 0 else loss).backward()
    average_gradients([both.weight, one.weight])
    assert both.weight.grad.is_sparse
    assert one.weight.grad.is_sparse
    return {"both": both.weight.grad.to_dense(), "one": one.weight.grad.to_dense()}


@process_group()
def main() -> None:
    folder = Path(sys.argv[1])
    save_file(sparse_gradients(), folder / f"sparse-{dist.get_rank()}.safetensors")
    for name in RUNS:
        made = built(name, folder / name)
        made.train()
        save_file(all_weights(made), folder / f"{name}-{dist.get_rank()}.safetensors")


if __name__ == "__main__":
    main()
